"""A site that cannot run a job says so before the round, not in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attestation.policy import AppraisalPolicy
from fedlearn.job import JobSpec
from server.placement import obstacles

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


def asked(report: dict[str, Any] | str) -> tuple[str, ...]:
    text = report if isinstance(report, str) else json.dumps(report)
    spec = JobSpec.from_toml(JOB, policy=POLICY)
    policy = AppraisalPolicy.from_toml(POLICY)
    return obstacles(spec, policy, site="north", capabilities=text)


def test_an_able_site_has_no_obstacle() -> None:
    assert asked(ABLE) == ()


def test_what_a_site_does_not_mention_is_not_held_against_it() -> None:
    assert asked("") == ()
    assert asked({}) == ()


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_each_lack_is_named(change: dict[str, Any], said: str) -> None:
    (reason,) = asked(ABLE | change)
    assert said in reason


@pytest.mark.parametrize("report", ["[]", "nonsense", "[" * 100_000])
def test_a_report_that_is_none_is_an_obstacle(report: str) -> None:
    assert len(asked(report)) == 1


def test_odd_types_do_no_harm() -> None:
    assert asked({"launcher": 1, "tees": "x", "cpu": True, "gpu": "2", "data": {}}) == ()
