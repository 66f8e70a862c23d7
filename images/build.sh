#!/usr/bin/env bash
# Builds the images server, edge and client as OCI layouts below build/images, each with its
# SBOM, and prints their digests. Takes minutes, root, and Debian's buildah and mmdebstrap.
#
#   images/build.sh [server] [edge] [client]        all three by default
#
# The same commit, lists and Debian mirror give the same digests: dates are those of
# SOURCE_DATE_EPOCH (the commit's by default), wheels are checked by hash, and byte code names the
# hash of its source. DEBIAN_MIRROR pins the base (a snapshot.debian.org address never changes).
# INSECURE_EVALUATION=1 adds a software TPM, which proves nothing about hardware.
set -euo pipefail
cd "$(dirname "$0")/.."
here=images
out="${OUT:-build/images}"
python="${PYTHON:-.venv/bin/python}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}" BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(server edge client)

fail() { echo "images: $*" >&2; exit 1; }
for target in "${targets[@]}"; do
  [ -f "$here/$target.lock" ] || fail "$target is not an image: name server, edge or client"
done
[ "$(id -u)" -eq 0 ] || fail "needs root: a chroot is made and files get owners"
missing=()
for program in buildah mmdebstrap; do command -v "$program" >/dev/null || missing+=("$program"); done
[ ${#missing[@]} -eq 0 ] || fail "apt-get install --no-install-recommends ${missing[*]}"

mkdir -p "$out"
work="$(cd "$out" && pwd)/work"
mkdir -p "$work/context/wheels"
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }

# 1. The base: Debian without apt, with Python and the TPM's tools.
packages=python3,libstdc++6,ca-certificates,tpm2-tools,libtss2-tcti-device0
[ -z "${INSECURE_EVALUATION:-}" ] || packages+=,swtpm,libtss2-tcti-swtpm0
base="$work/base-$SOURCE_DATE_EPOCH${INSECURE_EVALUATION:+-insecure}.tar"
if [ ! -s "$base" ]; then
  echo "images: making the base" >&2
  mmdebstrap --quiet --mode=root --format=tar --variant=essential --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/cache/* "$1"/var/log/* "$1"/usr/lib/python3*/test' \
    --customize-hook='find "$1"/usr -name "*.pyc" -delete' \
    --customize-hook='find "$1" -xdev -perm /6000 -type f -exec chmod a-s {} +' \
    --customize-hook='printf "fedlearn:x:65532:65532::/tmp:/usr/sbin/nologin\n" >>"$1"/etc/passwd' \
    --customize-hook='printf "fedlearn:x:65532:\n" >>"$1"/etc/group' \
    bookworm "$base.part" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
  mv "$base.part" "$base"
fi

# 2. The wheels, each with the hash in its list, and our own.
for target in "${targets[@]}"; do
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary=:all: --python-version=3.11 --implementation=cp \
    --platform=manylinux_2_28_x86_64 --platform=manylinux_2_17_x86_64 \
    --platform=manylinux2014_x86_64 --platform=any \
    --dest "$work/context/wheels" --requirement "$here/$target.lock"
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/context/wheels" \
  --only-binary=:all: pip==25.3
rm -f "$work"/context/wheels/fedlearn-*.whl
# From a copy: a build in the tree would include files of an earlier one in build/lib.
rm -rf "$work/source"
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard |
  xargs -0 -r sh -c 'for file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done' sh |
  tar --null --files-from=- -cf - | tar -C "$work/source" -xf -
"$python" -m build --wheel --outdir "$work/context/wheels" "$work/source" >/dev/null
rm -rf "$work/source"
cp "$here"/*.lock "$work/context/"
cp "$here/install.sh" "$work/context/"

# 3. The images.
container="$(buildah from scratch)"
buildah add --quiet "$container" "$base" / >/dev/null
buildah commit --quiet --timestamp "$SOURCE_DATE_EPOCH" --rm "$container" localhost/fedlearn-base >/dev/null
for target in "${targets[@]}"; do
  file="$here/edge.Containerfile"
  [ "$target" != server ] || file="$here/server.Containerfile"
  echo "images: building $target" >&2
  buildah bud --quiet --timestamp "$SOURCE_DATE_EPOCH" --build-arg LOCK="$target.lock" \
    --format oci --file "$file" --tag "localhost/fedlearn/$target" "$work/context" >/dev/null
  # The image must work as its own user and with nothing mounted.
  case "$target" in
    server) modules="server.main, server.service, server.rpc.fleet, server.flower.application.bundle, attestation.tpm.seal" ;;
    edge) modules="edge.main, edge.agent.agent, edge.kube.launcher, edge.client.pod_main, kubernetes.config" ;;
    client) modules="edge.client.pod_main, edge.client.runner, edge.client.flower.app_main, fedlearn.update.torch" ;;
  esac
  container="$(buildah from "localhost/fedlearn/$target")"
  buildah run "$container" -- sh -c "test \$(id -u) = 65532 && tpm2_getcap --version >/dev/null"
  buildah run "$container" -- python -c "import $modules"
  buildah rm "$container" >/dev/null
  rm -rf "${out:?}/$target"
  buildah push --quiet "localhost/fedlearn/$target" "oci:$out/$target"
  "$python" tools/sbom.py "$out/$target" >"$out/$target.cdx.json"
done
"$python" tools/image_digests.py "${targets[@]/#/$out/}"
