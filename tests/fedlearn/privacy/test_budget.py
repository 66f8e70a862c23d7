"""A table that is strict, a number that is dp-accounting's, a budget that refuses."""

from __future__ import annotations

import threading
from typing import Any

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.privacy import Budget, PrivacySpec, noise_multiplier_for, rounds_within, spent
from fedlearn.privacy.accountant import composed_epsilon, costs_for, epsilon
from fedlearn.privacy.composition import Cost

TABLE: dict[str, object] = {
    "mechanism": "central-gaussian",
    "clip": 1,
    "noise_multiplier": 1.5,
    "epsilon": 8.0,
    "delta": 1e-5,
    "unit": "site",
    "accountant": "rdp",
    "sampling": "full",
}
POISSON: dict[str, object] = {
    "sampling": "poisson",
    "sampling_rate": 0.1,
    "expected_cohort": 10.0,
}
CYCLIC: dict[str, object] = {"sampling": "cyclic", "groups": 3}
SHARES: dict[str, object] = {"mechanism": "distributed-gaussian", "shares": 3}
ADAPTIVE: dict[str, object] = {"clip_quantile": 0.5, "clip_noise": 1.0}
EXAMPLE: dict[str, object] = {
    "mechanism": "dp-sgd",
    "unit": "example",
    "batch_rate": 0.01,
    "steps": 5,
}
USER: dict[str, object] = {"unit": "user", "users": 10, "user_column": "patient"}
FIXED: dict[str, object] = {
    "sampling": "fixed",
    "sample_size": 10,
    "population": 100,
    "adjacency": "replace-one",
}


def spec(**changes: Any) -> PrivacySpec:
    return PrivacySpec.from_mapping({**TABLE, **changes})


