"""Operators: who may submit jobs and approve sites, by which certificate, and who may no more.

All operators may do the same. One lets another in by signing its certification request, and
any of them may shut another out, at once. The memory of that is the ledger, which cannot be
altered unnoticed: the registry reads its ``operator`` entries when it is opened, and every change
is in the ledger before it counts.

A request has to be signed by its own key on P-256 (RFC 2986). Of its subject only a common
name is looked at, and it must be the name that the operator is to get; a request that asks for
any other identity is refused. A key is used for one certificate only.

The page is docs/adr/0010-operators.md.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from attestation.errors import UNREADABLE
from fedlearn.errors import ConfigError, LedgerError, TransportError
from fedlearn.identity.spiffe import OperatorId, checked_name
from server.identity.peer_certificates import PeerCertificate, csr_key, spki, thumbprint
from server.identity.pki import CertificateAuthority, IssuedCertificate

__all__ = ["BY_COORDINATOR", "Operator", "OperatorRegistry", "requested_name"]

MAX_OPERATORS: Final = 1000
BY_COORDINATOR: Final = "(coordinator)"
"""Who added an operator that no other operator added. No operator can have this name."""

_SERIAL: Final = re.compile(r"[0-9a-f]{1,40}")
_SHOWN_REASON: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One certificate of an operator. A name may have several: one for each key.

    ``serial``      of the certificate, in hexadecimal
    ``thumbprint``  SHA-256 of its key's DER SPKI
    ``by``          who added it
    ``reason``      why it was revoked
    """

    name: str
    serial: str
    thumbprint: bytes
    expires: datetime
    by: str
    revoked: bool = False
    reason: str = ""

    def live(self, now: datetime) -> bool:
        """Return whether the certificate is neither revoked nor expired."""
        return not self.revoked and now < self.expires


class OperatorRegistry:
    """The operators of one coordinator. Safe to use from many threads.

    :param entries: the bodies of the ledger's ``operator`` entries, oldest first.
    :param record: appends to the ledger, durably: ``record(kind, body)``.
    :raises LedgerError: when an entry is none that this class wrote.
    """

    def __init__(
        self,
        *,
        ca: CertificateAuthority,
        entries: Iterable[Mapping[str, Any]],
        record: Callable[[str, Mapping[str, Any]], object],
        clock: Callable[[], datetime],
    ) -> None:
        self._ca = ca
        self._record = record
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Operator] = {}
        for body in entries:
            operator = _operator(body)
            self._known[operator.serial] = operator

    def add(
        self, name: str, csr: bytes, *, by: PeerCertificate | None = None
    ) -> tuple[Operator, IssuedCertificate]:
        """Let an operator in: sign the request ``csr`` (DER) for ``name``.

        ``by`` is the certificate of the operator who does so; ``None`` is the coordinator
        itself, for the first operator and when none is left. A name with a live certificate gets
        another one from its holder only.

        :raises ConfigError: when the name is taken, the request asks for another identity, or
            its key was used before.
        :raises TransportError: when the request is unusable, or ``by`` may act no more.
        """
        checked_name(name, "operator")
        key = csr_key(csr)
        requested_name(csr, expected=name, trust_domain=self._ca.trust_domain)
        now = self._clock()
        with self._lock:
            actor = BY_COORDINATOR if by is None else self._checked(by).name
            mark = thumbprint(spki(key))
            former = next((o for o in self._known.values() if o.thumbprint == mark), None)
            if former is not None:
                raise ConfigError(
                    f"this key was used for operator {former.name} before",
                    key="csr",
                    hint="make a new one: `fedlearn operator request NAME`",
                )
            if actor != name and any(o.name == name and o.live(now) for o in self._known.values()):
                raise ConfigError(
                    f"there is an operator {name} already",
                    key="operator",
                    hint=f"choose another name, or first `fedlearn operator revoke {name}`",
                )
            if sum(o.live(now) for o in self._known.values()) >= MAX_OPERATORS:
                raise ConfigError(f"there are {MAX_OPERATORS} operators already", key="operator")
            issued = self._ca.issue_operator(csr, name=name, now=now)
            operator = Operator(
                name=name,
                serial=f"{issued.serial:x}",
                thumbprint=mark,
                expires=issued.expires,
                by=actor,
            )
            self._record("operator", _body(operator, "added", actor))
            self._known[operator.serial] = operator
        return operator, issued

    def revoke(
        self, *, name: str = "", serial: str = "", reason: str = "", by: PeerCertificate
    ) -> tuple[Operator, ...]:
        """Shut an operator out at once: all certificates of ``name``, or the one ``serial``.

        What the operator did before stays in force: jobs, sites that it approved, and other
        operators that it has added.

        :returns: what was revoked.
        :raises ConfigError: when there is none such, or it is the last one.
        :raises TransportError: when ``by`` may act no more.
        """
        if bool(name) == bool(serial):
            raise ConfigError("name one operator, by name or by serial", key="operator")
        if name:
            checked_name(name, "operator")
        elif _SERIAL.fullmatch(serial) is None:
            raise ConfigError(
                f"{serial[:64]!a} is not a serial number in hexadecimal", key="serial"
            )
        now = self._clock()
        with self._lock:
            actor = self._checked(by)
            named = [o for o in self._known.values() if name == o.name or serial == o.serial]
            if not named:
                raise ConfigError(
                    f"there is no operator with the {'name' if name else 'serial'} "
                    f"{name or serial}",
                    key="operator",
                    hint="`fedlearn operator list` shows them all",
                )
            chosen = [o for o in named if not o.revoked]
            if not chosen:
                raise ConfigError(f"operator {named[0].name} was revoked before", key="operator")
            if not any(o.live(now) for o in self._known.values() if o not in chosen):
                raise ConfigError(
                    f"{chosen[0].name} is the last operator; no other one could be added",
                    key="operator",
                    hint="add another one first: `fedlearn operator add NAME request.csr`",
                )
            ended = []
            for operator in chosen:
                ending = replace(operator, revoked=True, reason=reason[:_SHOWN_REASON])
                self._record("operator", _body(ending, "revoked", actor.name))
                self._known[operator.serial] = ending
                ended.append(ending)
        return tuple(ended)

    def authenticate(self, certificate: PeerCertificate) -> Operator:
        """Return the operator that a certificate belongs to, if it may act now.

        The caller has checked the chain, the trust domain and the dates.

        :raises TransportError: when it was revoked, or is not in the registry.
        """
        with self._lock:
            return self._checked(certificate)

    def list(self) -> tuple[Operator, ...]:
        """Return every certificate of every operator, by name, the newest last."""
        with self._lock:
            return tuple(sorted(self._known.values(), key=lambda o: (o.name, o.expires)))

    def _checked(self, certificate: PeerCertificate) -> Operator:
        """The caller holds the lock."""
        identity = certificate.id
        if not isinstance(identity, OperatorId):
            raise TransportError(f"{identity} is not an operator")
        found = self._known.get(f"{certificate.serial:x}")
        if found is None or (found.name, found.thumbprint) != (
            identity.name,
            certificate.thumbprint,
        ):
            raise TransportError(
                f"this certificate of operator {identity.name} is not in the registry",
                hint="ask another operator for `fedlearn operator add NAME request.csr`",
            )
        if found.revoked:
            why = f": {found.reason}" if found.reason else ""
            raise TransportError(
                f"operator {found.name} was revoked{why}",
                hint="another operator can let you in again, with a new key",
            )
        return found


