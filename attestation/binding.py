"""What evidence is bound to: the nonce of the relying party and the keys of the prover.

::

    report_data = SHA-512("fedlearn-ra/1\\0" | LP(role) | LP(nonce) | LP(verifier_id)
                  | LP(SHA-256(TLS SPKI)) | LP(SHA-256(HPKE public key))
                  | LP(node_id) | LP(workload digest))          LP(x) = u32be(len x) | x

The length prefixes keep two different inputs from giving one digest. A TPM's
``qualifyingData`` is limited to a digest of its name algorithm, so it is the SHA-256 of
these 64 bytes (:meth:`Binding.qualifying_data`).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

from attestation.length_prefixed import pack

__all__ = ["COORDINATOR_NODE", "NONCE_BYTES", "Binding", "Bound", "ReportData", "Role"]

NONCE_BYTES: Final = 32
COORDINATOR_NODE: Final = "coordinator"
"""The ``node_id`` in the evidence of a coordinator, which runs at no site."""

_DOMAIN: Final = b"fedlearn-ra/1\0"
_DIGEST_BYTES: Final = 32


class Role(enum.StrEnum):
    """Who attests; evidence for one role is never accepted for another."""

    CLIENT = "client"
    COORDINATOR = "coordinator"
    SITE = "site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The fields that one piece of evidence must be bound to.

    ``nonce``        32 bytes, chosen by the relying party
    ``verifier_id``  SHA-256 of the relying party's identity (its CA's SPKI)
    ``tls_key``      DER SubjectPublicKeyInfo of the key that the prover will use in TLS
    ``hpke_key``     raw public key to which secrets are encrypted; may be empty
    ``node_id``      the site at which the prover claims to run
    ``workload``     digest of the job and its code, 32 bytes
    """

    role: Role
    nonce: bytes
    verifier_id: bytes
    tls_key: bytes
    hpke_key: bytes
    node_id: str
    workload: bytes

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(self.nonce)}")
        if len(self.workload) != _DIGEST_BYTES:
            raise ValueError(f"a workload digest has {_DIGEST_BYTES} bytes")
        if not self.tls_key:
            raise ValueError("a binding always includes the TLS key")

    def report_data(self) -> bytes:
        """Return the 64 bytes that a TEE places in its report."""
        fields = pack(
            self.role.value.encode(),
            self.nonce,
            self.verifier_id,
            hashlib.sha256(self.tls_key).digest(),
            hashlib.sha256(self.hpke_key).digest(),
            self.node_id.encode(),
            self.workload,
        )
        return hashlib.sha512(_DOMAIN + fields).digest()

    def qualifying_data(self) -> bytes:
        """Return the 32 bytes that a TPM places in ``extraData`` of its quote."""
        return hashlib.sha256(self.report_data()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Report data that is compared as it is given.

    It serves the appraisal of stored evidence whose nonce and keys are not known. Admission
    never uses it: it always recomputes a :class:`Binding`.
    """

    value: bytes
    nonce: bytes = b""
    tls_key: bytes = b""

    def report_data(self) -> bytes:
        """Return the value."""
        return self.value

    def qualifying_data(self) -> bytes:
        """Return the value: a TPM's ``extraData`` is compared as given."""
        return self.value


class Bound(Protocol):
    """What a verifier compares report data with: a :class:`Binding` or :class:`ReportData`."""

    @property
    def nonce(self) -> bytes:
        """The nonce of the relying party; CCNP places it next to the user data."""
        ...

    @property
    def tls_key(self) -> bytes:
        """DER SPKI of the bound key; empty when unknown."""
        ...

    def report_data(self) -> bytes:
        """The expected report data."""
        ...

    def qualifying_data(self) -> bytes:
        """The expected ``extraData`` of a TPM quote."""
        ...
