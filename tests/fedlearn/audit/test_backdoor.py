"""Backdoors in a simulated federation."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.audit.attacks.trigger import replacement_scale, stamp
from fedlearn.audit.backdoor import audit_backdoor
from fedlearn.audit.poisoning import parse_rule
from fedlearn.errors import ConfigError
from tests.fedlearn.audit.conftest import MakeTarget

FAST = "learning-rate = 0.5\nlocal-epochs = 5"


def test_a_backdoor_is_planted_in_the_mean_and_not_through_norm_clipping(
    make_target: MakeTarget,
) -> None:
    target = make_target(rows=100, tests=40, rounds=3, config=FAST)
    rules = [parse_rule("fedavg"), parse_rule("normclip")]
    result = audit_backdoor(target, rules=rules, share=0.2, start=2)
    mean, clipped = (result.run(rule, attacked=True) for rule in ("fedavg", "normclip"))
    assert result.scale == 5.0
    assert len(mean.success) == len(mean.accuracy) == 3
    assert mean.success[0] < 0.3  # before the attack
    assert result.planted("fedavg")
    assert not result.planted("normclip")
    assert clipped.accuracy[-1] > 0.6
    assert "fedavg: the backdoor is planted" in result.verdict
    assert "normclip: the attack failed" in result.verdict


def test_the_trigger_is_a_square_in_the_corner() -> None:
    found = stamp(np.zeros((2, 16)), image=(4, 4), value=9.0, size=2).reshape(2, 4, 4)
    assert found.sum() == 2 * 4 * 9
    assert (found[:, 2:, 2:] == 9).all()
    line = stamp(np.zeros((1, 5)), image=(5,), value=1.0, size=2)
    assert line.tolist() == [[0, 0, 0, 1, 1]]
    with pytest.raises(ConfigError, match="does not fit an image of 4x4"):
        stamp(np.zeros((1, 16)), image=(4, 4), value=1.0, size=5)


def test_the_scale_replaces_the_model() -> None:
    assert replacement_scale([10.0, 20.0, 30.0], [20.0]) == 3.0
    assert replacement_scale([1.0] * 4, [1.0, 1.0], rate=0.5) == 4.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label": 10}, "--label"),
        ({"start": 3}, "--start"),
        ({"poisoned": 0.0}, "--poisoned"),
        ({"share": 0.9}, "--attackers"),
        ({"trigger": 9}, "does not fit"),
        ({"rules": []}, "--rules"),
    ],
)
def test_what_cannot_be_planted_is_refused(
    make_target: MakeTarget, options: dict[str, object], text: str
) -> None:
    target = make_target(sites=4, rounds=2)
    with pytest.raises(ConfigError, match=text):
        audit_backdoor(target, **{"rules": [parse_rule("fedavg")], "share": 0.25, **options})  # type: ignore[arg-type]


def test_a_backdoor_is_measured_on_examples_that_nobody_trains_on(make_target: MakeTarget) -> None:
    target = make_target(sites=4, rounds=1)
    for site in target.job.sites:
        (target.data / site / "test.npz").unlink()
    with pytest.raises(ConfigError, match="no examples that the app does not train on"):
        audit_backdoor(target, rules=[parse_rule("fedavg")], share=0.25)
