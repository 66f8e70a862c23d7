#!/usr/bin/env bash
# Installs the few parts that no Python index has, where Debian's apt and the right to use it
# are at hand. Everything else works without them; what needs them says so.
set -euo pipefail
packages=(swtpm tpm2-tools dataset-fashion-mnist ovmf)
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "not installed: ${missing[*]} (needs root and apt; the tests that need them will say so)" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
