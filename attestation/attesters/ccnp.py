"""Evidence from a CCNP or CIMA server of the node, over its unix socket.

Interface: Container Integrity Measurement Agent (formerly Confidential Cloud-Native
Primitives), ``cima-server.proto`` and ``ccnp-server.proto``: service ``cima`` or ``ccnp`` with
``GetCcReport(container_id, user_data, nonce)`` and ``GetCcEventlog(container_id)``. Nonce and
user data are base64 *texts*; the server puts SHA-512(nonce | user data) into the quote, and
where it isolates containers the container's own register before the nonce.

Our nonce is its nonce, and our digest its user data. The log is converted to a CCEL. The server
counts RTMRs from 0 and lists a container's events under the number of RTMR3; the quoted registers
show which of the two an event extends. :mod:`attestation.logs.accumulator` describes what the
register of a container proves.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from attestation.attesters import ccnp_pb2 as pb
from attestation.attesters.kinds import Found, Options
from attestation.attesters.runtime import RuntimeRegister
from attestation.binding import Bound
from attestation.errors import AttesterError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.accumulator import BANK, CONTAINER
from attestation.logs.eventlog import EV_NO_ACTION, EventLog
from attestation.quotes.dcap import DcapQuote
from attestation.quotes.tdx import TdReport

__all__ = ["CcnpAttester", "SOCKETS", "check_socket", "container_id", "find", "open_attester"]

SOCKETS: Final = (
    Path("/run/cima/uds/cima-server.sock"),
    Path("/run/ccnp/uds/ccnp-server.sock"),
)
"""Where the servers listen."""

_SERVICES: Final = ("cima_server_pb.cima", "ccnp_server_pb.ccnp")
_TDX: Final = 1
_SHA384: Final = 0x000C
_TIMEOUT_S: Final = 30.0
_TRIES: Final = 5
_MAX_MESSAGE: Final = 8 * 1024 * 1024
_MAX_EVENTS: Final = 16 * 1024
_CONTAINER_IMR: Final = 3
_MAX_PROC: Final = 256 * 1024
_OPTIONS: Final = (
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
)
_IDS: Final = (
    (re.compile(r"/docker/containers/([0-9a-f]{64})/"), ""),
    (re.compile(r"/kubelet/pods/([0-9a-f-]{36})/"), "-"),
    (re.compile(r"[/-]([0-9a-f]{64})(?:\.scope)?$", re.MULTILINE), ""),
    (re.compile(r"pod([0-9a-f_-]{36})(?:\.slice|/)"), "-"),
)

_Reply = TypeVar("_Reply", bound=Message)


def container_id(proc: Path = Path("/proc/self")) -> str:
    """Return the id of this container that the servers use.

    It is read from the mounts, then from the control group, of this process; a server
    looks the same id up in its own measurements.

    :raises AttesterError: when this is not a container of Docker or Kubernetes.
    """
    for name in ("mountinfo", "cgroup"):
        try:
            with (proc / name).open("rb") as stream:
                text = stream.read(_MAX_PROC).decode("utf-8", "replace")
        except OSError:
            continue
        for pattern, dash in _IDS:
            if match := pattern.search(text):
                return match[1].replace(dash, "_") if dash else match[1]
    raise AttesterError(
        "this process is in no container of Docker or Kubernetes",
        hint="a CCNP server measures containers; run the client in one",
    )


def check_socket(path: Path) -> None:
    """Check that only root or this user can have put a socket there.

    :raises AttesterError: naming the fault.
    """
    trusted = (0, os.geteuid())
    try:
        socket, folder = path.lstat(), path.parent.lstat()
    except OSError as error:
        raise AttesterError(
            f"{path} cannot be used: {(error.strerror or 'unknown reason').lower()}",
            hint="mount the CCNP server's socket into this container",
        ) from error
    if not stat.S_ISSOCK(socket.st_mode):
        raise AttesterError(f"{path} is not a socket")
    if socket.st_uid not in trusted or folder.st_uid not in trusted:
        raise AttesterError(f"{path} belongs to another user, who could answer in its place")
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise AttesterError(
            f"{path.parent} can be written by others, who could put another socket there",
            hint=f"chmod go-w {path.parent}",
        )


class CcnpAttester:
    """Makes TDX evidence through the server at ``socket``.

    ``container``  its id for this container; found in ``/proc`` when it is left out

    :raises AttesterError: when the socket cannot be trusted or no server answers.
    """

    def __init__(self, socket: Path | None = None, *, container: str = "") -> None:
        self._socket = socket or next((path for path in SOCKETS if path.exists()), SOCKETS[0])
        check_socket(self._socket)
        self._container = container or container_id()
        self._service = _SERVICES[1 if "ccnp" in self._socket.name else 0]
        self._software = RuntimeRegister()

    @property
    def tee(self) -> Tee:
        """Always :attr:`Tee.TDX`: these servers make no other quotes."""
        return Tee.TDX

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` (32 bytes) under ``claim`` into a register of this process.

        A container has no register of its own that it could extend.
        """
        self._software.extend(claim, digest)

    def collect(self, binding: Bound) -> Evidence:
        """Return evidence over ``binding`` and everything measured so far.

        The container's register may be extended between the quote and the log; both are then
        requested again until they agree.

        :raises AttesterError: when the server does not answer, or quote and log do not agree.
        """
        data = self._software.report_data(binding)
        check_socket(self._socket)
        with grpc.insecure_channel(f"unix:{self._socket}", options=_OPTIONS) as channel:
            for _ in range(_TRIES):
                quote = self._report(channel, binding.nonce, data)
                report = _td_report(quote)
                log = _to_ccel(self._events(channel), report)
                register = log.replay(BANK, ccel=True).get(CONTAINER, b"")
                composed = hashlib.sha512(register + binding.nonce + data).digest()
                if report.report_data == composed:
                    whole = self._software.behind(log)
                    return Evidence(tee=Tee.TDX, quote=quote, event_log=whole.to_bytes())
        raise AttesterError(
            "the server's quote is not over our nonce, our data and its log of this container",
            hint="is the server one that composes report data as CCNP and CIMA do?",
        )

    def _report(self, channel: grpc.Channel, nonce: bytes, data: bytes) -> bytes:
        request = pb.GetCcReportRequest(
            container_id=self._container,
            user_data=base64.b64encode(data).decode(),
            nonce=base64.b64encode(nonce).decode(),
        )
        answer = self._call(channel, "GetCcReport", request, pb.GetCcReportResponse)
        if answer.cc_type != _TDX:
            raise AttesterError(f"the server made a report of type {answer.cc_type}, not TDX")
        return answer.cc_report

    def _events(self, channel: grpc.Channel) -> Sequence[pb.TcgEventlog]:
        request = pb.GetCcEventlogRequest(container_id=self._container)
        found = self._call(channel, "GetCcEventlog", request, pb.GetCcEventlogResponse).event_logs
        if len(found) > _MAX_EVENTS:
            raise AttesterError(
                f"the server sent {len(found)} events; at most {_MAX_EVENTS} are read"
            )
        return found

    def _call(
        self, channel: grpc.Channel, method: str, request: Message, reply: type[_Reply]
    ) -> _Reply:
        call = channel.unary_unary(
            f"/{self._service}/{method}", request_serializer=None, response_deserializer=None
        )
        try:
            return reply.FromString(call(request.SerializeToString(), timeout=_TIMEOUT_S))
        except grpc.RpcError as error:
            code = getattr(error, "code", lambda: None)()
            if code is grpc.StatusCode.UNIMPLEMENTED and self._service == _SERVICES[0]:
                self._service = _SERVICES[1]
                return self._call(channel, method, request, reply)
            reason = code.name if code is not None else "unknown"
            raise AttesterError(
                f"the server at {self._socket} answers {method}: {reason}"
            ) from error
        except DecodeError as error:
            raise AttesterError(f"the server's answer to {method} is malformed") from error


