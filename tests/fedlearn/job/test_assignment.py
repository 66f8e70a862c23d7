"""A site runs what its coordinator signed for it, and nothing else."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import JobError
from fedlearn.job.assignment import MAX_ASSIGNMENT_BYTES, Assignment

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def assignment() -> Assignment:
    return Assignment(
        id="j-north-1",
        job="j",
        site="north",
        spec="{}",
        bundle=bytes(32),
        policy="version = 1",
        workload=bytes(range(32)),
        issued=NOW,
        expires=NOW + timedelta(days=1),
    )


def test_a_signed_assignment_is_read_back(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment
) -> None:
    read = Assignment.verify(
        assignment.to_bytes(), assignment.sign(key), order_key=spki(key), site="north", now=NOW
    )
    assert read == assignment


def test_the_policys_signature_travels_along(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment
) -> None:
    signed = dataclasses.replace(assignment, policy_signature=b"signature")
    read = Assignment.verify(
        signed.to_bytes(), signed.sign(key), order_key=spki(key), site="north", now=NOW
    )
    assert read.policy_signature == b"signature"
    with pytest.raises(JobError, match="not signed by the coordinator"):
        Assignment.verify(
            assignment.to_bytes(), signed.sign(key), order_key=spki(key), site="north", now=NOW
        )


def test_another_coordinators_signature_is_refused(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(JobError, match="not signed by the coordinator"):
        Assignment.verify(
            assignment.to_bytes(),
            assignment.sign(stranger),
            order_key=spki(key),
            site="north",
            now=NOW,
        )


def test_every_altered_byte_is_refused(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment
) -> None:
    data, signature = assignment.to_bytes(), assignment.sign(key)
    for position in range(len(data)):
        altered = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(JobError):
            Assignment.verify(altered, signature, order_key=spki(key), site="north", now=NOW)


@pytest.mark.parametrize(
    ("site", "at"),
    [
        ("south", NOW),
        ("north", NOW - timedelta(seconds=1)),
        ("north", NOW + timedelta(days=1)),
    ],
)
def test_another_site_or_time_is_refused(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment, site: str, at: datetime
) -> None:
    with pytest.raises(JobError):
        Assignment.verify(
            assignment.to_bytes(), assignment.sign(key), order_key=spki(key), site=site, now=at
        )


def test_an_oversized_assignment_is_refused_unread(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(JobError, match="at most"):
        Assignment.verify(
            bytes(MAX_ASSIGNMENT_BYTES + 1), b"", order_key=spki(key), site="north", now=NOW
        )


@pytest.mark.parametrize(
    "change",
    [b'"id":"j-north-1"', b'"bundle":"' + b"00" * 32 + b'"', b'"spec":"{}"'],
)
def test_signed_but_malformed_is_refused(
    key: ec.EllipticCurvePrivateKey, assignment: Assignment, change: bytes
) -> None:
    from cryptography.hazmat.primitives import hashes

    data = assignment.to_bytes().replace(change, change.split(b":")[0] + b":7")
    signature = key.sign(b"fedlearn-assignment/1\0" + data, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(JobError, match="malformed"):
        Assignment.verify(data, signature, order_key=spki(key), site="north", now=NOW)
