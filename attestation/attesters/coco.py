"""Evidence from the Confidential Containers attestation agent, over its local REST interface.

Interface: guest-components, ``api-server-rest``; it listens on the pod's loopback address::

    GET  /aa/evidence?runtime_data=TEXT      TEXT, at most 64 bytes, becomes report data
    POST /aa/aael  {"domain", "operation", "content"}    extends the runtime register

TDX evidence is ``{"cc_eventlog": base64 | null, "quote": base64}``. On other platforms the
agent sends the fields of a report and not the report (SEV-SNP), or uses another kind of challenge
(Azure). There use the attesters ``tsm`` and ``azure``, which the error names.

Runtime data is text, so it is the hex of a SHA-256; see :mod:`attestation.logs.accumulator`. What
software measures goes into RTMR3 through the agent, as an AAEL event. An agent that cannot extend
RTMR3 gives no evidence of our measurements: they are then kept in a register of this process,
which report data covers.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import socket
from typing import Any, Final

import httpx

from attestation.attesters.kinds import Found, Options
from attestation.attesters.runtime import RuntimeRegister
from attestation.binding import Bound
from attestation.errors import AttesterError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.accumulator import runtime_text
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import DOMAIN, Measurement

__all__ = ["CocoAttester", "DEFAULT_ADDRESS", "find", "open_attester"]

DEFAULT_ADDRESS: Final = "127.0.0.1:8006"
_CONNECT_S: Final = 0.5
_TIMEOUT_S: Final = 30.0
_MAX_ANSWER: Final = 4 * 1024 * 1024


class CocoAttester:
    """Collects evidence from the agent at ``address``, which must be a loopback address.

    :raises AttesterError: when it is not loopback, does not answer, or answers with evidence
        that is not understood.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        host = address.rpartition(":")[0].strip("[]")
        if not _loopback(host):
            raise AttesterError(
                f"{address} is not a loopback address, so another machine could answer",
                hint=f"the agent listens on {DEFAULT_ADDRESS}",
            )
        self._client = httpx.Client(
            base_url=f"http://{address}",
            timeout=_TIMEOUT_S,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )
        self._tee = self._ask(bytes(64)).tee
        self._software = RuntimeRegister()
        self._measured: dict[str, Measurement] = {}

    @property
    def tee(self) -> Tee:
        """The kind of the agent's evidence."""
        return self._tee

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` (32 bytes) under ``claim`` into RTMR3, else into this process.

        :raises AttesterError: when the agent refuses, or ``claim`` has another value already.
        """
        self._software.extend(claim, digest)
        if claim in self._measured:
            return
        measurement = Measurement(claim=claim, digest=digest)
        _, operation, content = measurement.to_data()[8:].decode().split(" ", 2)
        event = {"domain": DOMAIN, "operation": operation, "content": content}
        try:
            response = self._client.post("/aa/aael", json=event)
        except httpx.HTTPError as error:
            raise _silent(error) from error
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            return
        if response.status_code != httpx.codes.OK:
            raise AttesterError(f"the attestation agent answers {response.status_code}")
        self._measured[claim] = measurement

    def collect(self, binding: Bound) -> Evidence:
        """Return evidence over ``binding`` and everything measured so far.

        :raises AttesterError: when the agent does not answer, or its log lacks what it was
            given to measure.
        """
        software = len(self._measured) < len(self._software.log.events)
        digest = self._software.report_data(binding) if software else binding.report_data()
        answer = self._ask(digest)
        log = EventLog.parse(answer.event_log) if answer.event_log else None
        there = {event.data for event in log.events} if log is not None else set()
        for claim, measurement in self._measured.items():
            if measurement.to_data() not in there:
                raise AttesterError(f"the attestation agent's log does not have {claim}")
        if software:
            log = self._software.behind(log)
        return Evidence(
            tee=answer.tee,
            quote=answer.quote,
            event_log=log.to_bytes() if log is not None else b"",
        )

    def _ask(self, digest: bytes) -> Evidence:
        query = {"runtime_data": runtime_text(digest)}
        try:
            with self._client.stream("GET", "/aa/evidence", params=query) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        raise AttesterError(f"the agent sent more than {_MAX_ANSWER} bytes")
        except httpx.HTTPError as error:
            raise _silent(error) from error
        if response.status_code != httpx.codes.OK:
            raise AttesterError(f"the attestation agent answers {response.status_code}")
        try:
            return _evidence(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise AttesterError("the attestation agent's answer is not JSON") from error


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _silent(error: httpx.HTTPError) -> AttesterError:
    return AttesterError(
        f"the attestation agent does not answer: {type(error).__name__}",
        hint="enable the agent's REST interface in the guest",
    )


def _evidence(document: Any) -> Evidence:
    if not isinstance(document, dict):
        raise AttesterError("the attestation agent's answer is not an object")
    if "hcl_report" in document or "tpm_quote" in document:
        raise AttesterError(
            "the attestation agent runs on Azure, where the vTPM is asked directly",
            hint='use kind = "azure"',
        )
    if "quote" not in document:
        raise AttesterError(
            f"the attestation agent made evidence with {', '.join(sorted(document))[:128]}, which "
            "is not a quote",
            hint='on SEV-SNP use kind = "tsm", which has the raw report',
        )
    log = document.get("cc_eventlog")
    data = _base64(log, "cc_eventlog") if log else b""
    if data:
        try:
            data = EventLog.parse(data).to_bytes()
        except EvidenceError as error:
            raise AttesterError(f"the attestation agent's log: {error}") from error
    return Evidence(tee=Tee.TDX, quote=_base64(document["quote"], "quote"), event_log=data)


def _base64(value: object, field: str) -> bytes:
    if not isinstance(value, str):
        raise AttesterError(f"the attestation agent's {field} is not text")
    text = value.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise AttesterError(f"the attestation agent's {field} is not base64") from None


def find(address: str = "") -> Found:
    """See :mod:`attestation.attesters.kinds`."""
    address = address or DEFAULT_ADDRESS
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
            return Found(kind="coco", present=True, why=f"something listens on {address}")
    except (OSError, ValueError):
        return Found(kind="coco", present=False, why=f"nothing listens on {address}")


def open_attester(options: Options) -> CocoAttester:
    """See :mod:`attestation.attesters.kinds`."""
    return CocoAttester(options.address or DEFAULT_ADDRESS)
