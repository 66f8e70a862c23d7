"""A signed assignment: what the coordinator asks one site to run.

An assignment is canonical JSON; the signature (ECDSA P-256, SHA-256) covers
``"fedlearn-assignment/1\\0"`` and those bytes, so the site verifies exactly what it reads.
It carries no secret: keys reach a client through attestation only.

The page is docs/adr/0030-read-once.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import ConfigError, JobError
from fedlearn.job.run import checked_run_id

__all__ = ["MAX_ASSIGNMENT_BYTES", "Assignment"]

MAX_ASSIGNMENT_BYTES: Final = 8 * 1024 * 1024
"""Upper bound of an encoded assignment, checked before it is parsed."""

_DOMAIN: Final = b"fedlearn-assignment/1\0"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One job at one site.

    ``id``        unique; a site runs an id at most once at a time
    ``spec``      the job as JSON (:meth:`fedlearn.job.spec.JobSpec.to_json`)
    ``bundle``    SHA-256 of the app bundle
    ``policy``    the appraisal policy, TOML, which states what the coordinator must prove
    ``policy_signature``  its operator's signature (:mod:`attestation.policy.sign`), if any
    ``workload``  :func:`fedlearn.job.spec.workload_digest` of job and bundle
    """

    id: str
    job: str
    site: str
    spec: str
    bundle: bytes
    policy: str
    workload: bytes
    issued: datetime
    expires: datetime
    policy_signature: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the bytes that :meth:`sign` covers."""
        document: dict[str, str] = {
            "id": self.id,
            "job": self.job,
            "site": self.site,
            "spec": self.spec,
            "bundle": self.bundle.hex(),
            "policy": self.policy,
            "workload": self.workload.hex(),
            "issued": self.issued.isoformat(),
            "expires": self.expires.isoformat(),
        }
        if self.policy_signature:
            document["policy_signature"] = self.policy_signature.hex()
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def sign(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """Return the coordinator's signature (DER)."""
        return key.sign(_DOMAIN + self.to_bytes(), ec.ECDSA(hashes.SHA256()))

    @classmethod
    def verify(
        cls, data: bytes, signature: bytes, *, order_key: bytes, site: str, now: datetime
    ) -> Self:
        """Return the assignment if ``order_key`` (SPKI, DER) signed it for ``site``.

        :raises JobError: for a bad signature, another site, or outside of its validity.
        """
        if len(data) > MAX_ASSIGNMENT_BYTES:
            raise JobError(f"an assignment has at most {MAX_ASSIGNMENT_BYTES} bytes")
        key = serialization.load_der_public_key(order_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise JobError("the coordinator's order key is not an elliptic curve key")
        try:
            key.verify(signature, _DOMAIN + data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise JobError(
                "the assignment is not signed by the coordinator with which this site enrolled",
                hint="nothing was started; report it to the coordinator's operator",
            ) from None
        assignment = cls._parse(data)
        if assignment.site != site:
            raise JobError(f"the assignment is for site {assignment.site!r}, not {site!r}")
        if not assignment.issued <= now < assignment.expires:
            raise JobError(
                f"the assignment is valid from {assignment.issued} to {assignment.expires}",
                hint="check the clock of this machine",
            )
        return assignment

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        try:
            document: dict[str, Any] = json.loads(data)
            assignment = cls(
                id=_name(document["id"], "id"),
                job=_run(document["job"], "job"),
                site=_name(document["site"], "site"),
                spec=_text(document["spec"], "spec"),
                bundle=_digest(document["bundle"], "bundle"),
                policy=_text(document["policy"], "policy"),
                workload=_digest(document["workload"], "workload"),
                issued=_instant(document["issued"], "issued"),
                expires=_instant(document["expires"], "expires"),
                policy_signature=bytes.fromhex(
                    _text(document.get("policy_signature", ""), "policy_signature")
                ),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError(f"the assignment is malformed: {error}") from None
        if assignment.to_bytes() != data:
            raise JobError("the assignment is not in its canonical form")
        return assignment


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a string")
    return value


def _run(value: object, key: str) -> str:
    text = _text(value, key)
    try:
        return checked_run_id(text, key)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _name(value: object, key: str) -> str:
    text = _text(value, key)
    if not _NAME.fullmatch(text):
        raise ValueError(f"{key} must be a DNS label")
    return text


def _digest(value: object, key: str) -> bytes:
    raw = bytes.fromhex(_text(value, key))
    if len(raw) != _DIGEST_BYTES:
        raise ValueError(f"{key} must have {_DIGEST_BYTES} bytes")
    return raw


def _instant(value: object, key: str) -> datetime:
    instant = datetime.fromisoformat(_text(value, key))
    if instant.tzinfo is None:
        raise ValueError(f"{key} must have a time zone")
    return instant.astimezone(UTC)
