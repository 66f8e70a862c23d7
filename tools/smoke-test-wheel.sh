#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment and checks its content: tests in the source
# tree cannot notice a file that is missing from the wheel.
#
# The environment borrows the libraries of .venv through a .pth file, so nothing is downloaded
# again; our own packages come from the wheel alone.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# Building in a copy leaves no build folder behind and sees tracked files only.
mkdir "$scratch/source"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 -r -I{} sh -c 'test -e "$1" && printf "%s\0" "$1"' _ {}) |
  tar -C "$root" --null --files-from=- -cf - | tar -C "$scratch/source" -xf -
isolation=()
if "$python" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null; then
  isolation=(--no-isolation)
fi
"$python" -m build --wheel "${isolation[@]}" --outdir "$scratch/dist" "$scratch/source" >"$scratch/build.log" 2>&1 ||
  { tail -n 30 "$scratch/build.log" >&2; echo "error: the wheel cannot be built" >&2; exit 1; }
wheel=("$scratch"/dist/*.whl)

"$python" -m venv --without-pip "$scratch/venv"
site="$("$scratch/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$python" - "$site/borrowed.pth" <<'BORROW'
import sys
import sysconfig

# A plain path: unlike site.addsitedir it runs no .pth file there, so the editable install of
# the source tree stays out.
places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.writelines(f"{place}\n" for place in sorted(places))
BORROW
# --no-user keeps the borrowed environment as it is; --ignore-installed: the editable install
# in it has the same name.
"$python" -m pip --python "$scratch/venv/bin/python" install --quiet --no-deps --no-index \
  --ignore-installed --no-warn-script-location "${wheel[0]}"

cd "$scratch"
unset PYTHONPATH
"$scratch/venv/bin/python" -I - "$scratch/venv" <<'LOOK'
import importlib
import pathlib
import sys

environment = pathlib.Path(sys.argv[1]).resolve()
parents = set()
for name in ("attestation", "edge", "fedlearn", "server"):
    module = importlib.import_module(name)
    place = pathlib.Path(module.__file__).resolve().parent
    parents.add(place.parent)
    if not (place / "py.typed").is_file():
        sys.exit(f"error: {name} has no py.typed in the wheel")
if len(parents) != 1:
    sys.exit(f"error: the packages do not share one parent: {sorted(map(str, parents))}")
(parent,) = parents
if environment not in parent.parents:
    sys.exit(f"error: the packages come from {parent}, not from the wheel")
print(f"ok    four packages below {parent.relative_to(environment)}")
LOOK

"$python" - "${wheel[0]}" "$scratch/source" <<'DATA'
import pathlib
import sys
import zipfile

packed = set(zipfile.ZipFile(sys.argv[1]).namelist())
source = pathlib.Path(sys.argv[2])
kept = {".py", ".pyi", ".proto", ".toml", ".html", ".css", ".jinja", ".pem", ".json", ".typed"}
missing = [
    str(path.relative_to(source))
    for package in ("attestation", "edge", "fedlearn", "server")
    for path in sorted((source / package).rglob("*"))
    if path.is_file()
    and (path.suffix in kept or path.name == "py.typed")
    and str(path.relative_to(source)) not in packed
]
if missing:
    sys.exit("error: not in the wheel: " + ", ".join(missing))
strangers = sorted({name.split("/")[0] for name in packed if ".dist-info/" not in name}
                   - {"attestation", "edge", "fedlearn", "server"})
if strangers:
    sys.exit(f"error: the wheel holds more than our packages: {strangers}")
print(f"ok    {len(packed)} files, none missing")
DATA

for command in fedlearn fedlearn-server fedlearn-edge; do
  "$scratch/venv/bin/$command" --help >"$scratch/help" 2>&1 ||
    { cat "$scratch/help" >&2; echo "error: $command --help does not work" >&2; exit 1; }
  echo "ok    $command --help"
done
"$scratch/venv/bin/fedlearn" job init "$scratch/first" >/dev/null
"$scratch/venv/bin/fedlearn" job validate "$scratch/first/job.toml" >/dev/null
echo "ok    fedlearn job init, fedlearn job validate"
