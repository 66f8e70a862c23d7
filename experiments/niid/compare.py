"""Our results beside Flower's, as a table in Markdown.

usage: compare.py [EXPERIMENT.toml [RESULTS]]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.statistics import Arm, Summary, arms, summarize

HERE = Path(__file__).resolve().parent
ALGORITHMS = ("FedAvg", "SCAFFOLD", "FedProx", "FedNova")


def best(found: dict[str, Arm], split: str, algorithm: str) -> tuple[str, Arm | None]:
    """Return the arm of an algorithm; of FedProx, the one with the best mean."""
    names = [
        n for n in found if n.startswith(f"{split}/") and n.split("/")[1].startswith(algorithm)
    ]
    ranked = sorted(names, key=lambda name: of(found[name]).mean)
    return (ranked[-1].split("/")[1], found[ranked[-1]]) if ranked else (algorithm, None)


def of(arm: Arm) -> Summary:
    """Return the best round's accuracy over the seeds."""
    return summarize(list(arm.values("accuracy", "best", maximize=True).values()))


def main(words: list[str]) -> None:
    """Print the table, and what it must be read with."""
    file = Path(words[0]) if words else HERE / "experiment.toml"
    results = Path(words[1]) if len(words) > 1 else None
    experiment = Experiment.load(file, results=results)
    cells, missing, _ = experiment.results()
    found = {arm.name: arm for arm in arms(cells)}
    published = tomllib.loads((HERE / "published.toml").read_text())
    print("| split | algorithm | Flower (%) | here (%) | seeds | rounds | difference |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for split, row in published.items():
        for algorithm in ALGORITHMS:
            mean, deviation = row[algorithm]
            name, arm = best(found, split, algorithm)
            shown = [split, name, f"{mean:.2f} ± {deviation:.2f}"]
            if arm is None:
                shown += ["not run", "", "", ""]
            else:
                ours = of(arm)
                rounds = sorted({cell.last_round for cell in arm.cells})
                shown += [
                    ours.text(percent=True),
                    str(ours.count),
                    " to ".join(map(str, dict.fromkeys((rounds[0], rounds[-1])))),
                    f"{100 * ours.mean - mean:+.2f}",
                ]
            print(f"| {' | '.join(shown)} |")
    print()
    print(f"Best over the rounds. {len(cells)} cells have a result, {len(missing)} have none.")
    if any(cell.last_round < 50 for cell in cells):
        print("Fewer than 50 rounds: a profile, not comparable with what was published.")


if __name__ == "__main__":
    main(sys.argv[1:])
