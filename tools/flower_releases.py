"""Run the tests of the Flower integration with each supported release that is not pinned.

``pyproject.toml`` gives a range of Flower; ``constraints.txt`` pins the highest release that
resolves, and all tests run with it. This finds the lowest and the highest release of the range that
pip resolves. For each that is not installed it makes an environment on top of the current one, with
only the packages that differ, and runs pytest in it::

    python tools/flower_releases.py                  # the tests of the integration, and a whole job
    python tools/flower_releases.py tests/e2e/...    # these tests

It fails when a test does, when nothing resolves, and when ``constraints.txt`` does not pin the
highest release.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TESTS = [
    "tests/fedlearn/app/test_message.py",
    "tests/fedlearn/demo/test_apps.py",
    "tests/server/flower/application/test_contract.py",
    "tests/server/flower/exchange/test_job_exchange.py",
    "tests/server/flower/aggregation/test_mean.py",
    "tests/edge/client/flower/test_app_state.py",
    "tests/e2e/test_flower_rounds.py::"
    "test_a_round_costs_less_than_half_a_second_and_repeats_to_the_bit",
]


def asked() -> Requirement:
    """Return the requirement of Flower in pyproject.toml."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = [Requirement(item) for item in document["project"]["dependencies"]]
    return next(item for item in found if item.name == "flwr")


def resolved(requirement: str) -> dict[str, str]:
    """Return the versions that pip would install for a requirement, by name.

    The pins of ``constraints.txt`` apply, except to Flower itself and to packages of which its
    releases need different versions.
    """
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    free = re.compile(r"^(flwr|certifi|uv)==")
    with tempfile.TemporaryDirectory() as scratch:
        constraints, report = Path(scratch, "constraints.txt"), Path(scratch, "report.json")
        constraints.write_text("\n".join(line for line in pinned if not free.match(line)))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--constraint", str(constraints)]
        subprocess.run([*command, f"--report={report}", requirement], check=True)
        document = json.loads(report.read_text(encoding="utf-8"))
    metadata = [item["metadata"] for item in document["install"]]
    return {each["name"]: each["version"] for each in metadata}


def lowest(requirement: Requirement) -> str:
    """Return the lowest release of a range, as its first ``>=`` names it."""
    bounds = [item.version for item in requirement.specifier if item.operator == ">="]
    return f"flwr=={bounds[0]}.*"


def installed(name: str) -> str:
    """Return the version of a package here; empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def environment(folder: Path, packages: dict[str, str]) -> Path:
    """Make an environment with these packages; all others are those of this environment."""
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)}, scheme="venv")
    site, ours = Path(paths["purelib"]), sysconfig.get_paths()["purelib"]
    other = [f"{name}=={found}" for name, found in packages.items() if found != installed(name)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, f"--target={site}", *other], check=True)
    (site / "rest.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    print(f"  {', '.join(other)}", flush=True)
    return Path(paths["scripts"], "python")


def main() -> int:
    """Run the command."""
    tests = sys.argv[1:] or TESTS
    requirement = asked()
    highest = resolved(str(requirement))
    releases = [resolved(lowest(requirement)), highest]
    if f"flwr=={highest['flwr']}" not in (ROOT / "constraints.txt").read_text().splitlines():
        print(f"constraints.txt does not pin flwr=={highest['flwr']}, the highest that resolves")
        return 1
    status = 0
    for packages in releases:
        if packages["flwr"] == installed("flwr"):
            print(f"flwr {packages['flwr']} is the one that every test runs with")
            continue
        print(f"flwr {packages['flwr']}:", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            python = environment(Path(scratch, "venv"), packages)
            code = "from importlib.metadata import version; print(version('flwr'))"
            found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
            if found.stdout.strip() != packages["flwr"]:
                raise SystemExit(f"the environment has flwr {found.stdout.strip()}")
            status |= subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT).returncode
    return status


if __name__ == "__main__":
    raise SystemExit(main())
