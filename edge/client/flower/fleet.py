"""The client's side of the coordinator's fleet server: a few actions over mutual TLS.

The format of requests and answers is described in ``server.flower.exchange.nodes``.

A certificate is renewed while work goes on: :meth:`Fleet.renew` makes new connections with the
new certificate and lets those that are in use finish. The coordinator is identified by its CA and
the name :data:`fedlearn.identity.spiffe.COORDINATOR_DNS`, whatever its address is.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn.app.message import Flat, Head
from fedlearn.errors import AdmissionDenied, FedlearnError, TransportError, UpdateRejected
from fedlearn.identity import spiffe
from fedlearn.identity.tls import client_context
from fedlearn.sandbox.memory_file import Part
from fedlearn.update.frames import FrameReader, frames_length, write_frames

__all__ = ["HEARTBEAT_SECONDS", "Ended", "Fleet", "Identity", "Work"]

HEARTBEAT_SECONDS: Final = 30.0
"""The interval that a client announces; it sends a heartbeat three times as often."""

_CONNECT_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 30.0
_FETCH_SECONDS: Final = 60.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_REASON: Final = 1000
_INTERVAL: Final = json.dumps({"interval": HEARTBEAT_SECONDS}).encode()


class Ended(FedlearnError):
    """The coordinator has no more work for this client."""

    code = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A client's certificate chain, leaf first, its key, and the authorities that it trusts."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    authorities: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One received message: its id, its head, and its parts by name."""

    id: str
    head: Part
    objects: dict[str, Part]


class _Session:
    """The connections with one certificate, and the number of calls that use them."""

    def __init__(self, identity: Identity) -> None:
        context = client_context(identity.chain, identity.key, identity.authorities)
        self.client = httpx.Client(
            verify=context,
            timeout=httpx.Timeout(_CALL_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=2 * HEARTBEAT_SECONDS),
            follow_redirects=False,
            trust_env=False,
        )
        pem = identity.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.key = base64.b64encode(pem).decode("ascii")
        self.users = 0
        self.retired = False


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
        self._url = f"https://{address}/v1/fleet/"
        self._max = max_message_bytes
        self._lock = threading.Lock()
        self._session = _Session(identity)
        self._active = False

    def renew(self, identity: Identity) -> None:
        """Use another certificate from now on; calls under way finish with the old one.

        Reports at once that this client is connected: its current work may take long, and the
        coordinator treats a client without any connection as lost.
        """
        fresh = _Session(identity)
        with self._lock:
            old, self._session = self._session, fresh
            old.retired = True
            idle = old.users == 0
        try:
            if self._active:
                self.heartbeat()
        finally:
            if idle:
                old.client.close()

    def close(self) -> None:
        """End all connections."""
        self._session.client.close()

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
        """Wait for work; None when there was none for a while."""
        with self._streamed("fetch", b"", 0, _FETCH_SECONDS) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                _body(response, 0)
                return None
            return self._work(response)

    def deliver(self, flat: Flat) -> bool:
        """Send a reply; return False when the coordinator does not wait for it any more.

        :param flat: one message.
        :raises UpdateRejected: when it is larger than the coordinator accepts.
        """
        parts = flat.frames(0)
        size = frames_length(parts)
        if size > self._max:
            raise UpdateRejected(f"the reply has {size} bytes; at most {self._max} are sent")
        body = (bytes(part) for part in write_frames(parts))
        with self._streamed("deliver", body, size, _CALL_SECONDS, gone=False) as response:
            _body(response, _MAX_ANSWER_BYTES)  # an answer that is not read closes the connection
            return response.status_code != httpx.codes.GONE

    def _work(self, response: httpx.Response) -> Work:
        length = _length(response, self._max)
        reader = FrameReader(length)
        frames: list[bytes] = []
        for piece in response.iter_raw():
            frames.extend(reader.feed(piece))
        reader.finish()
        if not frames:
            raise TransportError("the coordinator sent no message")
        head = Head.from_bytes(frames[0])
        if len(frames) != 1 + len(head.parts):
            raise TransportError("the coordinator sent another number of parts than it names")
        return Work(
            id=head.id, head=frames[0], objects=dict(zip(head.parts, frames[1:], strict=True))
        )

    def _post(self, action: str, content: bytes) -> bytes:
        with self._streamed(action, content, len(content), _CALL_SECONDS) as response:
            return _body(response, _MAX_ANSWER_BYTES)

    @contextmanager
    def _streamed(
        self,
        action: str,
        content: bytes | Iterator[bytes],
        length: int,
        seconds: float,
        *,
        gone: bool = True,
    ) -> Iterator[httpx.Response]:
        session = self._borrow()
        headers: Mapping[str, str] = {
            "content-type": "application/octet-stream",
            "content-length": str(length),
            "flwr-public-key": session.key,
            "accept-encoding": "identity",
        }
        timeout = httpx.Timeout(_CALL_SECONDS, connect=_CONNECT_SECONDS, read=seconds)
        try:
            with session.client.stream(
                "POST",
                self._url + action,
                content=content,
                headers=headers,
                timeout=timeout,
                extensions={"sni_hostname": spiffe.COORDINATOR_DNS},
            ) as response:
                _check(response, gone=gone)
                yield response
        except AdmissionDenied as denied:
            if session.retired:  # renewed while this call was under way
                raise TransportError("the certificate was replaced") from denied
            raise
        except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
            raise TransportError(
                f"the coordinator cannot be reached: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._give_back(session)

    def _borrow(self) -> _Session:
        with self._lock:
            self._session.users += 1
            return self._session

    def _give_back(self, session: _Session) -> None:
        with self._lock:
            session.users -= 1
            done = session.retired and session.users == 0
        if done:
            session.client.close()


def _check(response: httpx.Response, *, gone: bool) -> None:
    status = response.status_code
    if status < httpx.codes.BAD_REQUEST or (status == httpx.codes.GONE and not gone):
        return
    reason = _body(response, _MAX_ANSWER_BYTES).decode(errors="replace")[:_MAX_REASON]
    if status == httpx.codes.UNAUTHORIZED:
        raise AdmissionDenied(reason)
    if status == httpx.codes.GONE:
        raise Ended(reason)
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        raise UpdateRejected(reason)
    raise TransportError(f"the coordinator answered {status}: {reason}")


def _body(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > limit:
            raise TransportError(f"an answer of more than {limit} bytes")
    return bytes(body)


def _length(response: httpx.Response, limit: int) -> int:
    text = response.headers.get("content-length", "")
    if not text.isdecimal() or int(text) > limit:
        raise TransportError(f"a message of {text[:20] or 'unknown'} bytes; at most {limit}")
    return int(text)