# --- the table ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        POISSON,
        FIXED,
        CYCLIC,
        {**CYCLIC, "noise": "banded"},
        SHARES,
        ADAPTIVE,
        EXAMPLE,
        USER,
        {"mechanism": "local-gaussian"},
    ],
)
def test_a_table_is_read_and_written_back(changes: dict[str, object]) -> None:
    found = spec(**changes)
    assert found.clip == 1.0
    assert PrivacySpec.from_mapping(found.to_mapping()) == found
    assert hash(found) == hash(spec(**changes))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("clp", 1, "did you mean 'clip'"),
        ("colour", 1, "known here"),
        ("clip", "1", "must be a positive number"),
        ("clip", True, "must be a positive number"),
        ("clip", 0, "positive"),
        ("clip", -1.0, "positive"),
        ("clip", float("nan"), "positive"),
        ("clip", float("inf"), "positive"),
        ("clip", 10**400, "must be a positive number"),
        ("noise_multiplier", 0, "less noise gives no privacy"),
        ("noise_multiplier", 1e9, "up to"),
        ("epsilon", 0, "positive"),
        ("delta", 0, "delta"),
        ("delta", 0.5, "delta"),
        ("unit", "record", '"site"'),
        ("mechanism", "local", "central-gaussian"),
        ("adjacency", "neighbour", "zero-out"),
        ("accountant", "moments", "pld"),
        ("accountant", 7, "pld"),
        ("sampling", "some", "poisson"),
        ("sampling", "poisson", "needs a probability"),
        ("sampling", "fixed", "population"),
        ("sampling_rate", 0.1, "only for"),
        ("sample_size", 3, "only for"),
        ("population", 3.5, "whole number"),
        ("expected_cohort", -1, "positive"),
        ("adjacency", "add-or-remove", "public number"),
        ("insecure_deterministic_noise", 1, "true or false"),
    ],
)
def test_a_broken_table_names_file_key_and_remedy(key: str, value: object, word: str) -> None:
    with pytest.raises(ConfigError, match=r"^job\.toml:7: privacy\.") as caught:
        PrivacySpec.from_mapping({**TABLE, key: value}, "job.toml:7")
    assert word in str(caught.value)
    assert caught.value.key.startswith("privacy.")


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (POISSON, {"sampling_rate": 0}),
        (POISSON, {"sampling_rate": 1.5}),
        (FIXED, {"sample_size": 101}),
        (FIXED, {"sample_size": 0}),
        (FIXED, {"expected_cohort": 11}),
        (CYCLIC, {"groups": 1}),
        (CYCLIC, {"sampling": "full"}),
        ({"sampling": "cyclic"}, {}),
        (SHARES, {"shares": 0}),
        (SHARES, {"mechanism": "central-gaussian"}),
        (SHARES, {"adjacency": "add-or-remove", "expected_cohort": 3.0}),
        ({"mechanism": "distributed-gaussian"}, {}),
        ({"mechanism": "local-gaussian"}, {"adjacency": "add-or-remove", "expected_cohort": 3.0}),
        (ADAPTIVE, {"clip_quantile": 0}),
        (ADAPTIVE, {"clip_quantile": float("nan")}),
        (ADAPTIVE, {"clip_noise": 0.75}),
        (ADAPTIVE, {"clip_rate": 0}),
        (ADAPTIVE, {"mechanism": "local-gaussian"}),
        ({"clip_quantile": 0.5}, {}),
        ({"clip_noise": 1.0}, {}),
        ({"clip_rate": 0.1}, {}),
        ({"noise": "banded"}, {}),
        (CYCLIC, {"noise": "pink"}),
        (CYCLIC, {"noise": "banded", **ADAPTIVE}),
        (CYCLIC, {"noise": "banded", "mechanism": "local-gaussian"}),
        (EXAMPLE, {"mechanism": "central-gaussian"}),
        (EXAMPLE, {"unit": "site"}),
        (EXAMPLE, {"batch_rate": 0}),
        (EXAMPLE, {"batch_rate": float("nan")}),
        (EXAMPLE, {"steps": 0}),
        (EXAMPLE, {"noise_multiplier": 0}),
        (EXAMPLE, {"adjacency": "replace-one"}),
        (EXAMPLE, POISSON),
        (EXAMPLE, {"users": 3}),
        ({"mechanism": "dp-sgd", "unit": "example"}, {}),
        (USER, {"users": 0}),
        (USER, {"user_column": ""}),
        (USER, {"adjacency": "add-or-remove", "expected_cohort": 3.0}),
        (USER, {"steps": 3}),
        (USER, ADAPTIVE),
        ({"unit": "user", "users": 3}, {}),
        ({"unit": "user", "user_column": "patient"}, {}),
        ({"batch_rate": 0.1}, {}),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(
    base: dict[str, object], changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        spec(**{**base, **changes})


@pytest.mark.parametrize("key", ["mechanism", "clip", "noise_multiplier", "epsilon", "delta"])
def test_what_a_promise_needs_must_be_stated(key: str) -> None:
    table = {name: value for name, value in TABLE.items() if name != key}
    with pytest.raises(ConfigError, match=f"needs the key '{key}': ") as caught:
        PrivacySpec.from_mapping(table, "job.toml:7")
    assert caught.value.where == "job.toml:7"
    assert caught.value.key == "privacy"


def test_poisson_needs_a_public_denominator() -> None:
    with pytest.raises(ConfigError, match="expected_cohort"):
        spec(sampling="poisson", sampling_rate=0.1)


# --- the accountant ----------------------------------------------------------------------

RELATION = dp_accounting.NeighboringRelation


@pytest.mark.parametrize("rounds", [1, 3, 40])
@pytest.mark.parametrize("adjacency", ["zero-out", "add-or-remove", "replace-one"])
def test_epsilon_is_the_number_of_dp_accounting(adjacency: str, rounds: int) -> None:
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(1.5), rounds)
    found = epsilon(spec(adjacency=adjacency, expected_cohort=5), rounds)
    assert found == accountant.get_epsilon(1e-5)


def test_epsilon_of_pld_is_the_number_of_dp_accounting() -> None:
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(1.5), 3)
    found = epsilon(spec(accountant="pld"), 3)
    assert found == accountant.get_epsilon(1e-5)
    assert found < epsilon(spec(), 3)
    # dp-accounting takes the multiplier of replace-one relative to the clip, ours is relative
    # to the sensitivity of twice the clip.
    relative = pld.PLDAccountant(RELATION.REPLACE_ONE)
    relative.compose(dp_accounting.GaussianDpEvent(3.0), 3)
    replace_one = epsilon(spec(accountant="pld", adjacency="replace-one"), 3)
    assert replace_one == pytest.approx(relative.get_epsilon(1e-5), abs=1e-3)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("sampled", [POISSON, FIXED])
