"""A CCNP or CIMA server on a unix socket: the real protocol, over quotes of our own.

Messages are built from their ``.proto`` definition by the protobuf library, which knows
nothing of how the attester reads and writes them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from attestation.logs.eventlog import EventLog

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: dict[str, _Field.Type.ValueType] = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
    "int32": _Field.TYPE_INT32,
}
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "GetCcReportRequest": [
        ("container_id", 1, "string"),
        ("user_data", 2, "string"),
        ("nonce", 3, "string"),
    ],
    "GetCcReportResponse": [("cc_type", 1, "int32"), ("cc_report", 2, "bytes")],
    "GetCcEventlogRequest": [
        ("container_id", 1, "string"),
        ("start", 2, "uint32"),
        ("count", 3, "uint32"),
    ],
    "TcgDigest": [("algo_id", 1, "uint32"), ("hash", 2, "bytes")],
    "TcgEventlog": [
        ("rec_num", 1, "uint32"),
        ("imr_index", 2, "uint32"),
        ("event_type", 3, "uint32"),
        ("digests", 4, "TcgDigest*"),
        ("event_size", 5, "uint32"),
        ("event", 6, "bytes"),
    ],
    "GetCcEventlogResponse": [("event_logs", 1, "TcgEventlog*")],
}


def messages(package: str) -> dict[str, Any]:
    """Return the message classes of ``package``."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    for name, listed in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for label, number, kind in listed:
            entry = message.field.add(name=label, number=number, label=_Field.LABEL_OPTIONAL)
            if kind in _TYPES:
                entry.type = _TYPES[kind]
            else:
                entry.type, entry.label = _Field.TYPE_MESSAGE, _Field.LABEL_REPEATED
                entry.type_name = f".{package}.{kind.rstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in _MESSAGES
    }


@dataclass
class CcnpServer:
    """Serves ``service`` (``cima`` or ``ccnp``) at ``socket`` while it is entered.

    ``quote``       makes a quote over report data
    ``boot``        the firmware's log, with registers counted as in a CCEL
    ``containers``  digests of each container's events, by its id
    ``isolated``    RTMR2 is withheld, and the container's register goes into report data
    ``raw``         what a method answers instead, as bytes
    """

    socket: Path
    quote: Callable[[bytes], bytes]
    boot: EventLog
    containers: dict[str, list[bytes]] = field(default_factory=dict)
    service: str = "cima"
    isolated: bool = True
    claim_only: bool = False
    seen: list[Any] = field(default_factory=list)
    raw: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> CcnpServer:
        package = f"{self.service}_server_pb"
        self._kinds = messages(package)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                lambda request, context, name=name: self._answer(name, request, context),
                request_deserializer=self._kinds[f"{name}Request"].FromString,
            )
            for name in ("GetCcReport", "GetCcEventlog")
        }
        path = f"{package}.{self.service}"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(path, handlers),)
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> bytes:
        if name in self.raw:
            return self.raw[name]
        return bytes(getattr(self, name)(request, context).SerializeToString())

    def register(self, container: str) -> bytes:
        """Return a container's register."""
        value = bytes(48)
        for digest in self.containers[container]:
            value = hashlib.sha384(value + digest).digest()
        return value

    def GetCcReport(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.seen.append(request)
        if request.container_id not in self.containers:
            context.abort(grpc.StatusCode.UNKNOWN, "Container cannot be found.")
        nonce = base64.b64decode(request.nonce, validate=True)
        if self.isolated and not self.claim_only:
            nonce = self.register(request.container_id) + nonce
        data = base64.b64decode(request.user_data, validate=True)
        quote = self.quote(hashlib.sha512(nonce + data).digest())
        return self._kinds["GetCcReportResponse"](cc_type=1, cc_report=quote)

    def GetCcEventlog(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.container_id not in self.containers:
            context.abort(grpc.StatusCode.UNKNOWN, "Container cannot be found.")
        response = self._kinds["GetCcEventlogResponse"]()
        response.event_logs.add(imr_index=0, event_type=3, event=b"Spec ID Event03\0").digests.add(
            algo_id=4, hash=bytes(20)
        )
        for event in self.boot.events:
            if self.isolated and event.index > 2:
                continue
            self._add(response, event.index - 1, event.type, event.digests["sha384"], event.data)
        if self.isolated:
            for number, digest in enumerate(self.containers[request.container_id]):
                self._add(response, 3, 0x14, digest, f"file {number}".encode())
        return response

    @staticmethod
    def _add(response: Any, index: int, kind: int, digest: bytes, data: bytes) -> None:
        event = response.event_logs.add(
            imr_index=index, event_type=kind, event_size=len(data), event=data
        )
        event.digests.add(algo_id=12, hash=digest)
