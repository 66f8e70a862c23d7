"""One budget for each data set, over all jobs: what fits, and what is charged when."""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.agent.data_budget import BudgetAccounts, Limit, limits, refusals
from edge.config.site import SiteConfig
from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.job.spec import JobSpec
from fedlearn.privacy.accountant import composed_epsilon, epsilon
from fedlearn.privacy.composition import Cost, composed
from tests.fakes.budget_file import JOB, SITE, Counter, job, place, spent, store


def test_a_job_is_charged_what_the_accountant_states(config: SiteConfig) -> None:
    spec = job(rounds=4)
    assert spec.privacy is not None
    kept = store(config)
    kept.reserve(spec, place=place(config), assignment="a-1")
    assert spent(config, kept.book()) == pytest.approx(epsilon(spec.privacy, 4))
    kept.charge("a-1", "q1")
    kept.settle("a-1")
    assert spent(config, kept.book()) == pytest.approx(epsilon(spec.privacy, 1))


def test_a_job_in_which_sites_take_turns_reserves_the_turns_of_one(config: SiteConfig) -> None:
    all_rounds = job(rounds=6)
    assert all_rounds.privacy is not None
    privacy = replace(all_rounds.privacy, sampling="cyclic", groups=2)
    turns = replace(all_rounds, rounds=11, sites=("a", "b"), quorum=1, privacy=privacy)
    kept = store(config)
    kept.reserve(turns, place=place(config), assignment="a-1")
    assert spent(config, kept.book()) == pytest.approx(epsilon(all_rounds.privacy, 6))


EXAMPLE = {"mechanism": "dp-sgd", "unit": "example", "batch_rate": 0.01, "steps": 2}
USER = {"unit": "user", "users": 4, "user_column": "patient"}


def _of_unit(spec: JobSpec, changes: dict[str, Any]) -> JobSpec:
    assert spec.privacy is not None
    return replace(spec, privacy=replace(spec.privacy, **changes))


def _budget_of(config: SiteConfig, unit: str, **more: Any) -> SiteConfig:
    data = {**config.data, "stays": replace(config.data["stays"], unit=unit, **more)}
    return replace(config, data=data, privacy=replace(config.privacy, unit="example"))


def test_a_budget_is_for_one_unit_and_a_job_of_a_smaller_one_does_not_fit(
    config: SiteConfig,
) -> None:
    examples = _of_unit(job(), EXAMPLE)
    (reason,) = refusals(config, examples, place(config), BudgetAccounts())
    assert "it protects each example as far as its app does" in reason
    for unit in ("site", "user"):
        (reason,) = refusals(_budget_of(config, unit), examples, place(config), BudgetAccounts())
        assert f"bounds nothing for the unit {unit}" in reason
    assert not list(
        refusals(_budget_of(config, "example"), examples, place(config), BudgetAccounts())
    )
    grouped = _budget_of(config, "user", records_per_user=2)
    short = _of_unit(job(rounds=1), EXAMPLE)
    assert not list(refusals(grouped, short, place(config), BudgetAccounts()))


def test_jobs_of_all_units_draw_on_one_budget_by_what_they_cost_its_unit(
    config: SiteConfig,
) -> None:
    mine = _budget_of(config, "example")
    kept = store(mine)
    jobs = [_of_unit(job("one", 1), EXAMPLE), _of_unit(job("two", 1), USER), job("three", 1)]
    for number, spec in enumerate(jobs):
        kept.reserve(spec, place=place(mine), assignment=f"a-{number}")
    # By hand: two sampled steps with the noise of the job, and for the larger units, whose
    # contribution may move twice as far as to nothing, half of it.
    costs = {Cost(4.0, 0.01): 2, Cost(2.0): 2}
    assert spent(mine, kept.book()) == pytest.approx(composed(costs, "rdp", 1e-6))
    # For users of two records each, the steps count without amplification.
    users = _budget_of(config, "user", records_per_user=2)
    costs = {Cost(2.0): 2 + 1, Cost(4.0): 1}
    assert spent(users, kept.book()) == pytest.approx(composed(costs, "rdp", 1e-6))
    assert spent(config, kept.book()) == math.inf


