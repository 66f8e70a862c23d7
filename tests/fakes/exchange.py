"""Nodes of a job's exchange, as the front would present them, and messages for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from fedlearn.app.flower import Packer, flatten
from fedlearn.app.message import Head
from fedlearn.errors import AdmissionDenied
from fedlearn.sandbox.memory_file import Part
from fedlearn.update.frames import FrameReader, body_pieces
from server.flower.exchange.job_exchange import JobExchange
from server.rpc.fleet_api import Caller

COORDINATOR = 1


def message(
    content: RecordDict, *, to: int, by: int = COORDINATOR, reply_to: str = "", ttl: float = 60.0
) -> Message:
    metadata = Metadata(
        run_id=9,
        message_id="",
        src_node_id=by,
        dst_node_id=to,
        reply_to_message_id=reply_to,
        group_id="1",
        created_at=1.5,
        ttl=ttl,
        message_type="train",
    )
    return Message(metadata=metadata, content=content)


def model() -> RecordDict:
    arrays = ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.int64)])
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"round": 1})})


def ask(
    link: JobExchange, *numbers: int, content: RecordDict | None = None, **more: Any
) -> list[str]:
    """Ask nodes something; one packed model for all of them."""
    packed = Packer().content(model() if content is None else content)
    flat = flatten([message(packed, to=number, **more) for number in numbers])
    return link.push(flat.messages, flat.objects.items())


def body(frames: Iterable[Part]) -> bytes:
    return b"".join(map(bytes, body_pieces(frames, most=1 << 20)))


def frames_of(data: bytes) -> list[bytes]:
    reader = FrameReader(len(data))
    reader.feed(data)
    return list(map(bytes, reader.finish()))


class FakeNode:
    """One node. Its calls go through the ASGI application, as a client's do."""

    def __init__(self, link: JobExchange, site: str) -> None:
        self.link = link
        self.number = link.create_node(site, site.encode())
        self.site = site
        self.live = True
        self.read = 0

    def still_live(self) -> None:
        if not self.live:
            raise AdmissionDenied("planted")

    async def request(
        self,
        action: str,
        pieces: list[bytes],
        *,
        length: int | None = None,
        more: Callable[[], Any] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        keep: Callable[..., Any] = lambda size, drop: None,
    ) -> tuple[int, bytes]:
        """Send a body in pieces; ``more`` is awaited when they are all read, for what follows."""
        scope = {
            "type": "http",
            "path": f"/v1/fleet/{action}",
            "headers": headers,
            "fedlearn.keep": keep,
            "fedlearn.caller": Caller(
                node_id=self.number, site=self.site, still_live=self.still_live, key=b"key"
            ),
            "fedlearn.length": sum(map(len, pieces)) if length is None else length,
        }
        left = list(pieces)
        sent: list[Any] = []

        async def receive() -> Any:
            self.read += 1
            if not left and more is not None:
                return await more()
            piece = left.pop(0) if left else b""
            return {"type": "http.request", "body": piece, "more_body": bool(left) or bool(more)}

        async def send(event: Mapping[str, Any]) -> None:
            sent.append(event)

        await self.link(scope, receive, send)
        if not sent:
            return 0, b""
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent)

    def call(self, action: str, content: bytes = b"", **more: Any) -> tuple[int, bytes]:
        return asyncio.run(self.request(action, [content], **more))

    def activate(self, interval: float = 30) -> None:
        status, answer = self.call("activate-node", json.dumps({"interval": interval}).encode())
        assert (status, json.loads(answer)["node"]) == (200, self.number)

    def fetch(self) -> tuple[int, list[bytes]]:
        """Return the status and the frames of a message; no frames where there is none."""
        status, answer = self.call("fetch")
        return status, frames_of(answer) if status == 200 else []

    def fetched(self) -> str:
        """Fetch a message that must be there; return its id."""
        status, frames = self.fetch()
        assert status == 200
        return Head.from_bytes(frames[0]).id

    def answer(self, question: str, *, by: int | None = None, examples: int = 3) -> list[bytes]:
        """Return the frames of an answer."""
        content = model()
        content["metrics"] = MetricRecord({"num-examples": examples})
        sender = self.number if by is None else by
        packed = Packer().content(content)
        flat = flatten([message(packed, to=COORDINATOR, by=sender, reply_to=question)])
        return [*map(bytes, flat.frames(0))]

    def deliver(self, frames: Iterable[Part]) -> int:
        return self.call("deliver", body(frames))[0]
