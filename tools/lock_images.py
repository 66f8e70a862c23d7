"""Write the list of wheels, with hashes, that each image is made of: images/*.lock.

An image has the core, its own extras (:data:`IMAGES`), and ``nvidia``, because each of them
verifies evidence. pip resolves for CPython 3.11 on x86-64 Linux within constraints.txt. Packages
that Flower requires and does not import in an image are left out, with those that only they need.
An image is made of exactly the listed files; nothing is resolved when it is built. ``--check``
writes nothing and reports whether the lists fit pyproject.toml and constraints.txt.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# Made by tools/lock_images.py for CPython 3.11 on x86-64 Linux. Do not edit.\n"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LINE = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$")

SERVERS: Final = frozenset({"alembic", "prompt-toolkit", "sqlalchemy", "uv", "uvicorn"})
BUNDLES: Final = frozenset({"fastapi", "starlette"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image has besides the core, and what of Flower's requirements it leaves out."""

    extras: tuple[str, ...]
    left_out: frozenset[str]


IMAGES: Final[Mapping[str, Image]] = MappingProxyType(
    {
        "server": Image(extras=("server", "nvidia"), left_out=SERVERS),
        "edge": Image(extras=("edge", "kubernetes", "nvidia"), left_out=SERVERS | BUNDLES),
        "client": Image(extras=("edge", "torch", "nvidia"), left_out=SERVERS | BUNDLES),
    }
)
"""Flower imports ``SERVERS`` in servers and prompts of its own, ``BUNDLES`` also where a bundle is
made from a folder, as ``fedlearn job submit`` does."""

Wheel = tuple[str, str, tuple[str, ...]]
"""A version, the SHA-256 of its file, and what it requires."""


def wanted(extras: Iterable[str]) -> list[Requirement]:
    """Return the requirements of pyproject.toml with these extras."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    needed = list(project["dependencies"])
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    return [Requirement(item) for item in needed]


def resolve(requirements: list[Requirement]) -> dict[str, Wheel]:
    """Return each wheel that pip would install."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--only-binary=:all:", f"--report={report}"]
        command += ["--target", scratch, "--python-version=3.11", "--implementation=cp"]
        command += [f"--platform={name}" for name in PLATFORMS]
        command += ["--platform=any", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*command, *map(str, requirements)], check=True)
        document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    found: dict[str, Wheel] = {}
    for item in document["install"]:
        info = item["download_info"]
        digest = info["archive_info"].get("hashes", {}).get("sha256")
        if digest is None:
            raise SystemExit(f"{info['url']}: pip knows no SHA-256 of it")
        metadata = item["metadata"]
        requires = tuple(metadata.get("requires_dist", ()))
        found[canonicalize_name(metadata["name"])] = (metadata["version"], digest, requires)
    return found


def needed(
    requirements: list[Requirement], wheels: Mapping[str, Wheel], left_out: frozenset[str]
) -> dict[str, Wheel]:
    """Return the wheels that are still required when Flower does not require ``left_out``."""
    found: dict[str, Wheel] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        found[name] = wheels[name]
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in wheels[name][2]:
                inner = Requirement(line)
                marker = {"extra": extra, "python_version": "3.11", "python_full_version": "3.11.0"}
                wished = inner.marker is None or inner.marker.evaluate(marker)
                if wished and not (name == "flwr" and canonicalize_name(inner.name) in left_out):
                    queue.append(inner)
    return found


def text(wheels: Mapping[str, Wheel]) -> str:
    """Return a list as pip reads it."""
    lines = (
        f"{name}=={version} --hash=sha256:{digest}\n"
        for name, (version, digest, _) in sorted(wheels.items())
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


def faults(image: str, pinned: Iterable[Requirement]) -> list[str]:
    """Return the faults in the list of one image."""
    found = locked(ROOT / f"images/{image}.lock")
    wrong = []
    for requirement in wanted(IMAGES[image].extras):
        version = found.get(canonicalize_name(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    for constraint in pinned:
        version = found.get(canonicalize_name(constraint.name))
        if version and not constraint.specifier.contains(
            version.partition("+")[0], prereleases=True
        ):
            wrong.append(f"{constraint.name} is {version}, not {constraint.specifier}")
    return [f"images/{image}.lock: {line}" for line in wrong]


def check() -> int:
    """Compare the lists with the requirements of the project."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if "==" in line and not line.startswith("#")]
    wrong = [line for image in IMAGES for line in faults(image, pinned)]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(IMAGES)} lists, {len(wrong)} entries that do not fit")
    if wrong:
        print("make them again: python tools/lock_images.py", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        return check()
    for name, image in IMAGES.items():
        requirements = wanted(image.extras)
        wheels = needed(requirements, resolve(requirements), image.left_out)
        (ROOT / f"images/{name}.lock").write_text(text(wheels), encoding="utf-8")
        print(f"images/{name}.lock: {len(wheels)} wheels")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
