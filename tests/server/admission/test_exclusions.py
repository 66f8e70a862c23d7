"""An operator keeps a site, or one of its clients, out of a job; real gate, CA and evidence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from fedlearn.errors import AdmissionDenied, ConfigError, LedgerError
from server.admission.exclusions import Exclusion, ExclusionList
from tests.harness.deployment import Client, Deployment


@pytest.fixture
def client(deployment: Deployment) -> Client:
    return deployment.client()


def excluded(deployment: Deployment, **changes: Any) -> Exclusion:
    fields = {"job": "alpha", "site": "site-a", "reason": "odd", "operator": "alice"}
    return Exclusion(**(fields | changes))


def test_who_is_excluded_is_out_and_refused_with_what_to_do(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    assert deployment.gate.exclude(excluded(deployment)) == (current,)
    assert deployment.nodes.alive == {}
    assert deployment.last("revocation")["reason"] == "odd (operator alice)"
    attempts: tuple[Callable[[], object], ...] = (
        lambda: deployment.admit(client),
        lambda: deployment.admit(deployment.client(name="c2")),
    )
    for attempt in attempts:
        with pytest.raises(AdmissionDenied, match="site-a is excluded from job alpha") as caught:
            attempt()
        assert "fedlearn job readmit alpha --site site-a" in caught.value.hint
        (finding,) = caught.value.findings
        assert (finding["claim"], finding["actual"]) == ("exclusion", "excluded: odd")
    assert deployment.last("refusal")["step"] == "exclusion"
    # The other site, and this one in another job, are as before.
    assert deployment.admit(deployment.client(site="site-b"))
    assert deployment.admit(deployment.client(site="site-b", job="beta", name="c3"))


def test_a_renewal_of_who_is_excluded_is_refused(deployment: Deployment, client: Client) -> None:
    current = deployment.admit(client).admission
    deployment.gate.exclude(excluded(deployment))
    with pytest.raises(AdmissionDenied, match="revoked"):
        deployment.gate.renew(deployment.request(client), current, peer="ip:test")


def test_one_client_is_excluded_and_the_next_of_its_site_is_not(
    deployment: Deployment, client: Client
) -> None:
    deployment.admit(client)
    deployment.gate.exclude(excluded(deployment, client="c1"))
    with pytest.raises(AdmissionDenied, match="client c1 of site site-a is excluded") as caught:
        deployment.admit(client)
    assert "--client c1" in caught.value.hint
    assert deployment.admit(deployment.client(name="c2"))


def test_an_exclusion_is_lifted_by_an_operator_or_by_time(
    deployment: Deployment, client: Client
) -> None:
    deployment.gate.exclude(excluded(deployment))
    with pytest.raises(ConfigError, match="not excluded"):
        deployment.gate.readmit("alpha", "site-b", operator="bob")
    with pytest.raises(ConfigError, match="not excluded"):
        deployment.gate.readmit("alpha", "site-a", client="c1", operator="bob")
    deployment.gate.readmit("alpha", "site-a", operator="bob")
    entry = deployment.last("exclusion")
    assert (entry["change"], entry["operator"]) == ("lifted", "bob")
    assert deployment.admit(client)
    until = deployment.clock() + timedelta(minutes=5)
    deployment.gate.exclude(excluded(deployment, until=until))
    deployment.clock.advance(minutes=4)
    deployment.gate.sweep()
    with pytest.raises(AdmissionDenied, match="until 20"):
        deployment.admit(client)
    deployment.clock.advance(minutes=2)
    assert deployment.gate.exclusions.of_job("alpha", now=deployment.clock()) == ()
    assert deployment.admit(client)
    deployment.gate.sweep()
    deployment.gate.sweep()
    changes = [b["change"] for kind, b in deployment.entries if kind == "exclusion"]
    assert changes == ["laid", "lifted", "laid", "over"]


def test_an_exclusion_outlives_a_restart(deployment: Deployment, client: Client) -> None:
    now = deployment.clock()
    deployment.gate.exclude(excluded(deployment))
    deployment.gate.exclude(excluded(deployment, site="site-b", client="c1"))
    deployment.gate.readmit("alpha", "site-b", client="c1", operator="bob")
    deployment.gate.exclude(excluded(deployment, job="beta", until=now + timedelta(hours=1)))
    kept = [body for kind, body in deployment.entries if kind == "exclusion"]
    again = ExclusionList(kept)
    for job in ("alpha", "beta"):
        former = deployment.gate.exclusions.of_job(job, now=now)
        assert again.of_job(job, now=now) == former != ()
    with pytest.raises(LedgerError, match="an entry about an exclusion"):
        ExclusionList([{**kept[0], "until": "soon"}])
    with pytest.raises(LedgerError, match="an entry about an exclusion"):
        ExclusionList([{"job": "alpha"}])


def test_exclusions_are_bounded(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.admission.exclusions.MAX_EXCLUSIONS", 1)
    deployment.gate.exclude(excluded(deployment))
    deployment.gate.exclude(excluded(deployment, reason="again"))
    with pytest.raises(ConfigError, match="1 exclusions already"):
        deployment.gate.exclude(excluded(deployment, site="site-b"))
    with pytest.raises(ConfigError, match="past"):
        deployment.gate.exclude(excluded(deployment, until=deployment.clock()))


def test_who_is_excluded_while_its_evidence_is_verified_is_not_admitted(
    deployment: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = deployment.request(client)
    check = deployment.gate.exclusions.check
    seen = []

    def check_twice(*names: str, now: datetime) -> None:
        seen.append(names)
        if len(seen) == 2:
            deployment.gate.exclusions.lay(excluded(deployment))
        check(*names, now=now)

    monkeypatch.setattr(deployment.gate.exclusions, "check", check_twice)
    with pytest.raises(AdmissionDenied, match="is excluded"):
        deployment.gate.admit(request, peer="ip:test")
    assert len(seen) == 2
    assert deployment.nodes.alive == {}
