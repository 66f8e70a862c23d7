"""Whatever bytes arrive before a certificate exists, the answer is a refusal that states why."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.errors import AdmissionDenied, ConfigError, FedlearnError, TransportError
from fedlearn.identity import spiffe
from fedlearn.identity.join import JoinToken
from server.admission.challenges import Limits
from server.identity.pki import PeerCertificate, csr_key
from tests.harness.deployment import Deployment

RELAXED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def open_handed(tmp_path: Path) -> Deployment:
    """A deployment whose rates do not end the fuzzing."""
    many = 10**6
    limits = Limits(
        outstanding=many,
        outstanding_per_peer=many,
        rate=many,
        burst=many,
        rate_per_peer=many,
        burst_per_peer=many,
    )
    return Deployment(tmp_path, limits=limits)


Mutation = tuple[str, int, int, bytes]
MUTATIONS = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "double"]),
    st.integers(0, 2**20),
    st.integers(0, 7),
    st.binary(min_size=1, max_size=40),
)


def mutated(data: bytes, mutation: Mutation) -> bytes:
    """Flip, cut or splice. The position does not depend on the data's length."""
    kind, where, bit, more = mutation
    position = where % len(data)
    match kind:
        case "flip":
            changed = bytes([data[position] ^ (1 << bit)])
            return data[:position] + changed + data[position + 1 :]
        case "cut":
            return data[:position]
        case "insert":
            return data[:position] + more + data[position:]
        case _:
            return data + data


@RELAXED
@given(
    field=st.sampled_from(["csr", "evidence", "site_voucher", "nonce", "hpke_key"]),
    mutation=MUTATIONS,
)
def test_a_damaged_request_is_refused_and_never_crashes(
    open_handed: Deployment, field: str, mutation: Mutation
) -> None:
    honest = open_handed.request(open_handed.client())
    change: dict[str, Any] = {field: mutated(getattr(honest, field), mutation)}
    damaged = replace(honest, **change)
    try:
        open_handed.gate.admit(damaged, peer="ip:test")
    except AdmissionDenied as error:
        denied = error
    else:
        # Only a change that means nothing may pass: white space in the JSON document.
        assert field == "evidence"
        assert json.loads(damaged.evidence) == json.loads(honest.evidence)
        open_handed.gate.close_job("alpha")
        return
    assert denied.findings
    assert str(denied)
    assert open_handed.nodes.alive == {}


@RELAXED
@given(mutation=MUTATIONS)
def test_damaged_certificates_and_requests_are_refused(
    open_handed: Deployment, mutation: Mutation
) -> None:
    csr = open_handed.request(open_handed.client()).csr
    der = open_handed.ca.issue_site(csr, site="s", now=open_handed.clock()).der
    for parse, whole in ((PeerCertificate.parse, der), (csr_key, csr)):
        try:
            parse(mutated(whole, mutation))
        except TransportError:
            continue


@given(st.text(max_size=300) | st.from_regex(r"spiffe://[a-z.]{1,20}(/[a-z0-9]{0,9}){0,7}"))
def test_text_is_an_id_or_refused(text: str) -> None:
    try:
        identity = spiffe.parse(text)
    except TransportError:
        return
    assert str(identity) == text


@given(st.text(max_size=200), st.binary(max_size=200))
def test_text_is_a_token_or_refused(text: str, secret: bytes) -> None:
    encoded = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    for candidate in (text, "fedlearn-join-" + text, "fedlearn-join-" + encoded):
        with pytest.raises(ConfigError):
            JoinToken.parse(candidate)


@given(st.text(max_size=100), st.text(max_size=100), st.text(max_size=100))
def test_names_from_outside_are_names_or_refused(job: str, site: str, client: str) -> None:
    try:
        identity = spiffe.ClientId(trust_domain="d", job=job, site=site, client=client)
    except FedlearnError:
        return
    assert spiffe.parse(str(identity)) == identity
