"""The cost of confidentiality for the Fashion-MNIST network: what ``fedlearn bench`` measures.

The whole set at two sites is the job that the limit is for. A job of a tenth of it has rounds of a
third of a second, in which the fixed cost of a round and its parts show.

Where the data set is not installed, nothing is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from _report import Row, at_most, measured, options, show

from fedlearn.cli.bench.costs import EVERYTHING, PLAIN, TARGET
from fedlearn.data.sources.fashion import FOLDER
from fedlearn.local.federation import program

WHOLE: Final = 30_000
"""Images of each of two sites: all that Fashion-MNIST has to train on."""


def measure(size: list[str]) -> dict[str, Any]:
    """Run the command; return what it prints, with its stages by name."""
    command = [str(program("fedlearn")), "bench", "confidentiality", *size, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "stages": {stage["name"]: stage for stage in found["stages"]}}


def rounds(found: dict[str, Any], images: str, *, target: bool) -> list[Row]:
    """Return a row for each stage but the plain one, with which it is compared."""
    plain = found["stages"][PLAIN]
    return [
        measured(
            f"a round with {name}{images}",
            unit="s",
            ours=stage["rounds_s"],
            peers={"the plain job": plain["rounds_s"]},
            target=[at_most(TARGET, "the plain job")] if target and name == EVERYTHING else [],
            how=f"{found['job']}; wall time, rounds without the first, stages in turns",
        )
        for name, stage in found["stages"].items()
        if name != PLAIN
    ]


def main() -> None:
    """Run the command and print its rows."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=3000, help="of each site, for the parts")
    arguments = parser.parse_args()
    if arguments.quick:
        size = ["--app", "medpar", "--rounds", "2", "--repeat", "1", "--tee", "sample"]
        parts = measure(size)
        rows = rounds(parts, "", target=True)
    elif not FOLDER.is_dir():
        print(f"{FOLDER} is not there, so nothing was measured", file=sys.stderr)
        show([], as_json=arguments.json)
        return
    else:
        size = ["--rounds", str(arguments.rounds)]
        whole = measure([*size, "--images", str(WHOLE), "--stage", EVERYTHING])
        parts = measure([*size, "--images", str(arguments.images)])
        rows = rounds(whole, ", the whole set", target=True)
        rows += rounds(parts, f", {arguments.images:,} images a site", target=False)
    stages = parts["stages"]
    known = stages[PLAIN]["parts_s"]
    rows += [
        measured(
            f"{part}, in a round",
            unit="ms",
            ours=1000 * seconds,
            how="measured around its calls in the plain job with one protection",
        )
        for name, stage in stages.items()
        if name != PLAIN
        for part, seconds in stage["parts_s"].items()
        if part not in known or name == "mutual TLS"
    ]
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
