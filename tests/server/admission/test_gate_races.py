"""Admissions, removals and revocations at the same time leave one outcome."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fedlearn.errors import AdmissionDenied, NonceRefused
from fedlearn.identity.admission import AdmitRequest
from tests.fakes.refusals import denied
from tests.harness.deployment import Client, Deployment


def test_a_revocation_during_verification_is_not_undone_by_a_renewal(
    deployment: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = deployment.admit(client).admission
    request = deployment.request(client)
    examine = deployment.gate._examiner.examine

    def slow(*arguments: Any, **named: Any) -> Any:
        affirmed = examine(*arguments, **named)
        deployment.registry.revoke(current.thumbprint, "meanwhile", now=deployment.clock())
        return affirmed

    monkeypatch.setattr(deployment.gate._examiner, "examine", slow)
    with pytest.raises(AdmissionDenied, match="revoked: meanwhile"):
        deployment.gate.renew(request, current, peer="ip:test")
    with pytest.raises(AdmissionDenied, match="revoked"):
        deployment.registry.renew(current, now=deployment.clock())
    assert deployment.registry.of_job("alpha", now=deployment.clock()) == ()


def test_a_site_that_is_removed_during_verification_admits_nobody(
    deployment: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = deployment.request(client)
    examine = deployment.gate._examiner.examine

    def slow(*arguments: Any, **named: Any) -> Any:
        affirmed = examine(*arguments, **named)
        deployment.sites.remove("site-a")
        return affirmed

    monkeypatch.setattr(deployment.gate._examiner, "examine", slow)
    denied(deployment, request, "removed", "register")


def test_one_request_in_many_threads_is_admitted_once(
    deployment: Deployment, client: Client
) -> None:
    request = deployment.request(client)

    def attempt(_: int) -> str:
        try:
            deployment.gate.admit(request, peer="ip:test")
        except NonceRefused:
            return "replay"
        return "admitted"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(16)))
    assert outcomes.count("admitted") == 1
    assert outcomes.count("replay") == 15
    assert len(deployment.nodes.alive) == 1


def test_two_clients_of_a_site_at_once_leave_one(deployment: Deployment) -> None:
    requests = [deployment.request(deployment.client(name=f"c{n}")) for n in range(6)]

    def attempt(request: AdmitRequest) -> bool:
        try:
            deployment.gate.admit(request, peer="ip:test")
        except AdmissionDenied:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, requests)) == 1
    assert len(deployment.registry.of_job("alpha", now=deployment.clock())) == 1
