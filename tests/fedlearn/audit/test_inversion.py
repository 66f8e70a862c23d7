"""Gradient inversion of an update in a simulated federation."""

from __future__ import annotations

import pytest

from fedlearn.audit.inversion import audit_inversion
from fedlearn.errors import ConfigError
from tests.fedlearn.audit.conftest import AUDIT, MakeTarget

PRIVATE = """\
[privacy]
mechanism = "central-gaussian"
clip = 0.5
noise_multiplier = 1.0
epsilon = 50.0
delta = 1e-5
insecure_deterministic_noise = true
"""


def test_the_update_of_one_example_shows_it_and_noise_hides_it(make_target: MakeTarget) -> None:
    result = audit_inversion(make_target(), iterations=300, clip=1.0, noise=0.1)
    sent, noised = result.rows
    assert result.cosine > 0.9999
    assert result.note == ""
    assert sent.recovered == [True]
    assert sent.labels == result.labels
    assert sent.psnr[0] > 35 > result.mean_psnr[0]
    assert noised.recovered == [False]
    assert "as sent: 1 of 1 examples recovered" in result.verdict
    assert "the attack failed, nothing is closer than the mean image" in result.verdict


def test_a_batch_of_a_later_round_is_attacked_too(make_target: MakeTarget) -> None:
    result = audit_inversion(make_target(), batch=2, round_=2, site="site-3", method="dlg")
    assert sum(result.rows[0].recovered) == 2
    assert result.to_json()["forms"][0]["recovered"] == [True, True]


def test_more_than_one_step_is_noted(make_target: MakeTarget) -> None:
    target = make_target(config="local-epochs = 4\nlearning-rate = 1.0\nbatch-size = 1")
    result = audit_inversion(target, batch=4, iterations=20)
    assert result.cosine < 0.999
    assert "more than one step" in result.note


def test_the_release_of_a_private_job_hides_the_example(make_target: MakeTarget) -> None:
    result = audit_inversion(make_target(more=PRIVATE), observer="release", iterations=300)
    assert result.rows[0].recovered == [False]
    assert result.private == "central-gaussian"


def test_central_noise_does_not_hide_an_update_from_who_sees_it_alone(
    make_target: MakeTarget,
) -> None:
    result = audit_inversion(make_target(more=PRIVATE), method="analytic")
    assert result.rows[0].recovered == [True]


def test_example_level_noise_hides_an_example_from_who_sees_the_update(
    make_target: MakeTarget,
) -> None:
    private = (
        '[privacy]\nmechanism = "dp-sgd"\nunit = "example"\n'
        "clip = 1.0\nnoise_multiplier = 1.0\nbatch_rate = 1.0\nsteps = 1\nepsilon = 50.0\n"
        "delta = 1e-5\ninsecure_deterministic_noise = true"
    )
    result = audit_inversion(make_target(more=private), method="analytic")
    assert result.rows[0].recovered == [False]
    assert "the attack failed" in result.verdict


@pytest.mark.parametrize(
    ("options", "audit", "text"),
    [
        ({"site": "nowhere"}, AUDIT, "--site"),
        ({"method": "magic"}, AUDIT, "--attack"),
        ({"observer": "magic"}, AUDIT, "--observer"),
        ({"batch": 0}, AUDIT, "must be at least 1"),
        ({"noise": 1.0}, AUDIT, "needs --clip"),
        ({"batch": 41}, AUDIT, "has 40 examples to train on"),
        ({}, AUDIT.replace("rate_key", "#"), "the step size of the app"),
        ({}, AUDIT.replace("model", "#"), "the function of the app that returns its torch model"),
    ],
)
def test_what_the_attack_needs_is_named(
    make_target: MakeTarget, options: dict[str, object], audit: str, text: str
) -> None:
    target = make_target(sites=2, rounds=1, audit=audit)
    with pytest.raises(ConfigError, match=text):
        audit_inversion(target, **options)  # type: ignore[arg-type]
