"""The cost of confidentiality for the Fashion-MNIST network: what ``fedlearn bench`` measures.

Where the data set is not installed, nothing is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys

from _report import at_most, measured, options, show

from fedlearn.cli.bench.costs import EVERYTHING, PLAIN, TARGET
from fedlearn.demo.fashion import FOLDER
from fedlearn.local.federation import program


def main() -> None:
    """Run the command and print its rows."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000)
    arguments = parser.parse_args()
    size = ["--app", "medpar", "--rounds", "2", "--repeat", "1", "--tee", "sample"]
    if not arguments.quick:
        size = ["--rounds", str(arguments.rounds), "--images", str(arguments.images)]
        if not FOLDER.is_dir():
            print(f"{FOLDER} is not there, so nothing was measured", file=sys.stderr)
            show([], as_json=arguments.json)
            return
    command = [str(program("fedlearn")), "bench", "confidentiality", *size, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    stages = {stage["name"]: stage for stage in found["stages"]}
    plain = stages.pop(PLAIN)
    rows = [
        measured(
            f"a round with {name}",
            unit="s",
            ours=stage["rounds_s"],
            peers={"the plain job": plain["rounds_s"]},
            target=[at_most(TARGET, "the plain job")] if name == EVERYTHING else [],
            how=f"{found['job']}; wall time, rounds without the first, stages in turns",
        )
        for name, stage in stages.items()
    ]
    rows += [
        measured(
            f"{part}, in a round",
            unit="ms",
            ours=1000 * seconds,
            how="measured around its calls in the plain job with one protection",
        )
        for name, stage in stages.items()
        for part, seconds in stage["parts_s"].items()
        if part not in plain["parts_s"] or name == "mutual TLS"
    ]
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
