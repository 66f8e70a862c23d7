"""Write the lists of wheels, with hashes, that images are made of: images/*.lock.

``base.lock`` has everything but torch, and the extra ``nvidia``, because an image verifies what
comes; ``torch.lock`` has torch and what it alone needs. pip resolves them for CPython 3.11 on
x86-64 Linux within constraints.txt; an image takes the very files that are listed, and nothing is
resolved when it is built. ``--check`` writes nothing and says whether the lists still fit
pyproject.toml and constraints.txt.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch"
EXTRA = "nvidia"
HEAD = "# Made by tools/lock_images.py for CPython 3.11 on x86-64 Linux. Do not edit.\n"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LINE = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$")


def wanted() -> list[Requirement]:
    """Return what pyproject.toml asks for."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"][EXTRA]]
    return [Requirement(item) for item in needed]


def resolve(requirements: list[str]) -> dict[str, tuple[str, str]]:
    """Return version and SHA-256 of each wheel that pip would install."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--only-binary=:all:", f"--report={report}"]
        command += ["--target", scratch, "--python-version=3.11", "--implementation=cp"]
        command += [f"--platform={name}" for name in PLATFORMS]
        command += ["--platform=any", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*command, *requirements], check=True)
        document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str]] = {}
    for item in document["install"]:
        info = item["download_info"]
        digest = info["archive_info"].get("hashes", {}).get("sha256")
        if digest is None:
            raise SystemExit(f"{info['url']}: pip knows no SHA-256 of it")
        metadata = item["metadata"]
        found[canonicalize_name(metadata["name"])] = (metadata["version"], digest)
    return found


def text(wheels: dict[str, tuple[str, str]]) -> str:
    """Return a list as pip reads it."""
    lines = (
        f"{name}=={version} --hash=sha256:{digest}\n"
        for name, (version, digest) in sorted(wheels.items())
    )
    return HEAD + "".join(lines)


def locked(path: Path) -> dict[str, str]:
    """Return names and versions in a list."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = LINE.fullmatch(line)
            if match is None:
                raise SystemExit(f"{path}: {line!r} is no pinned wheel")
            found[match[1]] = match[2]
    return found


def check() -> int:
    """Compare the lists with what the project asks for."""
    found = locked(ROOT / "images/base.lock") | locked(ROOT / "images/torch.lock")
    wrong = []
    for requirement in wanted():
        version = found.get(canonicalize_name(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is in no list")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" not in line or line.startswith("#"):
            continue
        constraint = Requirement(line)
        version = found.get(canonicalize_name(constraint.name))
        if version and not constraint.specifier.contains(
            version.partition("+")[0], prereleases=True
        ):
            wrong.append(f"{constraint.name} is {version}, not {constraint.specifier}")
    for line in wrong:
        print(f"images/*.lock: {line}", file=sys.stderr)
    print(f"{len(found)} wheels, {len(wrong)} that do not fit")
    if wrong:
        print("make them again: python tools/lock_images.py", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        return check()
    names = [str(item) for item in wanted() if canonicalize_name(item.name) != TORCH]
    base = resolve(names)
    whole = resolve([str(item) for item in wanted()])
    images = ROOT / "images"
    (images / "base.lock").write_text(text(base), encoding="utf-8")
    rest = {name: wheel for name, wheel in whole.items() if name not in base}
    (images / "torch.lock").write_text(text(rest), encoding="utf-8")
    print(f"{len(base)} wheels, and {len(rest)} with torch")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
