"""Clients without an application, many in one process: admission, renewal, rounds.

As a program it reads one JSON object a line and prints one JSON object for each. The first names
the deployment and its clients; each further one is a command:

``{"do": "admit", "at_once": 16}``      admits every client over a connection of its own
``{"do": "connect"}``                   connects every client to the fleet listener; it then works
``{"do": "renew", "seconds": 20, "minutes": 2}``  renews each client so often, for so long

Evidence is of the ``sample`` kind, and is verified like any other.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from attestation.attesters.sample import SampleAttester  # noqa: E402
from attestation.binding import Binding, Role  # noqa: E402
from edge.client.admission import ClientKeys  # noqa: E402
from edge.protocol.identity import certification_request, key_pem  # noqa: E402
from fedlearn.app.flower import Packer, flatten, inflate  # noqa: E402
from fedlearn.app.message import Head  # noqa: E402
from fedlearn.identity.spiffe import COORDINATOR_DNS  # noqa: E402
from fedlearn.identity.tls import client_context  # noqa: E402
from fedlearn.identity.voucher import sign_voucher  # noqa: E402
from fedlearn.update.frames import body_pieces  # noqa: E402
from fedlearn.wire import fedlearn_pb2 as pb  # noqa: E402
from fedlearn.wire import fedlearn_pb2_grpc as stubs  # noqa: E402

_STUBS: Final[Any] = stubs
HEARTBEAT_SECONDS: Final = 30.0


class Load:
    """A process that simulates clients: this file as a program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, what: str, **options: Any) -> dict[str, Any]:
        """Have a command carried out; return its answer."""
        self.send({"do": what, **options})
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise SystemExit("a process of simulated clients has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, document: dict[str, Any]) -> None:
        """Send one line."""
        if self._process.stdin is None:
            raise SystemExit("the process of simulated clients has no input")
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def load_process(setting: dict[str, Any], cores: Sequence[int]) -> Iterator[Load]:
    """Start a process that simulates clients, on these cores."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, cores)
    try:
        load = Load(process)
        load.send(setting)
        yield load
    finally:
        process.kill()
        process.wait()


# --- one client -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Deployment:
    """What all clients of a run share."""

    gate: str
    roots: bytes
    verifier_id: bytes
    job: str
    workload: bytes
    attester: SampleAttester
    measurements: dict[str, bytes]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Deployment:
        key: Any = load_pem_private_key(given["tee_key"].encode(), None)
        measured = {name: bytes.fromhex(value) for name, value in given["measured"].items()}
        return cls(
            gate=given["gate"],
            roots=given["roots"].encode(),
            verifier_id=bytes.fromhex(given["verifier_id"]),
            job=given["job"],
            workload=bytes.fromhex(given["workload"]),
            attester=SampleAttester(key, bytes.fromhex(given["hardware_id"]), measured),
            measurements=measured,
        )


class Client:
    """One simulated client of one site."""

    def __init__(self, deployment: Deployment, site: dict[str, str]) -> None:
        self.of = deployment
        self.site = site["name"]
        self.site_key: Any = load_pem_private_key(site["key"].encode(), None)
        self.keys = ClientKeys.fresh()
        self.csr = certification_request(self.keys.tls)
        self.admitted: Any = None
        self.rounds = 0

    def request(self, nonce: bytes, *, voucher: bool) -> pb.AdmitRequest:
        """Return the answer to a challenge."""
        of, keys = self.of, self.keys
        evidence = of.attester.collect(
            Binding(
                role=Role.CLIENT,
                nonce=nonce,
                verifier_id=of.verifier_id,
                tls_key=keys.tls_key,
                hpke_key=keys.hpke_key,
                node_id=self.site,
                workload=of.workload,
            )
        )
        signed = sign_voucher(
            self.site_key,
            job=of.job,
            site=self.site,
            client="c1",
            nonce=nonce,
            tls_key=keys.tls_key,
        )
        return pb.AdmitRequest(
            job=of.job,
            site=self.site,
            client="c1",
            nonce=nonce,
            csr=self.csr,
            hpke_key=keys.hpke_key,
            evidence=evidence.to_bytes(),
            site_voucher=signed if voucher else b"",
        )

    async def admit(self) -> None:
        """Be admitted over a connection of its own."""
        async with _channel(self.of.gate, self.of.roots) as channel:
            gate = _STUBS.GateStub(channel)
            challenge = pb.ChallengeRequest(job=self.of.job, site=self.site)
            nonce = (await _taken(gate.Challenge, lambda: challenge)).nonce
            request = self.request(nonce, voucher=True)
            self._admitted(await _taken(gate.Admit, lambda: request))

    async def commit(self) -> None:
        """Commit to data, without which no round asks the site."""
        async with self._control() as control:
            request = pb.CommitDataRequest(
                job=self.of.job, root=os.urandom(32), records=1, examples=100
            )
            await _taken(control.CommitData, lambda: request)

    async def renew(self) -> None:
        """Attest again, over the control listener."""
        async with self._control() as control:
            nonce = (await _taken(control.Challenge, pb.Empty)).nonce
            request = self.request(nonce, voucher=False)
            self._admitted(await _taken(control.Renew, lambda: request))

    @contextlib.asynccontextmanager
    async def _control(self) -> AsyncIterator[Any]:
        async with _channel(
            self.admitted.control_address,
            self.of.roots,
            key=key_pem(self.keys.tls),
            chain=self.admitted.certificate_chain,
        ) as channel:
            yield _STUBS.ClientsStub(channel)

    def _admitted(self, reply: pb.AdmitReply) -> None:
        if reply.WhichOneof("outcome") != "admitted":
            raise SystemExit(f"client of {self.site} is refused: {reply.refused.reason}")
        self.admitted = reply.admitted

    async def work(self, ready: asyncio.Event) -> None:
        """Connect to the fleet listener, then answer every question with random arrays."""
        fleet = FleetConnection(self)
        await fleet.open()
        await fleet.post("activate-node", json.dumps({"interval": HEARTBEAT_SECONDS}).encode())
        ready.set()
        while True:
            try:
                status, body = await fleet.post("fetch", b"")
            except (asyncio.IncompleteReadError, ConnectionError):
                return  # the end of the job has ended the admission, and with it the connection
            if status in (401, 410):
                return
            if status == 200:
                frames = _frames(body)
                status, _ = await fleet.post("deliver", _reply(frames))
                if status != 200:
                    raise SystemExit(f"a delivery of {self.site} was answered {status}")
                self.rounds += 1


def _channel(
    address: str, roots: bytes, *, key: bytes | None = None, chain: bytes | None = None
) -> Any:
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(roots, key, chain),
        [
            ("grpc.ssl_target_name_override", COORDINATOR_DNS),
            ("grpc.default_authority", COORDINATOR_DNS),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


async def _taken(method: Any, request: Any) -> Any:
    """Call until the coordinator has taken the call; pause when it has too many."""
    pause = 0.05
    while True:
        try:
            return await method(request(), timeout=120)
        except grpc.aio.AioRpcError as error:
            busy = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            if error.code() not in busy:
                raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 2.0)


# --- the fleet listener ---------------------------------------------------------------------------


class FleetConnection:
    """One connection to the fleet listener, over asyncio."""

    def __init__(self, client: Client) -> None:
        self._client = client
        pem = client.keys.tls.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self._key = base64.b64encode(pem).decode()
        self._reader: Any = None
        self._writer: Any = None

    async def open(self) -> None:
        """Connect, with the certificate of the client."""
        admitted = self._client.admitted
        host, _, port = admitted.fleet_address.rpartition(":")
        context = client_context(
            x509.load_pem_x509_certificates(admitted.certificate_chain),
            self._client.keys.tls,
            x509.load_pem_x509_certificates(self._client.of.roots),
        )
        self._reader, self._writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=COORDINATOR_DNS, ssl_handshake_timeout=120
        )

    async def post(self, action: str, body: bytes) -> tuple[int, bytes]:
        """Make one request; return its status and body."""
        head = (
            f"POST /v1/fleet/{action} HTTP/1.1\r\nhost: fleet\r\n"
            f"content-length: {len(body)}\r\nflwr-public-key: {self._key}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        length = next((line for line in lines if line.startswith("content-length:")), "x:0")
        found = await self._reader.readexactly(int(length.partition(":")[2]))
        return int(lines[0].split()[1]), found


_GENERATOR: Final = np.random.default_rng()


def _frames(body: bytes) -> list[bytes]:
    """Return the frames of a body."""
    found, start = list[bytes](), 0
    while start < len(body):
        end = start + 8 + int.from_bytes(body[start : start + 8])
        found.append(body[start + 8 : end])
        start = end
    return found


def _reply(frames: list[bytes]) -> bytes:
    """Return the delivery that answers a message: random arrays of the same shapes."""
    head = Head.from_bytes(frames[0])
    asked = inflate(frames[0], dict(zip(head.parts, frames[1:], strict=True)))
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    from fedlearn.app.flower import Array, unpack

    content = unpack(asked.content, max_bytes=2**30)
    arrays = {
        name: Array(_GENERATOR.random(array.shape, np.float32))
        for name, array in content["arrays"].items()
    }
    record = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 10})}
    )
    answered = Message(Packer().content(record), reply_to=asked)
    parts = flatten([answered]).frames(0)
    return b"".join(body_pieces(parts, most=2**20))


# --- the program ----------------------------------------------------------------------------------


class Program:
    """Runs the commands."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.deployment = Deployment.of(given)
        self.clients = [Client(self.deployment, site) for site in given["sites"]]
        self.tasks: set[asyncio.Task[None]] = set()

    async def ready(self) -> dict[str, Any]:
        """Answer when every client has its keys."""
        return {"clients": len(self.clients)}

    async def admit(self, at_once: int) -> dict[str, Any]:
        """Admit every client."""
        places = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with places:
                await client.admit()

        began = time.monotonic()
        await asyncio.gather(*(one(client) for client in self.clients))
        return {"seconds": time.monotonic() - began, "admitted": len(self.clients)}

    async def commit(self, at_once: int) -> dict[str, Any]:
        """Commit to the data of every client."""
        places = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with places:
                await client.commit()

        await asyncio.gather(*(one(client) for client in self.clients))
        return {"committed": len(self.clients)}

    async def connect(self, at_once: int) -> dict[str, Any]:
        """Connect every client to the fleet listener; its work goes on in the background."""
        places = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with places:
                ready = asyncio.Event()
                self.tasks.add(asyncio.create_task(client.work(ready)))
                await ready.wait()

        began = time.monotonic()
        await asyncio.gather(*(one(client) for client in self.clients))
        return {"seconds": time.monotonic() - began, "connected": len(self.clients)}

    async def renew(self, seconds: float, minutes: float) -> dict[str, Any]:
        """Renew each client every ``seconds``, spread over time."""
        renewed = 0
        end = time.monotonic() + 60 * minutes

        async def one(client: Client) -> None:
            nonlocal renewed
            await asyncio.sleep(random.uniform(0, seconds))
            while time.monotonic() < end:
                began = time.monotonic()
                await client.renew()
                renewed += 1
                # Not beyond the end: whoever renewed first would be late before the last is done.
                pause = min(began + seconds, end) - time.monotonic()
                await asyncio.sleep(max(0.0, pause))

        await asyncio.gather(*(one(client) for client in self.clients))
        return {"renewed": renewed}

    async def wait(self) -> dict[str, Any]:
        """Wait until the job has ended for every client."""
        await asyncio.gather(*self.tasks)
        return {"rounds": sorted({client.rounds for client in self.clients})}


async def main() -> None:
    """Read orders until the input ends."""
    program = Program(json.loads(await asyncio.to_thread(sys.stdin.readline)))
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        found = await getattr(program, order.pop("do"))(**order)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
