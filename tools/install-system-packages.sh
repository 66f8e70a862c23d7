#!/usr/bin/env bash
# Installs the few parts that no Python index has, by Debian's apt, as root. Everything else works
# without them; what needs them reports that they are missing.
#
#   tools/install-system-packages.sh         for `make test`; never an error
#   tools/install-system-packages.sh pods    for `make test-pods` and images/build.sh: a container
#                                            runtime and a builder of images; an error if they
#                                            cannot be installed
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
  echo "not installed: ${missing[*]} (needs root and apt; tests that need them report it)" >&2
  [ "${1:-}" = "" ] && exit 0 || exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
