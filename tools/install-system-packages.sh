#!/usr/bin/env bash
# Installs the few parts that no Python index has, by Debian's apt, as root. Everything else works
# without them; what needs them reports that they are missing.
#
#   tools/install-system-packages.sh         for `make test`; never an error
#   tools/install-system-packages.sh demo    the software TPM of `make demo`; never an error
#   tools/install-system-packages.sh pods    for `make test-pods` and images/build.sh: a container
#                                            runtime and a builder of images; an error if they
#                                            cannot be installed
set -euo pipefail
have() { local name; for name in "$@"; do command -v "$name" >/dev/null && return 0; done; return 1; }
set="${1:-}"
case "$set" in
  "")
    packages=(swtpm tpm2-tools dataset-fashion-mnist ovmf)
    # A browser and npm may have come another way, as on GitHub's machines.
    have chromium chromium-browser google-chrome google-chrome-stable || packages+=(chromium)
    have npm || packages+=(npm)
    otherwise="tests that need them report it"
    ;;
  demo)
    packages=(swtpm tpm2-tools)
    otherwise="the demo runs on sample evidence, which proves nothing"
    ;;
  pods)
    packages=(containerd runc containernetworking-plugins iproute2 buildah mmdebstrap)
    otherwise="nothing was done"
    ;;
  *) echo "not a set of packages: $set (there are: demo, pods)" >&2; exit 2 ;;
esac
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
lacking() {
  echo "not installed: ${missing[*]} ($1); $otherwise" >&2
  [ "$set" = pods ] && exit 1 || exit 0
}
have apt-get && [ "$(id -u)" -eq 0 ] || lacking "needs root and apt"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
  lacking "apt-get failed"
