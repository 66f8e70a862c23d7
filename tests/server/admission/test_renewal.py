"""Admitted clients attest again, or their admission ends: by time, policy, job or operator."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fedlearn.errors import AdmissionDenied, ConfigError
from server.admission.registry import Admission, AdmissionEvent, Change
from tests.fakes.refusals import denied
from tests.harness.deployment import Client, Deployment


def test_a_renewal_gives_a_new_certificate_and_keeps_the_node(
    deployment: Deployment, client: Client
) -> None:
    first = deployment.admit(client)
    deployment.clock.advance(minutes=9)
    second = deployment.gate.renew(
        deployment.request(client, site_voucher=b""), first.admission, peer="ip:test"
    )
    assert second.admission.serial != first.admission.serial
    assert second.admission.node_id == first.admission.node_id
    deployment.clock.advance(minutes=9)
    deployment.registry.live(first.admission.thumbprint, now=deployment.clock())
    assert deployment.kinds()[-1] == "renewal"


def quarantined(deployment: Deployment, admission: Admission) -> None:
    with pytest.raises(AdmissionDenied, match="quarantined"):
        deployment.registry.live(admission.thumbprint, now=deployment.clock())
    assert deployment.nodes.alive == {}
    assert deployment.kinds()[-2:] == ["refusal", "quarantine"]


def test_a_renewal_with_a_wrong_measurement_quarantines(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    client.attester = deployment.client(measurements={"app": bytes(32)}).attester
    with pytest.raises(AdmissionDenied):
        deployment.gate.renew(deployment.request(client), current, peer="ip:test")
    quarantined(deployment, current)
    # It may prove itself from the beginning.
    client = deployment.client()
    deployment.admit(client)


@pytest.mark.parametrize("changed", ["site", "job", "client"])
def test_a_renewal_for_another_party_quarantines(
    deployment: Deployment, client: Client, changed: str
) -> None:
    current = deployment.admit(client).admission
    other = {"site": "site-b", "job": "beta", "client": "c2"}[changed]
    job = "beta" if changed == "job" else "alpha"
    site = "site-a" if changed == "client" else "site-b"
    nonce = deployment.gate.challenge(job, site, "ip:test").nonce
    request = replace(deployment.request(client, nonce=nonce), job=job, site=site)
    change: dict[str, Any] = {changed: other}
    request = replace(request, **change)
    with pytest.raises(AdmissionDenied, match="cannot renew another client"):
        deployment.gate.renew(request, current, peer="ip:test")
    quarantined(deployment, current)


def test_a_renewal_with_another_key_quarantines(deployment: Deployment, client: Client) -> None:
    current = deployment.admit(client).admission
    with pytest.raises(AdmissionDenied, match="keeps its keys"):
        deployment.gate.renew(deployment.request(deployment.client()), current, peer="ip:test")
    quarantined(deployment, current)


def test_a_client_that_does_not_attest_again_is_quarantined(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    deployment.clock.advance(minutes=10)
    with pytest.raises(AdmissionDenied, match="quarantined"):
        deployment.registry.live(current.thumbprint, now=deployment.clock())
    events = deployment.gate.sweep()
    assert [event.change for event in events] == [Change.QUARANTINED]
    assert deployment.nodes.alive == {}
    assert deployment.last("quarantine")["reason"] == "it did not attest again in time"
    assert deployment.gate.sweep() == ()


def test_an_expired_admission_is_refused_swept_or_not(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    # Its certificate alone: the date was moved, and with it the time to attest again.
    deployment.gate.shift(timedelta(minutes=30))
    deployment.clock.advance(minutes=31)
    for _ in range(2):
        with pytest.raises(AdmissionDenied, match="expired"):
            deployment.registry.live(current.thumbprint, now=deployment.clock())
        deployment.gate.sweep()
    assert deployment.kinds()[-1] == "expiry"


def test_revocation_is_reported_and_takes_the_node(deployment: Deployment, client: Client) -> None:
    received: list[AdmissionEvent] = []
    deployment.registry.subscribe(received.append)
    current = deployment.admit(client).admission
    assert deployment.gate.revoke_clients("alpha", "site-a", "the operator decided so")
    assert [event.change for event in received] == [Change.ADMITTED, Change.REVOKED]
    with pytest.raises(AdmissionDenied, match="revoked: the operator decided so"):
        deployment.registry.live(current.thumbprint, now=deployment.clock())
    with pytest.raises(AdmissionDenied, match="revoked"):
        deployment.gate.renew(deployment.request(client), current, peer="ip:test")
    assert deployment.nodes.alive == {}
    assert deployment.last("revocation")["reason"] == "the operator decided so"


def test_a_subscriber_that_fails_does_not_keep_the_others_from_knowing(
    deployment: Deployment, client: Client
) -> None:
    def broken(event: AdmissionEvent) -> None:
        raise RuntimeError("broken")

    received: list[AdmissionEvent] = []
    current = deployment.admit(client).admission
    deployment.registry.subscribe(broken)
    deployment.registry.subscribe(received.append)
    with pytest.raises(RuntimeError, match="broken"):
        deployment.registry.revoke(current.thumbprint, "why", now=deployment.clock())
    assert len(received) == 1
    with pytest.raises(AdmissionDenied, match="revoked"):
        deployment.registry.live(current.thumbprint, now=deployment.clock())


def test_a_policy_that_still_fits_keeps_its_clients(deployment: Deployment, client: Client) -> None:
    deployment.admit(client)
    renamed = deployment.make_policy(extra='[nodes]\nsite-a = ["' + b"chip-site-a".hex() + '"]')
    assert deployment.gate.replace_policy("alpha", renamed) == ()
    assert deployment.last("policy")["policy"] == renamed.digest.hex()
    assert len(deployment.nodes.alive) == 1


def test_a_policy_that_fits_no_more_revokes_at_once(deployment: Deployment, client: Client) -> None:
    current = deployment.admit(client).admission
    other = deployment.make_policy(extra='[nodes]\nsite-a = ["00"]')
    assert deployment.gate.replace_policy("alpha", other) == (current,)
    assert deployment.nodes.alive == {}
    assert "policy changed" in deployment.last("revocation")["reason"]
    with pytest.raises(AdmissionDenied, match="does not affirm"):
        deployment.admit(deployment.client())
    with pytest.raises(ConfigError, match="no open job"):
        deployment.gate.replace_policy("gamma", other)


def test_a_job_that_changes_during_verification_admits_nobody(
    deployment: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = deployment.request(client)
    answers = [deployment.jobs["alpha"], None]
    monkeypatch.setattr(deployment, "job", lambda name: answers.pop(0))
    denied(deployment, request, "changed while", "register")


def test_a_closed_job_ends_its_admissions(deployment: Deployment, client: Client) -> None:
    deployment.admit(client)
    assert len(deployment.gate.close_job("alpha")) == 1
    assert deployment.nodes.alive == {}


def test_lapsing_is_judged_by_the_time_that_is_given(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    assert current.renew_by is not None
    just_before = current.renew_by - timedelta(microseconds=1)
    assert deployment.registry.live(current.thumbprint, now=just_before) == current
    with pytest.raises(AdmissionDenied, match="quarantined"):
        deployment.registry.live(current.thumbprint, now=current.renew_by)