def requested_name(csr: bytes, *, trust_domain: str, expected: str = "") -> str:
    """Return the operator's name that a request (DER) asks for, or ``expected``.

    The request may name itself in its subject's common name, and in a SAN by the SPIFFE id of
    that operator; anything else in either is refused, so that no operator signs what they did not
    read. To be called after :func:`server.identity.peer_certificates.csr_key`.

    :raises ConfigError: when the request names no operator, or another than ``expected``.
    """
    request = x509.load_der_x509_csr(csr)
    try:
        names = [str(a.value) for a in request.subject if a.oid == NameOID.COMMON_NAME]
        unusual = [a.oid for a in request.subject if a.oid != NameOID.COMMON_NAME]
        extensions = {extension.oid: extension.value for extension in request.extensions}
    except UNREADABLE as error:
        raise ConfigError("the request's subject or extensions are malformed", key="csr") from error
    if len(names) > 1 or unusual:
        raise ConfigError(
            "the request's subject has other parts than one common name",
            key="csr",
            hint="make it with `fedlearn operator request NAME`",
        )
    name = names[0] if names else expected
    if not name:
        raise ConfigError(
            "the request names no operator",
            key="csr",
            hint="make it with `fedlearn operator request NAME`",
        )
    checked_name(name, "csr")
    if expected and name != expected:
        raise ConfigError(f"the request is for {name}, not for {expected}", key="csr")
    alternatives = extensions.pop(x509.SubjectAlternativeName.oid, None)
    if extensions:
        raise ConfigError(
            "the request has extensions; that of an operator must have none",
            key="csr",
            hint="make it with `fedlearn operator request NAME`",
        )
    if isinstance(alternatives, x509.SubjectAlternativeName):
        for asked in alternatives:
            _check_alternative(asked, OperatorId(trust_domain=trust_domain, name=name))
    return name


def _check_alternative(asked: x509.GeneralName, own: OperatorId) -> None:
    value = asked.value if isinstance(asked, x509.UniformResourceIdentifier) else None
    if value == str(own):
        return
    shown = str(value if value is not None else getattr(asked, "value", asked))
    raise ConfigError(
        f"the request asks for the identity {shown[:80]!a}, which is not that of operator "
        f"{own.name}",
        key="csr",
        hint="make it with `fedlearn operator request NAME`",
    )


def _body(operator: Operator, change: str, by: str) -> dict[str, Any]:
    return {
        "operator": operator.name,
        "change": change,
        "serial": operator.serial,
        "key_thumbprint": operator.thumbprint.hex(),
        "expires": operator.expires.isoformat(),
        "added_by": operator.by,
        "by": by,
        **({"reason": operator.reason} if operator.reason else {}),
    }


def _operator(body: Mapping[str, Any]) -> Operator:
    try:
        return Operator(
            name=str(body["operator"]),
            serial=str(body["serial"]),
            thumbprint=bytes.fromhex(body["key_thumbprint"]),
            expires=datetime.fromisoformat(body["expires"]).astimezone(UTC),
            by=str(body["added_by"]),
            revoked=body["change"] == "revoked",
            reason=str(body.get("reason", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            "an entry about an operator is not one that this version can read",
            hint="use the version that wrote it, or a newer one",
        ) from error