def test_sampling_is_credited_with_nothing_because_the_ledger_names_the_draw(
    sampled: dict[str, object], accountant: str
) -> None:
    found = spec(**sampled, accountant=accountant)
    assert epsilon(found, 5) == epsilon(spec(accountant=accountant), 5)
    assert found.sampling_text.endswith("draw in the ledger, no amplification")


def test_no_round_costs_nothing_and_absurd_costs_are_refused_quickly() -> None:
    assert epsilon(spec(), 0) == 0.0
    assert epsilon(spec(accountant="pld", noise_multiplier=0.05), 1000) > 1e5
    for rounds in (-1, 10**7):
        with pytest.raises(PrivacyError, match="rounds cannot be accounted"):
            epsilon(spec(), rounds)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_rounds_that_a_budget_pays_for(accountant: str) -> None:
    found = spec(accountant=accountant, noise_multiplier=3.0)
    rounds = rounds_within(found)
    assert epsilon(found, rounds) <= 8.0 < epsilon(found, rounds + 1)
    assert rounds_within(spec(epsilon=0.01)) == 0


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_noise_that_pays_for_given_rounds(accountant: str) -> None:
    found = spec(accountant=accountant)
    multiplier = noise_multiplier_for(found, 30)
    assert epsilon(spec(accountant=accountant, noise_multiplier=multiplier), 30) <= 8.0
    assert epsilon(spec(accountant=accountant, noise_multiplier=multiplier * 0.98), 30) > 8.0


@pytest.mark.parametrize("changes", [{}, POISSON, FIXED])
def test_no_epsilon_is_printed_alone(changes: dict[str, object]) -> None:
    text = str(spent(spec(**changes), 2))
    for part in (
        "epsilon",
        "delta 1e-05",
        "2 rounds",
        "unit: site",
        "sampling:",
        "accountant: rdp",
    ):
        assert part in text
    assert spec(**changes).sampling_text in text
    assert spec(**changes).adjacency in text
    body = spent(spec(**changes), 2).to_json()
    assert {"epsilon", "delta", "unit", "adjacency", "sampling", "accountant"} <= set(body)


def test_what_voids_the_guarantee_is_printed_with_it() -> None:
    assert "NO GUARANTEE" in str(spent(spec(insecure_deterministic_noise=True), 1))
    assert "not covered" in str(spent(spec(insecure_exact_metrics=True), 1))


# --- the budget --------------------------------------------------------------------------


def test_a_round_is_refused_before_it_exceeds_the_budget() -> None:
    budget = Budget(spec())
    last = rounds_within(spec())
    assert last >= 3
    for number in range(1, last + 1):
        cost = budget.charge(number)
        assert cost.rounds == number
        assert cost.epsilon <= 8.0
    with pytest.raises(PrivacyError, match=f"release {last + 1} would exceed") as caught:
        budget.charge(last + 1)
    assert "unit: site" in str(caught.value)
    assert budget.spent.rounds == last


def test_a_round_is_paid_for_once() -> None:
    budget = Budget(spec())
    first = budget.charge(1)
    assert budget.charge(1) == first
    assert budget.spent == first
    # Also where nothing is left.
    spent_up = Budget(spec(), range(1, rounds_within(spec()) + 1))
    assert spent_up.charge(1).rounds == rounds_within(spec())


def test_a_resumed_budget_remembers() -> None:
    last = rounds_within(spec())
    budget = Budget(spec(), [1, 2, 2])
    assert budget.spent.rounds == 2
    exhausted = Budget(spec(), range(1, last + 1))
    with pytest.raises(PrivacyError):
        exhausted.charge(last + 1)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1"])
