"""Runs all benchmarks, one after the other, and writes their numbers and the page.

    python benchmarks/run.py                    # all; results.json and docs/performance.md
    python benchmarks/run.py round_overhead     # these alone; the others keep their numbers
    python benchmarks/run.py --quick            # small sizes and few seconds; writes nothing
    python benchmarks/run.py --page             # only writes the page again

A script that fails or takes longer than its bound does not stop the others: its earlier rows stay
on the page with their date and commit, and the status is 1. ``long_run.py`` takes an hour; it,
``renewals.py`` and ``simulators.py`` run only when they are named.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import _page
from _report import Row

FOLDER: Final = Path(__file__).parent
TITLES: Final[Mapping[str, str]] = {
    "round_overhead.py": "Rounds, bytes and memory, against stock Flower",
    "transport.py": "Model bytes over mutual TLS",
    "mean.py": "The exact mean",
    "robust.py": "Robust strategies",
    "memory.py": "Memory of the server in a round",
    "scale.py": "Many clients",
    "admissions.py": "Admissions",
    "connections.py": "Connected clients",
    "confidentiality.py": "The cost of confidentiality",
    "durability.py": "Sealing and ledger in a round",
    "sealing.py": "Sealing a model",
    "ledger.py": "The ledger",
    "exchange.py": "A job's exchange, as the number of clients grows",
    "agents.py": "Sites' streams and agents",
    "compression.py": "Compressed updates",
    "verification.py": "Verification of evidence",
    "tpm.py": "TPM",
    "gpu.py": "Models on a GPU",
    "podspec.py": "Manifests of clients",
    "demo_splits.py": "Quality of the demo's model over many splits",
    "simulators.py": "Simulators",
    "long_run.py": "One coordinator for long",
    "renewals.py": "Clients that attest again",
}
"""The order of the page. A script that is not here follows, under its name."""

BY_NAME_ONLY: Final = frozenset({"long_run.py", "renewals.py", "simulators.py"})
_BOUNDS: Final = {
    "confidentiality.py": 180.0,
    "round_overhead.py": 420.0,
    "scale.py": 240.0,
    "long_run.py": 3 * 3600.0,
    "renewals.py": 2 * 3600.0,
    "simulators.py": 3 * 3600.0,
}
_BOUND: Final = 120.0
_LEAST: Final = 0.1


class Failed(Exception):
    """A script did not give its rows, and why."""


def scripts() -> list[str]:
    """Return the names of all scripts, in the order of the page."""
    found = {path.name for path in FOLDER.glob("[a-z]*.py")} - {"run.py"}
    order = [name for name in TITLES if name in found]
    return [*order, *sorted(found - set(order))]


def rows_of(name: str, *, quick: bool, seconds: float = math.inf) -> list[dict[str, Any]]:
    """Run one script and return its rows; none where this machine cannot measure them.

    :param seconds: that are left for all scripts.
    :raises Failed: when it fails, does not end, or writes no document.
    """
    bound = min(seconds, _BOUNDS.get(name, _BOUND))
    if bound < _LEAST:
        raise Failed("was not started: no time is left; name it alone, or raise --minutes")
    command = [sys.executable, str(FOLDER / name), "--json", *(["--quick"] if quick else [])]
    command += ["--write"] if name in _page.PLOTS and not quick else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=FOLDER.parent
    )
    try:
        written, _ = process.communicate(timeout=bound)
    except BaseException as error:
        # SIGINT, so that a script ends its own processes; each of them ends with it anyway.
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failed(f"did not end within {bound:.0f} s") from None
        raise
    lines = written.strip().splitlines()
    try:
        rows: list[dict[str, Any]] = json.loads(lines[-1])["rows"]
        for row in rows:
            Row.from_json(row)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"status {process.returncode}, no rows: {error!r}") from None
    if process.returncode:
        raise Failed(f"status {process.returncode}, {len(rows)} rows")
    return rows


def commit() -> str:
    """Return the commit of the tree, with ``+`` when files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=FOLDER
        )
        return done.stdout.strip()

    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def main() -> int:
    """Run the benchmarks; return 1 when one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these scripts alone")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument(
        "--minutes", type=float, default=14.0, help="for all scripts that are not named (14)"
    )
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    arguments = parser.parse_args()
    document = _page.read()
    if arguments.page:
        _page.write(document)
        return 0
    known = scripts()
    names = [name if name.endswith(".py") else f"{name}.py" for name in arguments.names]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark is named {unknown[0]}; there are {', '.join(known)}")
    now = _page.machine()
    if document["machine"] != now:  # numbers of another machine or of other versions
        document = {"machine": now, "scripts": {}}
    names = names or [name for name in known if name not in BY_NAME_ONLY]
    end = math.inf if arguments.names else time.monotonic() + 60 * arguments.minutes
    tree, failed, begun = commit(), {}, time.monotonic()
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            rows = rows_of(name, quick=arguments.quick, seconds=end - time.monotonic())
        except Failed as error:
            failed[name] = str(error)
            print(f"    FAILED: {error}", file=sys.stderr, flush=True)
            continue
        seconds = time.monotonic() - started
        if not rows:
            print("    nothing was measured", file=sys.stderr, flush=True)
            continue
        missed = sum(Row.from_json(row).met() is False for row in rows)
        short = f", {missed} below their target" if missed and not arguments.quick else ""
        print(f"    {len(rows)} rows in {seconds:.0f} s{short}", file=sys.stderr, flush=True)
        document["scripts"][name] = {
            "title": TITLES.get(name, name.removesuffix(".py").replace("_", " ").capitalize()),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "commit": tree,
            "seconds": round(seconds, 1),
            "rows": rows,
        }
        document["scripts"] = {
            one: document["scripts"][one] for one in known if one in document["scripts"]
        }
        if not arguments.quick:
            _page.write(document)
    print(f"{time.monotonic() - begun:.0f} s in all", file=sys.stderr)
    for name, why in failed.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
