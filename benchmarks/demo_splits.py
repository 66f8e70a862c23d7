"""Measures the quality of the demo's federated model over many splits of the data.

For each seed the data set is split again. The demo's own code trains a model at each site alone, at
each hospital alone, by federated averaging, and on all data in one place. Each model is evaluated
on the test rows of all sites.
"""

from __future__ import annotations

import statistics

from _report import at_least, measured, options, show

from fedlearn.demo import baselines, data


def main() -> None:
    """Train and evaluate for each seed."""
    parser = options(__doc__)
    parser.add_argument("--data", choices=sorted(data.DATA_SETS), default="medpar")
    parser.add_argument("--sites", type=int, default=data.DEFAULT_SITES)
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 up to this number")
    arguments = parser.parse_args()
    series: dict[str, list[float]] = {
        name: [] for name in ("federated", "a site alone", "a hospital alone", "all data together")
    }
    metric = ""
    for seed in range(1 if arguments.quick else arguments.seeds):
        dealt = data.prepare(arguments.data, sites=arguments.sites, seed=seed)
        settings = baselines.settings_of(dealt)
        model = baselines.federate(dealt, settings)[-1]
        found = baselines.compare(dealt, settings)
        metric = dealt.metric
        series["federated"].append(
            baselines.judge(dealt, settings).score(model, dealt.pooled().test)
        )
        series["a site alone"].append(statistics.mean(site.all for site in found.sites))
        if found.member is not None:
            series["a hospital alone"].append(found.member)
        series["all data together"].append(found.pooled)
    ours = series.pop("federated")
    row = measured(
        f"{metric} of the demo's model on {arguments.data}, {arguments.sites} sites",
        unit=metric,
        ours=ours,
        peers={name: values for name, values in series.items() if values},
        target=[at_least(1.0, "a site alone")],
        how=f"medians over {len(ours)} splits of the data, on the test rows of all sites; not a "
        "measure of speed",
    )
    show([row], as_json=arguments.json)


if __name__ == "__main__":
    main()
