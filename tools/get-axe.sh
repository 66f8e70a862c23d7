#!/usr/bin/env bash
# Installs axe-core below .cache, in the version and with the digest of tools/axe/package-lock.json,
# and prints the path of its script. It checks contrast and structure of pages in a browser.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
folder="$here/.cache/axe"
script="$folder/node_modules/axe-core/axe.min.js"
if ! { [ -f "$script" ] && cmp -s "$here/tools/axe/package-lock.json" "$folder/package-lock.json"; }; then
  command -v npm >/dev/null || { echo "get-axe: npm is not installed" >&2; exit 1; }
  mkdir -p "$folder"
  cp "$here/tools/axe/package.json" "$here/tools/axe/package-lock.json" "$folder/"
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
fi
echo "$script"