def test_what_is_no_round_is_refused(number: Any) -> None:
    with pytest.raises(PrivacyError, match="not the number of a release"):
        Budget(spec()).charge(number)
    with pytest.raises(PrivacyError, match="not the number of a release"):
        Budget(spec(), [number])


def test_threads_cannot_overspend_together() -> None:
    budget = Budget(spec())
    refused = []

    def work(number: int) -> None:
        try:
            budget.charge(number)
        except PrivacyError:
            refused.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 20 - rounds_within(spec())
    assert budget.spent.epsilon <= 8.0


def test_a_job_that_cannot_be_paid_for_is_informed_what_would_do() -> None:
    assert Budget.require(spec(), 2).rounds == 2
    with pytest.raises(PrivacyError, match="50 rounds exceed") as caught:
        Budget.require(spec(), 50)
    enough = float(caught.value.hint.rpartition("= ")[2])
    Budget.require(spec(noise_multiplier=enough), 50)


# --- turns -------------------------------------------------------------------------------


def test_sites_that_take_turns_are_charged_for_theirs() -> None:
    turns, always = spec(**CYCLIC), spec()
    assert epsilon(turns, 9) == epsilon(always, 3)
    assert epsilon(turns, 10) == epsilon(always, 4)
    assert rounds_within(turns) == 3 * rounds_within(always)
    assert "one of 3 rounds" in str(spent(turns, 9))
    budget = Budget(turns)
    for number in range(1, 4):
        assert budget.charge(number, number).epsilon == epsilon(always, 1)


def test_a_turn_that_is_repeated_is_charged_twice() -> None:
    turns, always = spec(**CYCLIC), spec()
    # The job began again from round 1 after a crash: the first group took part twice.
    budget = Budget(turns, {1: 1, 2: 2})
    assert budget.spent.epsilon == epsilon(always, 1)
    assert budget.charge(3, 1).epsilon == epsilon(always, 2)
    with pytest.raises(PrivacyError, match="charged with its round"):
        budget.charge(4)


# --- units -------------------------------------------------------------------------------


def test_examples_are_counted_with_their_steps_and_their_draw() -> None:
    found = spec(**EXAMPLE)
    accountant = rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.5))
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 5 * 7))
    assert epsilon(found, 7) == pytest.approx(accountant.get_epsilon(1e-5))
    assert "by the app of the job" in str(spent(found, 7))
    assert "rate 0.01" in str(spent(found, 7))


def test_a_user_needs_less_noise_than_a_site_for_the_same_epsilon() -> None:
    found = spec(**USER)
    assert found.sensitivity == 1.0 / 10
    assert spec(**USER, adjacency="replace-one").sensitivity == 2.0 / 10
    assert epsilon(found, 7) == epsilon(spec(), 7)
    assert "each of 10 users: by the app" in str(spent(found, 7))


def test_a_larger_unit_bounds_a_smaller_one_by_half_of_its_noise() -> None:
    assert costs_for("example", spec(), 3) == {Cost(0.75): 3}
    assert costs_for("example", spec(adjacency="replace-one"), 3) == {Cost(1.5): 3}
    assert costs_for("user", spec(), 3) == {Cost(0.75): 3}
    assert costs_for("site", spec(), 3) == {Cost(1.5): 3}
    assert costs_for("example", spec(**EXAMPLE), 3) == {Cost(1.5, 0.01): 15}
    assert costs_for("user", spec(**EXAMPLE), 3, records=4) == {Cost(1.5 / 4): 15}


def test_a_smaller_unit_bounds_no_larger_one() -> None:
    assert costs_for("user", spec(**EXAMPLE), 3) is None
    assert costs_for("site", spec(**EXAMPLE), 3, records=4) is None
    assert costs_for("site", spec(**USER), 3) is None
    assert composed_epsilon([(spec(**USER), 3)], 1e-5) == float("inf")


def test_tables_of_the_first_release_keep_their_form() -> None:
    assert sorted(spec().to_mapping()) == [
        "accountant",
        "adjacency",
        "clip",
        "delta",
        "epsilon",
        "insecure_deterministic_noise",
        "insecure_exact_metrics",
        "mechanism",
        "noise_multiplier",
        "sampling",
        "unit",
    ]
