"""Poisoning in a simulated federation: what each attack does, and what each rule prevents."""

from __future__ import annotations

import pytest

from fedlearn.audit.poisoning import (
    audit_poisoning,
    choose_attackers,
    parse_rule,
    parse_strengths,
)
from fedlearn.errors import ConfigError
from tests.fedlearn.audit.conftest import MakeTarget

FAST = "learning-rate = 0.5\nlocal-epochs = 5"


def test_an_attack_works_on_the_mean_and_a_robust_rule_holds(make_target: MakeTarget) -> None:
    target = make_target(rows=100, tests=40, rounds=2, config=FAST)
    result = audit_poisoning(
        target,
        rules=[parse_rule("fedavg"), parse_rule("multikrum")],
        attacks=["sign-flip", "label-flip"],
    )
    assert len(result.attackers) == 1
    assert result.cell("none", "fedavg").final > 0.6
    assert result.damage("sign-flip", "fedavg") > 0.25
    assert result.damage("sign-flip", "multikrum") < 0.05
    assert result.cell("label-flip", "fedavg").final < result.cell("none", "fedavg").final
    assert len(result.cell("none", "fedavg").accuracy) == 2
    document = result.to_json()
    assert "simulated" in document["note"]
    assert "fedavg: sign-flip costs" in document["verdict"]


@pytest.mark.long
def test_three_of_ten_sites_break_the_mean_and_no_robust_rule(make_target: MakeTarget) -> None:
    target = make_target(sites=10, rows=100, tests=40, rounds=6, config=FAST)
    result = audit_poisoning(
        target,
        rules=[parse_rule(rule) for rule in ("fedavg", "geomedian", "fltrust")],
        attacks=["sign-flip"],
        share=0.3,
    )
    assert result.damage("sign-flip", "fedavg") > 0.5
    assert result.damage("sign-flip", "geomedian") < 0.2
    assert result.damage("sign-flip", "fltrust") < 0.1


def test_a_seed_gives_the_same_result_and_a_rule_that_cannot_run_states_why(
    make_target: MakeTarget,
) -> None:
    target = make_target(sites=4, rounds=1)
    first, second = (
        audit_poisoning(
            target,
            rules=[parse_rule("fedmedian"), parse_rule("bulyan")],
            attacks=["gaussian", "alie"],
            share=0.25,
            seed=3,
        ).to_json()
        for _ in range(2)
    )
    assert first == second
    refused = [cell for cell in first["cells"] if cell["rule"] == "bulyan"]
    assert all("needs 7 updates" in cell["refused"] for cell in refused)
    assert all(cell["final"] is None for cell in refused)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.95, 1.0, 1.5, -1.0])
def test_as_many_attackers_as_sites_or_none_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="--attackers"):
        choose_attackers([f"site-{n}" for n in range(5)], share, 0)


@pytest.mark.parametrize("text", ["average", "krum:beta=1", "krum:num_malicious_nodes"])
def test_an_unknown_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rules"):
        parse_rule(text)


@pytest.mark.parametrize("text", ["alie", "alie=-1", "alie=x", "magic=1"])
def test_a_wrong_strength_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--strength"):
        parse_strengths([text])


def test_a_rule_knows_the_attackers() -> None:
    sites = [f"site-{n}" for n in range(10)]
    assert parse_rule("krum").for_attackers(sites, sites[:2]).options == {"num_malicious_nodes": 2}
    assert parse_rule("fedtrimmedavg").for_attackers(sites, sites[:2]).options == {"beta": 0.2}
    assert parse_rule("fltrust").for_attackers(sites, sites[:2]).options == {"root_site": "site-2"}
    given = parse_rule("krum:num_malicious_nodes=1")
    assert given.for_attackers(sites, sites[:2]).options == {"num_malicious_nodes": 1}


def test_what_cannot_be_compared_is_refused(make_target: MakeTarget) -> None:
    target = make_target(
        more='[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\nnoise_multiplier = 1.0\n'
        "epsilon = 50.0\ndelta = 1e-5"
    )
    with pytest.raises(ConfigError, match="under \\[privacy\\] the sites report no metric"):
        audit_poisoning(target, rules=[parse_rule("fedavg")])
    with pytest.raises(ConfigError, match="'magic' is no attack"):
        audit_poisoning(target, rules=[parse_rule("fedavg")], attacks=["magic"])
