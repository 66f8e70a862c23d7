"""Refusals of the gate, checked with their ledger entry."""

from __future__ import annotations

import pytest

from fedlearn.errors import AdmissionDenied
from fedlearn.identity.admission import AdmitRequest
from tests.harness.deployment import Deployment


def denied(deployment: Deployment, request: AdmitRequest, match: str, step: str) -> AdmissionDenied:
    """Admission refuses with a reason and findings, in the ledger, and leaves nothing."""
    with pytest.raises(AdmissionDenied, match=match) as caught:
        deployment.gate.admit(request, peer="ip:test")
    error = caught.value
    assert error.findings
    entry = deployment.last("refusal")
    assert entry["step"] == step
    assert entry["reason"] == str(error)
    assert entry["findings"] == list(error.findings)
    assert deployment.nodes.alive == {}
    assert deployment.registry.of_job("alpha", now=deployment.clock()) == ()
    assert "admission" not in deployment.kinds()
    return error
