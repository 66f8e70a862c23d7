"""``experiment.toml`` is read strictly, and becomes the cells that it describes."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.experiment.cells import grid_cells, matching
from fedlearn.experiment.spec import ExperimentSpec

HEAD = 'name = "e"\njob = "job.toml"\nsetup = "simulation.toml"\nmetric = "accuracy"\n'
TWO = '[[grid]]\nname = "rate"\nzip = { "config.rate" = [0.1, 0.2] }\n'


def test_axes_are_crossed_zipped_keys_go_together_and_points_may_differ() -> None:
    spec = ExperimentSpec.from_toml(
        HEAD
        + "seeds = [7, 8]\n"
        + """
[[grid]]
name = "method"
[[grid.points]]
label = "FedAvg"
set = { "strategy.name" = "fedavg" }
[[grid.points]]
label = "FedProx"
set = { "strategy.name" = "fedprox", "strategy.options.proximal-mu" = 0.1 }
[[grid]]
name = "split"
zip = { "simulation.data.partition" = ["iid", "dirichlet"], "simulation.data.seed" = [1, 2] }
"""
    )
    cells = grid_cells(spec)
    assert [cell.name for cell in cells] == [
        f"{method}/{split}/seed-{seed}"
        for method in ("FedAvg", "FedProx")
        for split in ("iid 1", "dirichlet 2")
        for seed in (7, 8)
    ]
    last = cells[-1]
    assert last.job_keys == {"strategy.name": "fedprox", "strategy.options.proximal-mu": 0.1}
    assert last.setup_keys == {"data.partition": "dirichlet", "data.seed": 2}
    assert dict(last.labels) == {"method": "FedProx", "split": "dirichlet 2"}
    assert len(matching(cells, "FedProx/*/seed-8")) == 2
    assert matching(cells, "FedProx") == []


def test_every_cell_has_the_values_of_set() -> None:
    spec = ExperimentSpec.from_toml(HEAD + "[set]\nrounds = 10\n" + TWO)
    assert [dict(cell.values) for cell in grid_cells(spec)] == [
        {"rounds": 10, "config.rate": 0.1},
        {"rounds": 10, "config.rate": 0.2},
    ]


def test_without_a_grid_there_is_one_cell_a_seed() -> None:
    assert [c.name for c in grid_cells(ExperimentSpec.from_toml(HEAD))] == ["base/seed-0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[grid]]\nname = "x"\n', "needs either `zip` or `points`"),
        (
            '[[grid]]\nzip = { "config.a" = [1, 2], "config.b" = [1] }\n',
            "lists of equal length; config.a has 2, config.b has 1",
        ),
        (TWO + TWO.replace("0.1", "0.3"), "'rate' is another axis, too"),
        (
            TWO + '[[grid]]\nname = "y"\nzip = { "config.rate" = [1] }\n',
            "sets config.rate, as the axis 'rate' does",
        ),
        ('[set]\n"config.rate" = 1\n' + TWO, "sets config.rate, as `set` does"),
        ("[set]\nseed = 1\n", "set.seed: cannot be varied"),
        ('[[grid]]\nzip = { "seed" = [1, 2] }\n', "cannot be varied; seeds are in `seeds`"),
        ('[[grid]]\nzip = { "policy" = ["a"] }\n', "is not varied"),
        ('[[grid]]\nzip = { "config.a" = [1, 1] }\n', "two points that are called '1'"),
        ('[[grid]]\nzip = { "a b" = [1] }\n', "is not a dotted key in quotes"),
        ('[[grid]]\nzip = { "hook.share" = [0.1] }\n', "hooks: is needed"),
        ('hooks = "attack"\n', 'must be "FILE.py:NAME"'),
        (TWO + '[report]\ncompare = "rat"\n', "'rat' is not an axis; there are 'rate'"),
        (TWO + '[report]\nbaseline = "0.3"\n', "'0.3' is not a point; there are '0.1', '0.2'"),
        (
            TWO + '[search]\ntrials = 3\n[search.variables."config.x"]\nlow = 0\nhigh = 1\n',
            "excludes a grid",
        ),
        ('[search]\ntrials = 3\n[search.variables."config.x"]\nlow = 1\nhigh = 1\n', "above low"),
        (
            '[search]\ntrials = 3\n[search.variables."config.x"]\nlow = 0\nhigh = 1\nlog = true\n',
            "must be above 0 on a logarithmic scale",
        ),
        (
            '[search]\ntrials = 3\nsampler = "cmaes"\n'
            '[search.variables."config.x"]\nchoices = ["a"]\n',
            '"cmaes" draws numbers only',
        ),
        ("metrics = 3\n", "metrics"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentSpec.from_toml(HEAD + text)
    assert message in str(caught.value)
    assert "experiment.toml" in str(caught.value)


def test_data_is_needed() -> None:
    with pytest.raises(ConfigError, match="the cells need data"):
        ExperimentSpec.from_toml('name = "e"\njob = "job.toml"\nmetric = "accuracy"\n')


def test_a_grid_has_a_bound() -> None:
    axes = [
        f'[[grid]]\nzip = {{ "config.{name}" = [{", ".join(map(str, range(100)))}] }}\n'
        for name in "abc"
    ]
    with pytest.raises(ConfigError, match="makes 1000000 cells; at most 100000"):
        ExperimentSpec.from_toml(HEAD + "".join(axes))
