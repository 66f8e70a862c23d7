"""A site that cannot run a job is left out before the round; some of the others are chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import Resources
from server.jobs.placement import Candidate, Choice, choose, obstacles

POLICY = b"""
version = 1
name = "p"
accept = ["tdx"]
"""
JOB = """
name = "j"
app = "app"
rounds = 1
sites = ["north"]
policy = "policy.toml"
launcher = "kubernetes"
[resources]
cpu = 4
memory_mib = 4096
gpu = 1
[data.north]
set = "stays"
"""
ABLE = {
    "launcher": "kubernetes",
    "tees": ["tdx"],
    "cpu": 8,
    "memory_mib": 8192,
    "gpu": 2,
    "data": ["stays"],
}


def _policy() -> AppraisalPolicy:
    return parse_policy(POLICY)


def asked(report: dict[str, Any] | str) -> tuple[str, ...]:
    text = report if isinstance(report, str) else json.dumps(report)
    policy = _policy()
    spec = JobSpec.from_toml(JOB, policy=policy)
    return obstacles(spec, policy, site="north", capabilities=text)


def test_an_able_site_has_no_obstacle() -> None:
    assert asked(ABLE) == ()


def test_what_a_site_does_not_mention_is_not_held_against_it() -> None:
    assert asked("") == ()
    assert asked({}) == ()


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"launcher": "process"}, "launcher kubernetes"),
        ({"tees": ["snp"]}, "accepts tdx, its TEE is snp"),
        ({"tees": []}, "its TEE is none"),
        ({"cpu": 2}, "cpu = 4, it has 2"),
        ({"memory_mib": 1}, "memory_mib"),
        ({"gpu": 0}, "gpu = 1, it has 0"),
        ({"data": ["other"]}, "no data set 'stays'; it has other"),
    ],
)
def test_each_lack_is_named(change: dict[str, Any], reported: str) -> None:
    (reason,) = asked(ABLE | change)
    assert reported in reason


@pytest.mark.parametrize("report", ["[]", "nonsense", "[" * 100_000])
def test_a_report_that_is_none_is_an_obstacle(report: str) -> None:
    assert len(asked(report)) == 1


def test_odd_types_do_no_harm() -> None:
    assert asked({"launcher": 1, "tees": "x", "cpu": True, "gpu": "2", "data": {}}) == ()


# --- choosing ---------------------------------------------------------------------------------

MANY = """
name = "j"
app = "app"
rounds = 1
sites = ["north", "south", "east", "west"]
policy = "policy.toml"
[resources]
cpu = 2
memory_mib = 1024
[placement]
choose = 2
prefer = "{prefer}"
[data.north]
set = "stays"
[data.west]
set = "stays"
"""


def _wish(prefer: str = "listed") -> JobSpec:
    return JobSpec.from_toml(MANY.format(prefer=prefer), policy=_policy())


def _candidates(**sites: dict[str, Any]) -> list[Candidate]:
    """All four sites, able; changes by name, of the candidate or of its report."""
    found = []
    for name in ("north", "south", "east", "west"):
        changes = dict(sites.get(name, {}))
        report = {"tees": ["tdx"], "data": ["stays"], **changes.pop("report", {})}
        found.append(Candidate(name=name, capabilities=json.dumps(report), **changes))
    return found


def _choose(prefer: str = "listed", **sites: dict[str, Any]) -> Choice:
    return choose(_wish(prefer), parse_policy(POLICY), _candidates(**sites))


def test_the_first_able_ones_are_chosen_by_default() -> None:
    assert _choose().sites == ("north", "south")
    passed = _choose(north={"unable": "it is not connected"}).passed_over
    assert passed["north"] == "it is not connected"
    assert passed["west"].startswith("others come first")


def test_a_site_whose_report_speaks_against_it_is_passed_over() -> None:
    choice = _choose(north={"report": {"tees": ["snp"]}}, south={"report": {"cpu": 1}})
    assert choice.sites == ("east", "west")
    assert "its TEE is snp" in choice.passed_over["north"]
    assert "cpu = 2, it has 1" in choice.passed_over["south"]


def test_too_few_able_sites_are_an_error_that_names_each() -> None:
    away = {"unable": "it is not connected"}
    with pytest.raises(JobError, match="needs 2 sites and 1 are able") as caught:
        _choose(north=away, south=away, west={"report": {"data": []}})
    assert "site north: it is not connected" in str(caught.value)
    assert "site west: it has no data set" in str(caught.value)
    assert "placement.choose" in caught.value.hint


def test_capacity_that_is_left_counts_and_not_all_of_it() -> None:
    one = Resources(cpu=2, memory_mib=1024)
    big = {"report": {"total_cpu": 64, "total_memory_mib": 10**6}}
    small = {"report": {"total_cpu": 8, "total_memory_mib": 10**6}}
    busy = {"report": {"total_cpu": 64, "total_memory_mib": 10**6}, "busy": (one,) * 31}
    assert _choose("capacity", north=busy, south=small, east=big, west=small).sites == (
        "south",
        "east",
    )


def test_a_full_site_comes_last_whatever_is_preferred() -> None:
    one = Resources(cpu=2, memory_mib=1024)
    full = {"report": {"total_cpu": 2, "cost": 0}, "busy": (one,)}
    capped = {"report": {"jobs": 1}, "busy": (one,)}
    for prefer in ("listed", "capacity", "cost"):
        choice = _choose(prefer, north=full, south=capped)
        assert choice.sites == ("east", "west")
        assert "room for 0 more" in choice.passed_over["north"]
    # Rather a full site than none.
    away = {"unable": "it is not connected"}
    assert _choose(north=full, east=away, west=away).sites == ("north", "south")


def test_a_site_where_clients_failed_lately_comes_after_one_where_none_did() -> None:
    assert _choose(north={"failures": 1}, east={"failures": 2}).sites == ("south", "west")
    assert "1 failures lately" in _choose(north={"failures": 1}).passed_over["north"]


def test_the_cheapest_are_chosen_and_who_names_no_price_comes_last() -> None:
    costs = {"north": 3.0, "south": 2.5, "west": 2}
    choice = _choose("cost", **{site: {"report": {"cost": cost}} for site, cost in costs.items()})
    assert choice.sites == ("south", "west")
    assert "no known cost" in choice.passed_over["east"]


@pytest.mark.parametrize("cost", ["1", -1, True, None, [], 10**400])
def test_an_impossible_price_is_none(cost: object) -> None:
    reports = {site: {"report": {"cost": 5}} for site in ("south", "east", "west")}
    assert "north" not in _choose("cost", north={"report": {"cost": cost}}, **reports).sites


@given(st.permutations(["north", "south", "east", "west"]), st.integers(0, 3))
def test_the_same_candidates_give_the_same_choice_in_any_order(order: list[str], n: int) -> None:
    found = {one.name: one for one in _candidates(north={"failures": n}, west={"failures": n})}
    policy = parse_policy(POLICY)
    shuffled = choose(_wish("capacity"), policy, [found[name] for name in order])
    assert shuffled == choose(_wish("capacity"), policy, list(found.values()))


def test_the_job_in_force_is_one_that_named_the_chosen_sites_itself() -> None:
    choice = _choose(north={"unable": "it is not connected"}, south={"failures": 1})
    assert choice.sites == ("east", "west")
    in_force = _wish().at(choice.sites)
    text = MANY.format(prefer="listed").replace('["north", "south", "east", "west"]', "{}")
    text = text.replace("{}", '["east", "west"]').replace('[data.north]\nset = "stays"\n', "")
    text = text.replace('[placement]\nchoose = 2\nprefer = "listed"\n', "")
    assert in_force == JobSpec.from_toml(text, policy=_policy())
    assert in_force.digest() == JobSpec.from_toml(text, policy=_policy()).digest()
    assert in_force.quorum == 2


@pytest.mark.parametrize("sites", [("north",), ("north", "nowhere"), ("north", "south", "east")])
def test_a_job_is_in_force_at_its_own_sites_and_so_many_only(sites: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="are not 2 of the job's sites"):
        _wish().at(sites)


def test_a_job_that_chooses_more_than_it_names_is_wrong() -> None:
    text = MANY.format(prefer="listed")
    with pytest.raises(ConfigError, match=r"placement\.choose: must be at most the 4 sites"):
        JobSpec.from_toml(text.replace("choose = 2", "choose = 5"), policy=parse_policy(POLICY))
    with pytest.raises(ConfigError, match="quorum: must be at most the 2 sites"):
        JobSpec.from_toml(
            text.replace("rounds = 1", "rounds = 1\nquorum = 3"),
            policy=parse_policy(POLICY),
        )
    assert JobSpec.from_json(_wish().to_json()).digest() == _wish().digest()