def test_jobs_are_composed_and_the_one_that_does_not_fit_is_refused(config: SiteConfig) -> None:
    first, second = job("one", 6), job("two", 6)
    assert first.privacy is not None
    alone = epsilon(first.privacy, 6)
    both = composed_epsilon([(first.privacy, 6), (first.privacy, 6)], 1e-6)
    assert alone < both < 2 * alone
    assert both == pytest.approx(epsilon(first.privacy, 12))
    kept = store(config)
    kept.reserve(first, place=place(config), assignment="a-1")
    kept.reserve(second, place=place(config), assignment="a-2")
    third = job("three", 6)
    (reason,) = refusals(config, third, place(config), kept.book())
    assert "6 rounds of the job bring the data set stays to epsilon" in reason
    assert "its budget over all jobs is 5, and the others have spent or reserved 4." in reason
    before = kept.book()
    with pytest.raises(PrivacyError, match="its budget over all jobs is 5"):
        kept.reserve(third, place=place(config), assignment="a-3")
    assert kept.book() == before
    # Other data has another budget.
    assert not list(refusals(config, third, place(config, "free"), kept.book()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((JOB[JOB.index("[privacy]") :], ""), "it promises no privacy"),
        (("delta = 1e-6", "delta = 1e-6\ninsecure_deterministic_noise = true"), "from its seed"),
        (("delta = 1e-6", "delta = 1e-6\ninsecure_exact_metrics = true"), "metrics leave the site"),
    ],
)
def test_a_job_that_no_epsilon_bounds_is_refused_where_there_is_a_limit(
    config: SiteConfig, change: tuple[str, str], why: str
) -> None:
    spec = job(change=change)
    (reason,) = refusals(config, spec, place(config), BudgetAccounts())
    assert "the data set stays has a privacy budget" in reason
    assert why in reason
    assert not list(refusals(config, spec, place(config, "free"), BudgetAccounts()))
    allowed = replace(config, privacy=replace(config.privacy, insecure_exact_metrics=True))
    assert bool(list(refusals(allowed, spec, place(config), BudgetAccounts()))) == (
        "metrics" not in why
    )


def test_neither_a_second_name_nor_a_part_of_the_data_has_a_budget_of_its_own(
    config: SiteConfig, tmp_path: Path
) -> None:
    kept = store(config)
    kept.reserve(job("one", 12), place=place(config), assignment="a-1")
    for other in (place(config) + "/2024", str(Path(place(config)).parent)):
        assert list(refusals(config, job("two", 6), other, kept.book()))
    # The data moves, and keeps its name; or is named anew where it lies.
    moved = SITE.replace('path = "data/stays"', 'path = "data/free/2024"')
    named = SITE.replace("[data.stays]", "[data.visits]")
    for text in (moved, named):
        (tmp_path / "site.toml").write_text(text)
        again = SiteConfig.load(tmp_path / "site.toml")
        limit = next(limits(again))
        assert store(again).book().epsilon(limit) > 4
        assert list(refusals(again, job("two", 6), limit.place, store(again).book()))


def test_a_job_that_samples_its_sites_is_charged_with_the_rounds_of_this_site(
    config: SiteConfig,
) -> None:
    sampled = job(
        "sampled",
        10,
        change=(
            "delta = 1e-6",
            'delta = 1e-6\nsampling = "poisson"\nsampling_rate = 0.5\nexpected_cohort = 1.0',
        ),
    )
    kept = store(config)
    kept.reserve(sampled, place=place(config), assignment="a-1")
    reserved = spent(config, kept.book())
    kept.charge("a-1", "q1")
    kept.settle("a-1")
    assert sampled.privacy is not None
    assert spent(config, kept.book()) == epsilon(sampled.privacy, 1) < reserved


def test_jobs_of_several_mechanisms_are_composed() -> None:
    full = job().privacy
    assert full is not None
    poisson = replace(full, sampling="poisson", sampling_rate=0.5, expected_cohort=1.0)
    louder = replace(full, noise_multiplier=2 * full.noise_multiplier)
    assert composed_epsilon([], 1e-6) == composed_epsilon([(full, 0)], 1e-6) == 0.0
    assert composed_epsilon([(full, 3), (poisson, 3)], 1e-6) == epsilon(full, 6)
    two = composed_epsilon([(full, 3), (louder, 3)], 1e-6)
    assert epsilon(full, 3) < two < epsilon(full, 6)
    with pytest.raises(PrivacyError, match="cannot be accounted for"):
        composed_epsilon([(full, -1)], 1e-6)


