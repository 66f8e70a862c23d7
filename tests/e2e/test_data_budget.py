"""A site's privacy budget over all jobs, in whole runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fedlearn.job import events
from fedlearn.local.federation import Party
from tests.harness.federation import FederationHarness, Job

pytestmark = pytest.mark.e2e

_PRIVACY = {
    "mechanism": "central-gaussian",
    "clip": 1.0,
    "noise_multiplier": 2.0,
    "epsilon": 8.0,
    "delta": 1e-5,
}
"""Two rounds cost epsilon 3.4 at delta 1e-5, four cost 5.1."""


def _budget(harness: FederationHarness) -> dict[str, Any]:
    party = harness.federation.parties["site-a"]
    shown = harness.command("fedlearn-edge", "budget", "show", "--json", "--config", party.config)
    (data,) = json.loads(shown.stdout)["data"]
    found: dict[str, Any] = data
    return found


def _refusal(job: Job) -> str:
    """Wait until a site's refusal is reported in the job's events; return them all as text."""
    end = time.monotonic() + 40
    while True:
        received = " ".join(str(event.to_json()) for event in job.events())
        if "data set small" in received or time.monotonic() > end:
            return received
        time.sleep(0.1)


def test_jobs_spend_one_budget_and_the_one_beyond_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = FederationHarness(tmp_path, sites=("site-a",))
    usual = harness.federation.site_table

    def limited(party: Party, bundle: bytes) -> dict[str, Any]:
        table: dict[str, Any] = usual(party, bundle)
        table["data"]["small"] |= {"epsilon": 4.0, "delta": 1e-5}
        return table

    monkeypatch.setattr(harness.federation, "site_table", limited)
    with harness:
        harness.run("first", rounds=2, privacy=_PRIVACY)
        found = _budget(harness)
        assert 3.0 < found["epsilon"] < 4.0 == found["limit"]
        assert [(job["name"], job["spent"]) for job in found["jobs"]] == [("first", 2)]

        beyond = harness.job("beyond", rounds=2, privacy=_PRIVACY).submit()
        assert "2 rounds of the job bring the data set small to epsilon" in _refusal(beyond)
        exposed = harness.job("exposed", rounds=1).submit()
        assert "the data set small has a privacy budget" in _refusal(exposed)
        assert not [e for e in beyond.events() if isinstance(e, events.ClientAdmitted)]
        assert [job["name"] for job in _budget(harness)["jobs"]] == ["first"]
