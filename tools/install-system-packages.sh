#!/usr/bin/env bash
# Installs the few parts that no Python index has, where Debian's apt and the right to use it
# are at hand. Everything else works without them; what needs them says so.
#
#   tools/install-system-packages.sh         what `make test` can use; never an error
#   tools/install-system-packages.sh pods    what `make test-pods` and images/build.sh need: a
#                                            container runtime and a builder of images; an error
#                                            where they cannot be had
set -euo pipefail
case "${1:-}" in
  "") packages=(swtpm tpm2-tools dataset-fashion-mnist ovmf) ;;
  pods) packages=(containerd runc containernetworking-plugins iproute2 buildah mmdebstrap) ;;
  *) echo "not a set of packages: $1 (there is: pods)" >&2; exit 2 ;;
esac
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "not installed: ${missing[*]} (needs root and apt; the tests that need them will say so)" >&2
  [ "${1:-}" = "" ] && exit 0 || exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