def test_an_update_beyond_the_budget_stays_at_the_site(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(rounds=2), place=place(config), assignment="a-1")
    left = 0
    with contextlib.suppress(PrivacyError):
        for left in range(100):
            kept.charge("a-1", f"q{left}")
    book = kept.book()
    assert book.charges[0].spent == left > 2
    with pytest.raises(PrivacyError, match="bring the data set stays to epsilon"):
        kept.charge("a-1", "one more")
    assert kept.book() == book
    assert spent(config, book) <= 5.0
    with pytest.raises(PrivacyError, match="nothing is reserved for the assignment a-2"):
        kept.charge("a-2", "q1")
    for name in ("", "x" * 129, "ä"):
        with pytest.raises(PrivacyError, match="must have a name of 1 to 128"):
            kept.charge("a-1", name)


def test_the_same_question_is_charged_once(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(), place=place(config), assignment="a-1")
    for question in ("q1", "q1", "q2", "q2", "q1"):
        kept.charge("a-1", question)
    assert kept.book().charges[0].spent == 3


def test_a_resumed_job_goes_on_with_its_own_charge(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(rounds=10), place=place(config), assignment="a-1")
    for number in range(7):
        kept.charge("a-1", f"q{number}")
    kept.settle("a-1")
    kept.reserve(job(rounds=10), place=place(config), assignment="a-2")
    (charge,) = kept.book().charges
    assert (charge.spent, charge.rounds, charge.assignment) == (7, 10, "a-2")
    for number in range(5):
        kept.charge("a-2", f"r{number}")
    assert kept.book().charges[0].rounds == 12


def test_two_jobs_at_once_never_pass_the_limit(config: SiteConfig) -> None:
    kept = store(config)
    refused: list[str] = []

    def accept(number: int) -> None:
        try:
            kept.reserve(job(f"job-{number}", 6), place=place(config), assignment=f"a-{number}")
            for round_ in range(6):
                kept.charge(f"a-{number}", f"q{round_}")
        except PrivacyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book = kept.book()
    assert len(refused) == 5 - len(book.charges) > 0
    assert [charge.spent for charge in book.charges] == [6] * len(book.charges)
    assert spent(config, book) <= 5.0


def test_what_was_charged_survives_a_crash_and_the_rest_is_given_back(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job("one", 6), place=place(config), assignment="a-1")
    kept.reserve(job("two", 6), place=place(config), assignment="a-2")
    kept.charge("a-1", "q1")
    after = store(config)
    assert after.book() == kept.book()
    after.settle_others(["a-2"])
    first, second = after.book().charges
    assert (first.rounds, first.assignment) == (1, "")
    assert (second.rounds, second.assignment) == (6, "a-2")


@pytest.mark.parametrize("moment", ["before", "written", "counted"])
def test_a_crash_at_any_moment_leaves_a_charge_or_no_answer(
    config: SiteConfig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    counter = Counter()
    kept = store(config, counter)
    kept.reserve(job(), place=place(config), assignment="a-1")
    if moment == "before":
        monkeypatch.setattr("edge.agent.sealed_file.write_durably", _fails)
        with pytest.raises(ConfigError, match="cannot be read or written: power"):
            kept.charge("a-1", "q1")
        monkeypatch.undo()
    elif moment == "written":
        counter.fails = True
        with pytest.raises(ConfigError, match="TPM's counter cannot be used"):
            kept.charge("a-1", "q1")
        counter.fails = False
    else:
        kept.charge("a-1", "q1")
    again = store(config, counter)
    assert again.book().charges[0].spent == (0 if moment == "before" else 1)
    again.charge("a-1", "q2")
    assert store(config, counter).book().charges[0].spent == (1 if moment == "before" else 2)


def _fails(*_: object) -> None:
    raise OSError("power")


def test_a_budget_states_epsilon_and_delta(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE.replace("delta = 1e-6\n", ""))
    with pytest.raises(ConfigError, match=r"data\.stays\.delta: a privacy budget states epsilon"):
        SiteConfig.load(tmp_path / "site.toml")


def test_a_budget_below_another_limit_is_named(config: SiteConfig) -> None:
    whole = Limit(name="all", place=str(Path(place(config)).parent), epsilon=0.1, delta=1e-6)
    kept = store(config)
    kept.reserve(job(), place=place(config), assignment="a-1")
    assert kept.book().exceeded(whole, kept.book().charges[0])
