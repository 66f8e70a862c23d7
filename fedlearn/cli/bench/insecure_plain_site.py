"""A site of the comparison: ``python -m fedlearn.cli.bench.insecure_plain_site``.

Insecure: the app runs in this process, with no sandbox, and believes the port that it connects to.
It reads one line of JSON, loads the app, connects, and answers messages until the connection ends;
its processor seconds go back with each answer. With ``evidence`` it first shows the evidence of its
simulated machine, and verifies that of the other side.
"""

from __future__ import annotations

import json
import resource
import socket
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.flower import Packer, flatten, inflate, unpack
from fedlearn.app.install import Installed
from fedlearn.app.message import Head
from fedlearn.cli.bench.insecure_evidence import Machine
from fedlearn.cli.bench.insecure_link import Link
from fedlearn.errors import JobError

_MOST_BYTES: Final = 1 << 33


def main() -> int:
    """Answer until the connection ends."""
    given = json.loads(sys.stdin.readline())
    installed = Installed(
        folder=Path(given["folder"]),
        name="plain",
        serverapp="",
        clientapp=given["clientapp"],
        config={},
    )
    TaskIdentity.run_id = TaskIdentity.task_id = 1
    TaskIdentity.node_id = given["node"]
    app: Any = installed.load("clientapp")
    context = Context(
        run_id=1,
        node_id=given["node"],
        node_config=given["node_config"],
        state=RecordDict(),
        run_config=given["run_config"],
    )
    link = Link(_connected(given))
    link.send([str(given["node"]).encode()])
    if given["evidence"]:
        _attest(link, given["evidence"])
    training = 0.0
    while (frames := link.receive()) is not None:
        head = Head.from_bytes(frames[0])
        message = inflate(frames[0], dict(zip(head.parts, frames[1:], strict=True)))
        message.content = unpack(message.content, max_bytes=_MOST_BYTES)
        started = time.process_time()
        reply = app(message, context)
        training += time.process_time() - started
        if reply.has_error():
            raise JobError(f"the app answered with an error: {reply.error.reason}")
        content = Packer().content(reply.content)
        answer = flatten([Message(content, dst_node_id=0, message_type=MessageType.QUERY)])
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = {"app": training, "site": used.ru_utime + used.ru_stime - training, "link": link.cpu}
        link.send([json.dumps(cpu).encode(), *answer.frames(0)])
    return 0


def _connected(given: dict[str, Any]) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", given["port"]))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not given["tls"]:
        return raw
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=given["tls"]["ca"])
    context.load_cert_chain(given["tls"]["file"])
    return context.wrap_socket(raw, server_hostname="localhost")


def _attest(link: Link, given: dict[str, Any]) -> None:
    """Verify the coordinator's evidence, then answer its challenge."""
    machine = Machine.of(given)
    frames = link.receive()
    if frames is None:
        raise JobError("the coordinator ended before it had shown evidence")
    started = time.perf_counter()
    machine.verify(frames[0], now=datetime.now(UTC))
    verified = time.perf_counter()
    evidence = machine.collect()
    seconds = (verified - started, time.perf_counter() - verified)
    link.send([evidence, *(str(each).encode() for each in seconds)])


if __name__ == "__main__":
    sys.exit(main())
