"""Whose keys a client of secure aggregation accepts: those of admitted clients of the job."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.client.flower.fleet import Identity
from edge.client.flower.masking import FleetCredentials
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.roster import PublicKeys, Session, statement
from server.identity.pki import CertificateAuthority

NOW = datetime.now(UTC)
SESSION = Session(job=bytes(32), round=3, id=bytes(16))


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create("test.example", NOW)


def identity(
    ca: CertificateAuthority, site: str, *, job: str = "j", seconds: float = 600
) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = ca.issue_client(
        csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER),
        job=job,
        site=site,
        client="c1",
        evidence_digest=bytes(32),
        policy_digest=bytes(32),
        now=NOW,
        lifetime=timedelta(seconds=seconds),
    )
    return Identity(
        chain=tuple(x509.load_pem_x509_certificates(issued.chain_pem)),
        key=key,
        authorities=(x509.load_pem_x509_certificate(ca.certificate_pem),),
    )


def credentials(who: Identity, *, seconds: float = 1) -> FleetCredentials:
    return FleetCredentials(who, "j", now=lambda: NOW + timedelta(seconds=seconds))


def keys(by: FleetCredentials, site: str = "b", **more: Any) -> PublicKeys:
    channel, mask = bytes(range(32)), bytes(range(1, 33))
    chain, signature = by.sign(statement(SESSION, site, channel, mask))
    made = PublicKeys(site=site, channel=channel, mask=mask, chain=chain, signature=signature)
    return dataclasses.replace(made, **more)


def test_keys_of_an_admitted_client_are_accepted(ca: CertificateAuthority) -> None:
    ours = credentials(identity(ca, "a"))
    theirs = keys(credentials(identity(ca, "b")))
    ours.verify(theirs, theirs.statement(SESSION))
    ours.renew(identity(ca, "a"))
    ours.verify(theirs, theirs.statement(SESSION))
    again = keys(ours, "a")
    credentials(identity(ca, "b")).verify(again, again.statement(SESSION))


def test_keys_of_anybody_else_are_refused(ca: CertificateAuthority) -> None:
    ours = credentials(identity(ca, "a"))
    site_b = credentials(identity(ca, "b"))
    stranger = CertificateAuthority.create("test.example", NOW)
    other_session = dataclasses.replace(SESSION, id=bytes(15) + b"\1")
    good = keys(site_b)
    refused: list[tuple[PublicKeys, Session, str]] = [
        # The aggregator cannot sign: it has no key of an admitted client.
        (keys(credentials(identity(stranger, "b"))), SESSION, "not one of this coordinator"),
        (dataclasses.replace(good, chain=b""), SESSION, "not one of this coordinator"),
        (dataclasses.replace(good, mask=bytes(32)), SESSION, "not signed by the key"),
        (dataclasses.replace(good, signature=b""), SESSION, "not signed by the key"),
        (good, other_session, "not signed by the key"),
        # A client of another site, or of another job, is not this one.
        (keys(site_b, "c"), SESSION, "the keys of c are signed by spiffe://.*/site/b/"),
        (keys(credentials(identity(ca, "b", job="k"))), SESSION, "signed by spiffe://.*/job/k/"),
    ]
    for theirs, session, words in refused:
        with pytest.raises(UpdateRejected, match=words):
            ours.verify(theirs, theirs.statement(session))


def test_keys_of_an_admission_that_has_ended_are_refused(ca: CertificateAuthority) -> None:
    theirs = keys(credentials(identity(ca, "b", seconds=60)))
    late = credentials(identity(ca, "a"), seconds=61)
    with pytest.raises(UpdateRejected, match="the certificate of the client of b is valid from"):
        late.verify(theirs, theirs.statement(SESSION))
