#!/usr/bin/env bash
# The attacks of this folder: data, then three audits. `figures.sh tiny` takes seconds, for CI.
# usage: figures.sh [full|tiny] [FOLDER]     FOLDER must not exist
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
size=${1:-full}
out=${2:-$here/results}
case $size in
  full) images=6000 rounds=10 few=1000 passes=60 shadows=16 iterations=2000 restarts=3
        rules=fedavg,fedmedian,fedtrimmedavg,krum,multikrum,geomedian,normclip:clip_norm=1,fltrust
        attacks=label-flip,sign-flip,gaussian,alie,inner-product ;;
  tiny) images=400 rounds=1 few=400 passes=1 shadows=4 iterations=20 restarts=1
        rules=fedavg,krum attacks=sign-flip ;;
  *) echo "$0: the size is full or tiny, not $size" >&2; exit 2 ;;
esac
[ ! -e "$out" ] || { echo "$0: $out exists; name a new folder" >&2; exit 1; }
mkdir -p "$out"
fedlearn data split fashion-mnist --out "$out/data" --clients 10 --seed 1 --test 0.2 --limit $images
job="$here/job.toml"
fedlearn audit poisoning "$job" --data "$out/data" --out "$out/robustness" \
  --rules $rules --attacks $attacks --attackers 0.3 --rounds $rounds
fedlearn audit inversion "$job" --data "$out/data" --out "$out/inversion" --batch 4 \
  --clip 0.5 --noise 0.01 --iterations $iterations --restarts $restarts
# A model that is trained for long on few images remembers them.
fedlearn data split fashion-mnist --out "$out/few" --clients 10 --seed 1 --test 0.2 --limit $few
fedlearn audit membership "$job" --data "$out/few" --out "$out/membership" \
  --shadows $shadows --rounds $passes
rm -r "$out/data" "$out/few"
