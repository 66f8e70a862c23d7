"""Measures the quality of the demo's federated model over many splits of the data.

For each seed the data set is split again. The demo's own code trains a model at each site alone, at
each hospital alone, by federated averaging, and on all data in one place. Each model is evaluated
on the test rows of all sites.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from fedlearn.demo import baselines, data


def main() -> None:
    """Print one line a seed, then mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=sorted(data.DATA_SETS), default="medpar")
    parser.add_argument("--sites", type=int, default=data.DEFAULT_SITES)
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 up to this number")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = ("federated", "site alone", "hospital alone", "pooled")
    rows = []
    for seed in range(arguments.seeds):
        dealt = data.prepare(arguments.data, sites=arguments.sites, seed=seed)
        settings = baselines.settings_of(dealt)
        model = baselines.federate(dealt, settings)[-1]
        found = baselines.compare(dealt, settings)
        rows.append(
            (
                baselines.judge(dealt, settings).score(model, dealt.pooled().test),
                float(np.mean([site.all for site in found.sites])),
                found.member if found.member is not None else float("nan"),
                found.pooled,
            )
        )
    table = np.array(rows)
    if arguments.json:
        document = {
            name: {"mean": float(table[:, i].mean()), "sd": float(table[:, i].std(ddof=1))}
            for i, name in enumerate(names)
        }
        print(json.dumps({"data": arguments.data, "seeds": arguments.seeds, **document}))
        return
    print("seed  " + "  ".join(f"{name:>14}" for name in names))
    for seed, row in enumerate(table):
        print(f"{seed:>4}  " + "  ".join(f"{value:14.3f}" for value in row))
    for name, values in (("mean", table.mean(0)), ("sd", table.std(0, ddof=1))):
        print(f"{name:>4}  " + "  ".join(f"{value:14.3f}" for value in values))
    nearest = int(np.abs(table - table.mean(0)).sum(1).argmin())
    gains = table[:, 0] - table[:, 1]
    print(f"federated is better than a site alone in {int((gains > 0).sum())} of {len(gains)}")
    print(f"nearest to the mean: seed {nearest}")


if __name__ == "__main__":
    main()
