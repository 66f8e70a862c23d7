"""Registers that software keeps, what they prove, and how report data covers them.

Some confidential environments have no register that their software may extend: an SEV-SNP guest
has none, and a container has none of its own. There, software inside of the environment keeps an
accumulator, ``value = SHA-384(value | digest)`` from zero, and places it into report data. Its
value can be trusted only as far as the software that keeps it, so it counts only where that
software is itself measured. An event log can have two of them, under indices that no hardware
register has:

============== =============== ======================================================
index          claim           kept by
============== =============== ======================================================
``RUNTIME``    ``app``, ...    our client, which the launch measurement covers
``CONTAINER``  container.imr   a CCNP or CIMA server, one for each container
============== =============== ======================================================

Report data over them, with ``digest`` the binding's::

    digest' = SHA-512("fedlearn-runtime/1\\0" | RUNTIME | digest)    where RUNTIME has events
    report data = digest'                                           made by ourselves
    report data = SHA-512(CONTAINER | nonce | digest')              made by a CCNP server
    report data = hex(SHA-256(digest'))                             made by a CoCo agent

The second is the rule of those servers (``GetCcReport``: SHA-512 of nonce and user data; a server
that isolates containers puts the container's register before the nonce). Every part has a known
length, so the concatenation is not ambiguous. The third is for agents that take runtime data as
text of at most 64 bytes. A register that the report data does not cover is not proven: it is
listed as unverified or refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from attestation.binding import Bound
from attestation.errors import BindingError, EventLogError
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import measured_claims, measurements

__all__ = [
    "BANK",
    "CONTAINER",
    "RUNTIME",
    "SoftwareRegisters",
    "check_report_data",
    "hardware_part",
    "refuse_hardware_events",
    "runtime_digest",
    "runtime_text",
]

RUNTIME: Final = 0x464C0001
"""Index of the events that our client measured where hardware has no register for them."""

CONTAINER: Final = 0x464C0002
"""Index of the events of a container, as a CCNP or CIMA server reports them."""

BANK: Final = "sha384"
_DOMAIN: Final = b"fedlearn-runtime/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareRegisters:
    """The software registers of a log, replayed. ``runtime`` and ``container`` are empty or
    48 bytes; ``claims`` names what they stand for."""

    runtime: bytes = b""
    container: bytes = b""
    claims: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, log: EventLog | None) -> SoftwareRegisters:
        """Replay those that the log has.

        :raises EventLogError: when the events of our client are malformed or contradict each other.
        """
        if log is None or not any(event.index in (RUNTIME, CONTAINER) for event in log.events):
            return cls()
        registers = log.replay(BANK, ccel=True)
        claims: dict[str, bytes] = {}
        if RUNTIME in registers:
            claims |= measured_claims(measurements(log, RUNTIME, BANK), "")
        if CONTAINER in registers:
            claims["container.imr"] = registers[CONTAINER]
        return cls(
            runtime=registers.get(RUNTIME, b""),
            container=registers.get(CONTAINER, b""),
            claims=claims,
        )

    def unproven(self, *, bound: bool, server_measured: bool) -> tuple[str, ...]:
        """Return the claims that stay unverified."""
        return tuple(
            name
            for name in self.claims
            if not bound or (name == "container.imr" and not server_measured)
        )


def hardware_part(log: EventLog) -> EventLog:
    """Return the log without the events of software registers."""
    events = tuple(event for event in log.events if event.index not in (RUNTIME, CONTAINER))
    return EventLog(sizes=log.sizes, events=events, header=log.header)


def runtime_digest(digest: bytes, runtime: bytes) -> bytes:
    """Return the digest that covers ``digest`` (64 bytes) and our client's register."""
    return hashlib.sha512(_DOMAIN + runtime + digest).digest() if runtime else digest


def runtime_text(digest: bytes) -> str:
    """Return ``digest`` as 64 characters, for agents that take text only."""
    return hashlib.sha256(digest).hexdigest()


def check_report_data(
    value: bytes, binding: Bound | None, software: SoftwareRegisters | None = None
) -> bool:
    """Compare report data with a binding; return whether it covers the software registers.

    A binding without a nonce (:class:`~attestation.binding.ReportData`) is compared as it is, and
    proves no software register.

    :raises BindingError: when it is none of the compositions above.
    """
    registers = software or SoftwareRegisters()
    if binding is None:
        return False
    expected = runtime_digest(binding.report_data(), registers.runtime)
    if not registers.container and hmac.compare_digest(value, expected):
        return True
    if not registers.container and hmac.compare_digest(value, runtime_text(expected).encode()):
        return True
    composed = hashlib.sha512(registers.container + binding.nonce + expected).digest()
    if binding.nonce and hmac.compare_digest(value, composed):
        return True
    if not binding.nonce and hmac.compare_digest(value, binding.report_data()):
        return False
    raise BindingError(
        "report data is not the digest of this nonce, these keys and this role"
        + (", and of the software registers in the log" if registers.claims else ""),
        step="binding",
    )


def refuse_hardware_events(log: EventLog) -> None:
    """Refuse a log with events of hardware registers, where the hardware has none.

    :raises EventLogError: naming the first.
    """
    if rest := hardware_part(log).events:
        raise EventLogError(
            f"event {rest[0].number} of the log extends register {rest[0].index}, which an "
            "SNP report does not have",
            register=f"register {rest[0].index}",
        )
