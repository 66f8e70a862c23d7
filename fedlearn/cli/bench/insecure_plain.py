"""The job without fedlearn's coordinator: Flower's own loop, with one protection at most.

Insecure, and only what protections are compared with: the ServerApp runs in this process with
Flower's own ``Strategy.start`` and a grid over one TCP connection for each site. Nothing of
it can be reached from a configuration of a coordinator or a site.

A protection is added where fedlearn has it, by fedlearn's own code: TLS on each connection,
evidence both ways before the first round, a sealed and synchronized file for the model of each
round, an entry of the ledger for each update and each round. Its seconds are measured around its
calls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run as FlowerRun

from fedlearn.app.array_records import arrays_of
from fedlearn.app.flower import Packer, flatten, inflate, unpack
from fedlearn.app.install import Installed
from fedlearn.app.install import unpack as install
from fedlearn.app.message import Head
from fedlearn.cli.bench.costs import Run
from fedlearn.cli.bench.insecure_evidence import Machine
from fedlearn.cli.bench.insecure_link import Link
from fedlearn.cli.bench.job import Job
from fedlearn.errors import JobError, LaunchError
from fedlearn.sandbox.memory_file import Part
from fedlearn.sealing import RandomKey, seal
from fedlearn.update import sealed
from fedlearn.update.arrays import digest
from server.flower.ipc.task import enter_run
from server.ledger import LEDGER_FILE, Ledger

__all__ = ["Protections", "run_plain"]

_MOST_BYTES: Final = 1 << 33
_START_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protections:
    """What is on.

    ``tls``       the certificate and key of both ends, PEM in one file
    ``machines``  the coordinator's machine for each site, and each site's own, as JSON
    ``seal``      whether the model of each round is sealed
    ``ledger``    whether updates and rounds are entered
    """

    tls: Path | None = None
    machines: Mapping[str, tuple[dict[str, str], dict[str, str]]] = field(default_factory=dict)
    seal: bool = False
    ledger: bool = False


def run_plain(job: Job, folder: Path, protections: Protections) -> Run:
    """Run the job once.

    :raises LaunchError: when a site does not connect.
    :raises JobError: when it fails.
    """
    folder.mkdir(parents=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        installed = install(job.bundle, folder / "app")
        stack.enter_context(_imports_of(installed.folder))
        config = installed.run_config(job.config)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(_START_SECONDS)
        port = listener.getsockname()[1]
        for index in range(len(job.sites)):
            stack.enter_context(_site(job, index, protections, installed, config, port))
        grid = _PlainGrid(enter_run(1), job, folder, protections, stack)
        pool = stack.enter_context(ThreadPoolExecutor(len(job.sites)))
        grid.connect(listener, pool)
        grid.attest()
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config
        )
        installed.load("serverapp")(grid=grid, context=context)
        return grid.result(began, time.monotonic())


@contextlib.contextmanager
def _imports_of(folder: Path) -> Iterator[None]:
    """A context after which nothing of the app in ``folder`` is imported any more."""
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]


@contextlib.contextmanager
def _site(
    job: Job,
    index: int,
    protections: Protections,
    installed: Installed,
    config: Mapping[str, object],
    port: int,
) -> Iterator[subprocess.Popen[str]]:
    name = job.sites[index]
    given = {
        "folder": str(installed.folder),
        "clientapp": installed.clientapp,
        "node": index + 1,
        "node_config": {
            "partition-id": index,
            "num-partitions": len(job.sites),
            "data": str(job.data[name]),
            "site": name,
        },
        "run_config": dict(config),
        "port": port,
        "tls": _tls_of(protections),
        "evidence": protections.machines[name][1] if protections.machines else None,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "fedlearn.cli.bench.insecure_plain_site"],
        stdin=subprocess.PIPE,
        text=True,
        env=job.environment,
    )
    try:
        if process.stdin is None:
            raise LaunchError("the process of a site has no input")
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.close()
        yield process
    finally:
        process.terminate()
        process.wait()


def _tls_of(protections: Protections) -> dict[str, str] | None:
    if protections.tls is None:
        return None
    text = protections.tls.read_text()
    return {"file": str(protections.tls), "ca": text[text.index("-----BEGIN CERTIFICATE") :]}


class _PlainGrid(Grid):  # type: ignore[misc]
    """Flower's grid over one connection for each site; node N is the N-th site of the job."""

    def __init__(
        self,
        run: FlowerRun,
        job: Job,
        folder: Path,
        protections: Protections,
        stack: contextlib.ExitStack,
    ) -> None:
        self._run, self._job, self._folder = run, job, folder
        self._protections, self._stack = protections, stack
        self._links: dict[int, Link] = {}
        self._model: object = None
        self._versions = 0
        self._owner = X25519PrivateKey.generate().public_key().public_bytes_raw()
        self._pool: ThreadPoolExecutor | None = None
        self._times: list[float] = []
        self._parts: dict[str, float] = {}
        self._once: dict[str, float] = {}
        self._cpu: dict[int, dict[str, float]] = {}
        self._used = _cpu_seconds()
        self._ledger: Ledger | None = None
        if protections.ledger:
            key = ec.generate_private_key(ec.SECP256R1())
            self._ledger = stack.enter_context(Ledger.open(folder / LEDGER_FILE, key))

    def result(self, began: float, ended: float) -> Run:
        """Return what the run took, once the application has returned."""
        rounds = [after - before for before, after in itertools.pairwise([*self._times, ended])]
        if not rounds:
            raise JobError("the application asked no site to train")
        cpu = {"coordinator": _cpu_seconds() - self._used}
        for each in self._cpu.values():
            for name in ("app", "site"):
                cpu[name] = cpu.get(name, 0.0) + each[name]
        moved = sum(link.cpu for link in self._links.values()) + sum(
            c["link"] for c in self._cpu.values()
        )
        parts = {name: seconds / len(rounds) for name, seconds in self._parts.items()}
        return Run(
            start=self._times[0] - began,
            rounds=rounds,
            parts={"CPU of sending and receiving": moved / len(rounds), **parts},
            once=self._once,
            cpu=cpu,
        )

    # --- before the first round -------------------------------------------------------

    def connect(self, listener: socket.socket, pool: ThreadPoolExecutor) -> None:
        """Take the connections of all sites; each states which one it is.

        :raises LaunchError: when a site does not connect.
        """
        self._pool = pool
        context = _server_context(self._protections)
        for _ in self._job.sites:
            try:
                raw, _address = listener.accept()
            except TimeoutError:
                raise LaunchError("a site of the plain run did not connect") from None
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(raw if context is None else context.wrap_socket(raw, server_side=True))
            self._stack.callback(link.close)
            (node,) = link.receive() or [b""]
            self._links[int(node)] = link

    def attest(self) -> None:
        """Show this end's evidence to each site, and examine that of each site.

        :raises AttestationError: when evidence is not genuine.
        :raises AdmissionDenied: when the policy does not affirm it.
        """
        for node, name in enumerate(self._job.sites, 1):
            if name not in self._protections.machines:
                continue
            machine = Machine.of(self._protections.machines[name][0])
            with self._timed_once("coordinator's evidence made"):
                own = machine.collect()
            self._links[node].send([own])
            evidence, verified, made = self._links[node].receive() or [b"", b"0", b"0"]
            self._once["coordinator's evidence verified at sites"] = float(verified)
            self._once["a site's evidence made"] = float(made)
            with self._timed_once("a site's evidence verified"):
                machine.verify(evidence, now=datetime.now(UTC))

    # --- Flower's grid ----------------------------------------------------------------

    def set_run(self, run: FlowerRun) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: Any,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; the constructor of ``Message`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return sorted(self._links)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: an application that drives its rounds itself is not compared."""
        raise JobError("the application sends messages without `strategy.start`")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse, as :meth:`push_messages`."""
        raise JobError("the application sends messages without `strategy.start`")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies of all sites."""
        messages = list(messages)
        if messages and messages[0].metadata.message_type == MessageType.TRAIN:
            self._times.append(time.monotonic())
        self._keep(messages)
        packer, pool = Packer(), self._pool
        if pool is None:
            raise JobError("no site is connected")
        packed = [
            Message(packer.content(m.content), m.metadata.dst_node_id, m.metadata.message_type)
            for m in messages
        ]
        flat = flatten(packed)
        return list(pool.map(self._ask, messages, [flat.frames(n) for n in range(len(packed))]))

    def _ask(self, message: Message, frames: list[Part]) -> Message:
        node = message.metadata.dst_node_id
        link = self._links[node]
        link.send(frames)
        answered = link.receive()
        if answered is None:
            raise JobError(f"the process of {self._job.sites[node - 1]} has ended")
        self._cpu[node] = json.loads(answered[0])
        head = Head.from_bytes(answered[1])
        found = inflate(answered[1], dict(zip(head.parts, answered[2:], strict=True)))
        content = unpack(found.content, max_bytes=_MOST_BYTES)
        if message.metadata.message_type == MessageType.TRAIN and self._ledger is not None:
            arrays = next(iter(content.array_records.values()))
            with self._timed("entry of an update"):
                body = {
                    "site": self._job.sites[node - 1],
                    "digest": digest(arrays_of(arrays)).hex(),
                }
                self._ledger.append("update", {"job": self._job.name, **body})
        # A process that is not Flower's names its messages itself.
        message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        return Message(content, reply_to=message)

    def _keep(self, messages: list[Message]) -> None:
        """Seal and enter the model that these messages carry, if it is a new one."""
        protections = self._protections
        if not messages or not (protections.seal or self._ledger):
            return
        record = next(iter(messages[0].content.array_records.values()), None)
        if record is None or record is self._model:
            return
        self._model = record
        arrays = arrays_of(record)
        self._versions += 1
        if protections.seal:
            with self._timed("sealing of the model"):
                seal(
                    self._folder / "model.flsw",
                    sealed.as_tensors(arrays),
                    model=self._job.name,
                    version=self._versions,
                    round=self._versions,
                    key=RandomKey(),
                    recipients=[self._owner],
                )
        if self._ledger is not None:
            with self._timed("entry of a round"):
                self._ledger.append("round", {"job": self._job.name, "round": self._versions})

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def _timed_once(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._once[name] = time.perf_counter() - started


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _server_context(protections: Protections) -> ssl.SSLContext | None:
    tls = _tls_of(protections)
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=tls["ca"])
    context.load_cert_chain(tls["file"])
    return context
