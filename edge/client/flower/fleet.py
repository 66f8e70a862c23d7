"""The client's side of the coordinator's fleet server: a few actions over mutual TLS.

The format of requests and answers is described in ``server.flower.exchange.nodes``.

A certificate is renewed while work goes on: :meth:`Fleet.renew` makes new connections with the
new certificate and lets those that are in use finish. A transfer that was cut off goes on where it
ended, with whichever certificate.
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from edge.client.flower.fleet_session import Answer, Identity, Session
from fedlearn.app.message import Flat
from fedlearn.app.message_reader import MessageReader
from fedlearn.errors import AdmissionDenied, FedlearnError, TransportError, UpdateRejected
from fedlearn.sandbox.memory_file import Buffer, Part
from fedlearn.update.frames import body_pieces, frames_length

__all__ = ["HEARTBEAT_SECONDS", "Ended", "Fleet", "Identity", "Work"]

HEARTBEAT_SECONDS: Final = 30.0
"""The interval that a client announces; it sends a heartbeat three times as often."""

_CALL_SECONDS: Final = 30.0
_FETCH_SECONDS: Final = 60.0
_PIECE_BYTES: Final = 1024 * 1024
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_REASON: Final = 1000
_NOTHING_TO_RESUME: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
"""The answers of a coordinator that does not know an action, and of one that has nothing kept."""

_INTERVAL: Final = json.dumps({"interval": HEARTBEAT_SECONDS}).encode()


class Ended(FedlearnError):
    """The coordinator has no more work for this client."""

    code = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One received message: its id, its head, and its parts by name."""

    id: str
    head: Part
    objects: dict[str, Part]


