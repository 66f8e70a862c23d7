"""A job that leaves the choice of its sites to the coordinator, from its file to its model."""

from __future__ import annotations

import pytest

from tests.harness.federation import FederationHarness

pytestmark = pytest.mark.e2e


def test_a_job_runs_at_the_sites_that_were_chosen_and_at_no_other(
    shared: FederationHarness,
) -> None:
    asked = shared.job("chosen", placement={"choose": 2}, quorum=2)
    shared.operator.drain_site("site-a")
    try:
        asked.submit().finish()
    finally:
        shared.operator.approve_site("site-a")
    (submitted,) = (e for e in asked.ledger("job") if e["change"] == "submitted")
    assert submitted["sites"] == ["site-b", "site-c"]
    assert submitted["passed_over"] == {"site-a": "it is draining"}
    assert submitted["asked"] == asked.spec.digest().hex()
    in_force = asked.spec.at(("site-b", "site-c"))
    assert submitted["digest"] == in_force.digest().hex()
    state = shared.operator.get_job("chosen")
    assert state.sites == ("site-b", "site-c")
    assert state.id == in_force.digest().hex()
    assert {entry["site"] for entry in asked.ledger("admission")} == {"site-b", "site-c"}
    assert any(event.site == "site-a" for event in asked.of("log"))
    # The twin: the same job, whose file names them.
    named = ["site-b", "site-c"]
    shared.run("named", sites=named, data={site: {"set": "small"} for site in named})
    assert shared.digest("chosen") == shared.digest("named")


def test_too_few_able_sites_are_refused_before_anything_happens(shared: FederationHarness) -> None:
    asked = shared.job("unable", placement={"choose": 3}, resources={"cpu": 1000})
    with pytest.raises(Exception, match=r"needs 3 sites and 0 are able: site site-a: the job"):
        asked.submit()
    assert asked.ledger("job") == []