def _td_report(quote: bytes) -> TdReport:
    try:
        body = DcapQuote.parse(quote).body
    except EvidenceError as error:
        raise AttesterError(f"the server's quote cannot be read: {error}") from error
    if not isinstance(body, TdReport):
        raise AttesterError("the server's quote is not of a TD")
    return body


def _to_ccel(events: Sequence[pb.TcgEventlog], report: TdReport) -> EventLog:
    """Return the server's events as a CCEL that fits the quote.

    Servers count RTMRs from 0 or as a CCEL does, and list either RTMR3 or the container
    under number 3; the quoted registers show which.
    """
    quoted = dict(enumerate(report.rtmrs, 1))
    for first in (1, 0):
        for last in (_CONTAINER_IMR + 1, CONTAINER):
            log = _convert(events, first, last)
            registers = log.replay(BANK, ccel=True)
            hardware = {index: value for index, value in registers.items() if index != CONTAINER}
            if all(quoted.get(index) == value for index, value in hardware.items()):
                return log
    raise AttesterError(
        "the server's log does not replay to its own quote",
        hint="the firmware's log may be incomplete, or something extended an RTMR unlogged",
    )


def _convert(events: Sequence[pb.TcgEventlog], first: int, last: int) -> EventLog:
    log = EventLog.create((BANK,), index=1)
    for event in events:
        digest = {item.algo_id: item.hash for item in event.digests}.get(_SHA384)
        if event.event_type == EV_NO_ACTION or digest is None:
            continue
        third = event.imr_index + first == _CONTAINER_IMR + 1
        index = last if third else event.imr_index + first
        try:
            log = log.append(index, event.event_type, {BANK: digest}, event.event)
        except ValueError as error:
            raise AttesterError(f"an event of the server: {error}") from error
    return log


def find(listed: Sequence[Path] = SOCKETS) -> Found:
    """See :mod:`attestation.attesters.kinds`."""
    for path in listed:
        if path.exists():
            return Found(kind="ccnp", present=True, why=f"{path} is there")
    return Found(kind="ccnp", present=False, why="no socket of a CCNP or CIMA server")


def open_attester(options: Options) -> CcnpAttester:
    """See :mod:`attestation.attesters.kinds`."""
    return CcnpAttester(options.socket)