class CannotResume(TransportError):
    """A transfer cannot go on where it was cut; it begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delivery:
    """A delivery that may be continued: what is sent, and the name that it has."""

    flat: Flat
    name: str


class Fleet:
    """The actions of a client. Safe to use from many threads.

    Every method raises

    * :class:`AdmissionDenied` when the coordinator does not accept the certificate,
    * :class:`Ended` when the job has ended for this client,
    * :class:`TransportError` when it cannot be reached or its answer is malformed; try again.

    :param address: ``host:port`` of the fleet server.
    :param max_message_bytes: the most bytes that one message may have with all its objects.
    """

    def __init__(self, address: str, identity: Identity, *, max_message_bytes: int) -> None:
        self._address = address
        self._max = max_message_bytes
        self._lock = threading.Lock()
        self._session = Session(address, identity)
        self._users = {self._session: 0}
        self._active = False
        self._fetched: MessageReader | None = None
        self._delivery: _Delivery | None = None

    def renew(self, identity: Identity) -> None:
        """Use another certificate from now on; calls under way finish with the old one.

        Reports at once that this client is connected: its current work may take long, and the
        coordinator treats a client without any connection as lost.
        """
        fresh = Session(self._address, identity)
        with self._lock:
            old, self._session = self._session, fresh
            self._users[fresh] = 0
        try:
            if self._active:
                self.heartbeat()
        finally:
            self._close_unused(old)

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            sessions = list(self._users)
        for session in sessions:
            session.close()

    def activate(self) -> tuple[int, int]:
        """Report that this client is connected; return the numbers of its node and of the run."""
        answer = self._post("activate-node", _INTERVAL)
        try:
            found = json.loads(answer)
            node, run = int(found["node"]), int(found["run"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise TransportError("the coordinator's answer has no node number") from None
        self._active = True
        return node, run

    def heartbeat(self) -> None:
        """Report that this client is still connected."""
        self._post("send-node-heartbeat", _INTERVAL)

    def fetch(self) -> Work | None:
        """Wait for work; None when there was none for a while.

        A message that was cut off goes on where it ended.
        """
        cut, self._fetched = self._fetched, None
        if cut is not None:
            try:
                return self._fetch(cut)
            except CannotResume:
                pass
        return self._fetch(None)

    def deliver(self, flat: Flat) -> bool:
        """Send a reply; return False when the coordinator does not wait for it any more.

        Repeated with the same object after it was cut off, it goes on where the coordinator has it.

        :param flat: one message.
        :raises UpdateRejected: when it is larger than the coordinator accepts.
        """
        parts = flat.frames(0)
        size = frames_length(parts)
        if size > self._max:
            raise UpdateRejected(f"the reply has {size} bytes; at most {self._max} are sent")
        delivery, offset = self._delivery, 0
        if delivery is not None and delivery.flat is flat:
            offset = self._offset(delivery.name, size)
        else:
            delivery = _Delivery(flat=flat, name=secrets.token_hex(16))
        self._delivery = delivery
        try:
            taken = self._send(delivery.name, parts, size, offset)
        except CannotResume:
            taken = self._send(delivery.name, parts, size, 0)
        self._delivery = None
        return taken

    def _send(self, name: str, parts: Sequence[Part], size: int, offset: int) -> bool:
        body = body_pieces(parts, most=_PIECE_BYTES, start=offset)
        headers = {"fedlearn-delivery": name, "fedlearn-offset": str(offset)}
        with self._call(
            "deliver", body, size - offset, _CALL_SECONDS, gone=False, headers=headers
        ) as answer:
            answer.read(_MAX_ANSWER_BYTES)  # an answer that is not read closes the connection
            return answer.status != HTTPStatus.GONE

    def _offset(self, name: str, size: int) -> int:
        """Ask from where a delivery goes on; 0 where the coordinator cannot tell."""
        body = json.dumps({"delivery": name, "length": size}).encode()
        try:
            text = self._post("delivery-offset", body)
        except (CannotResume, Ended):
            return 0  # the answer to the delivery itself states why
        try:
            offset = int(json.loads(text)["offset"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise TransportError("the coordinator's answer has no offset") from None
        if not 0 <= offset < size:
            raise TransportError(f"the coordinator names an offset of {offset} of {size} bytes")
        return offset

    def _fetch(self, cut: MessageReader | None) -> Work | None:
        """Fetch a message, or the rest of one."""
        body = b""
        if cut is not None and cut.head is not None:
            rest = {"question": cut.head.id, "offset": cut.received}
            body = json.dumps(rest).encode()
        with self._call("fetch", [body], len(body), _FETCH_SECONDS) as answer:
            if answer.status == HTTPStatus.NO_CONTENT:
                answer.read(0)
                return None
            offset = answer.header("fedlearn-offset")
            length = self._length(answer)
            if cut is not None and offset:
                if (offset, length) != (str(cut.received), cut.length - cut.received):
                    raise CannotResume("the coordinator goes on at another byte")
                reader = cut
            else:
                reader = MessageReader(length)
            try:
                _read(answer, reader)
            except (OSError, http.client.HTTPException, TransportError):
                self._fetched = reader if reader.resumable else None
                raise
        head, data, parts = reader.finish()
        return Work(id=head.id, head=data, objects=dict(zip(head.parts, parts, strict=True)))

    def _post(self, action: str, content: bytes) -> bytes:
        with self._call(action, [content], len(content), _CALL_SECONDS) as answer:
            return answer.read(_MAX_ANSWER_BYTES)

    @contextmanager
    def _call(
        self,
        action: str,
        body: Iterable[Buffer],
        length: int,
        seconds: float,
        *,
        gone: bool = True,
        headers: dict[str, str] | None = None,
    ) -> Iterator[Answer]:
        session = self._borrow()
        sent = {
            "content-type": "application/octet-stream",
            "content-length": str(length),
            "flwr-public-key": session.key,
            "accept-encoding": "identity",
            **(headers or {}),
        }
        try:
            with session.post(
                f"/v1/fleet/{action}",
                body,
                headers=sent,
                seconds=_CALL_SECONDS,
                answer_seconds=seconds,
            ) as answer:
                _check(answer, gone=gone)
                yield answer
        except AdmissionDenied as denied:
            if session is not self._session:  # renewed while this call was under way
                raise TransportError("the certificate was replaced") from denied
            raise
        except (OSError, http.client.HTTPException) as error:
            raise TransportError(
                f"the coordinator cannot be reached: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._give_back(session)

    def _length(self, answer: Answer) -> int:
        length = answer.length
        if length is None or length > self._max:
            found = "unknown" if length is None else str(length)
            raise TransportError(f"a message of {found[:20]} bytes; at most {self._max}")
        return length

    def _borrow(self) -> Session:
        with self._lock:
            self._users[self._session] += 1
            return self._session

    def _give_back(self, session: Session) -> None:
        with self._lock:
            self._users[session] -= 1
        self._close_unused(session)

    def _close_unused(self, session: Session) -> None:
        """Close the connections of a certificate that was replaced, after their last call."""
        with self._lock:
            unused = session is not self._session and self._users.get(session) == 0
            if unused:
                del self._users[session]
        if unused:
            session.close()


def _read(answer: Answer, reader: MessageReader) -> None:
    """Feed a body to its reader, which writes a piece while the next one arrives."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for piece in answer.pieces():
            if writing is not None:
                writing.result()
            writing = writer.submit(reader.feed, piece)
        if writing is not None:
            writing.result()


def _check(answer: Answer, *, gone: bool) -> None:
    status = answer.status
    if status < HTTPStatus.BAD_REQUEST or (status == HTTPStatus.GONE and not gone):
        return
    reason = answer.read(_MAX_ANSWER_BYTES).decode(errors="replace")[:_MAX_REASON]
    if status == HTTPStatus.UNAUTHORIZED:
        raise AdmissionDenied(reason)
    if status == HTTPStatus.GONE:
        raise Ended(reason)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise UpdateRejected(reason)
    kind = CannotResume if status in _NOTHING_TO_RESUME else TransportError
    raise kind(f"the coordinator answered {status}: {reason}")
