"""Export and rotation while the coordinator runs: who may ask for them, and how it ends."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedlearn.cli import main
from fedlearn.errors import ConfigError, FedlearnError, StoreError, TransportError
from server.identity.pki import CertificateAuthority
from server.keys.key_protectors import Passphrase
from server.keys.root_key import RootKey
from server.keys.service import KeyService
from server.ledger import Ledger
from server.maintenance.client import RunningCoordinator
from server.maintenance.listener import MaintenanceListener
from server.maintenance.messages import (
    REQUEST,
    SOCKET_FILE,
    VERSION,
    proof_key,
    receive,
    receive_proven,
    send,
    send_proven,
    short_path,
)
from server.store.models import ModelStore
from tests.harness.bound_state import bound_state

WORDS = "correct horse battery staple"
WEIGHTS = {"w": np.arange(6, dtype=np.float32)}


@dataclass
class Running:
    """A coordinator's state that is open for writing, and served."""

    state: Path
    keys: KeyService
    ledger: Ledger
    store: ModelStore
    listener: MaintenanceListener
    passphrase: Path

    @property
    def unlocked(self) -> tuple[str, ...]:
        return ("--state", str(self.state), "--passphrase-file", str(self.passphrase))

    def last(self) -> Any:
        return list(self.ledger.entries())[-1]

    @property
    def client(self) -> RunningCoordinator:
        found = RunningCoordinator.find(self.state, self.keys.root)
        assert found is not None
        return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    # Deeper than the address of a Unix socket.
    state = tmp_path / ("deep-" * 20) / "state"
    state.parent.mkdir()
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(WORDS)
    keys = KeyService.create(state / "keys", [Passphrase(WORDS, 2**15)])
    ca = CertificateAuthority.create("models.example", datetime.now(UTC))
    keys.keep("ca-key", ca.private_bytes())
    (state / "ca.pem").write_bytes(ca.certificate_pem)
    with bound_state(state, keys, signer=ca.file_signer) as (ledger, store):
        store.write("demo", WEIGHTS, round=1)
        store.write("demo", WEIGHTS, round=2, recipients=())
        listener = MaintenanceListener(state, keys.root, store)
        listener.start()
        yield Running(state, keys, ledger, store, listener, passphrase)
        listener.stop()


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    return err


def test_a_model_is_exported_and_the_coordinator_records_it(
    capsys: pytest.CaptureFixture[str], running: Running, tmp_path: Path
) -> None:
    out = tmp_path / "w.safetensors"
    code, _, err = run(capsys, "model", "export", "demo", "--out", out, *running.unlocked)
    assert (code, err) == (0, "")
    assert np.array_equal(safetensors.numpy.load_file(out)["w"], WEIGHTS["w"])
    entry = running.last()
    assert entry.kind == "export"
    assert entry.body == {
        "job": "demo",
        "model": "demo",
        "version": 2,
        "digest": running.store.version("demo").digest.hex(),
        "to": str(out),
    }


def test_a_key_is_rotated_while_the_coordinator_writes(
    capsys: pytest.CaptureFixture[str], running: Running
) -> None:
    before = [stored.key for stored in running.store.versions("demo")]
    over = threading.Event()
    faults: list[Exception] = []

    def train() -> None:
        number = 3
        while not over.is_set():
            try:
                running.store.write("demo", WEIGHTS, round=number)
                running.store.load("demo")
                running.store.prune("demo", keep=3)
            except FedlearnError as error:
                faults.append(error)
            number += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(3):
            code, out, err = run(capsys, "model", "rotate", "demo", *running.unlocked, "--json")
            assert (code, err) == (0, "")
            assert json.loads(out)
    finally:
        over.set()
        thread.join()
    assert faults == []
    after = {stored.key for stored in running.store.versions("demo")}
    assert after.isdisjoint(before)
    assert np.array_equal(running.store.load("demo")["w"], WEIGHTS["w"])
    changes = [entry.body.get("change") for entry in running.ledger.entries(kind="model")]
    assert changes == ["rotated"] * 3


def test_what_the_store_refuses_is_reported(
    capsys: pytest.CaptureFixture[str], running: Running, tmp_path: Path
) -> None:
    assert "no model 'nope'" in refused(capsys, "model", "rotate", "nope", *running.unlocked)
    assert "is not a name" in refused(capsys, "model", "rotate", "../x", *running.unlocked)
    export = ("model", "export", "nope", "--out", tmp_path / "x")
    assert "no model 'nope'" in refused(capsys, *export, *running.unlocked)
    stored = running.store.version("demo")
    body = {"model": "demo", "version": stored.version, "digest": "00" * 32, "to": "x"}
    with pytest.raises(StoreError, match="has another digest at the coordinator"):
        running.client.record("export", body)
    with pytest.raises(StoreError, match="has no version 9"):
        running.client.record("export", {**body, "version": 9})
    with pytest.raises(ConfigError, match="does not know this request"):
        running.client.record("export", {**body, "to": "x" * 5000})
    with pytest.raises(StoreError, match="records no model of a command"):
        running.client.record("model", body)
    assert running.last().kind == "checkpoint"


def test_a_wrong_passphrase_asks_for_nothing(
    capsys: pytest.CaptureFixture[str], running: Running, tmp_path: Path
) -> None:
    running.passphrase.write_text("another passphrase entirely")
    for command in (("export", "demo", "--out", str(tmp_path / "x")), ("rotate", "demo")):
        assert "passphrase is wrong" in refused(capsys, "model", *command, *running.unlocked)
    assert not (tmp_path / "x").exists()
    assert running.last().kind == "checkpoint"


def test_who_lacks_the_root_key_is_refused(running: Running, tmp_path: Path) -> None:
    """Another root key, a proof for another nonce or text, or none."""
    other = RootKey.create(tmp_path / "other", [Passphrase(WORDS, 2**15)])
    with pytest.raises(TransportError, match="does not have the coordinator's root key"):
        RunningCoordinator(running.state, other).rotate("demo")
    key = proof_key(running.keys.root)
    text = json.dumps({"do": "rotate", "model": "demo"})
    messages: tuple[dict[str, Any], ...] = (
        {"text": text, "proof": ""},
        {"text": text, "proof": "00" * 32},
        {"text": text, "proof": "\N{SNOWMAN}"},
        {"text": text},
        {"proof": "00" * 32},
        {},
    )
    for message in messages:
        with connected(running) as connection:
            receive(connection)
            send(connection, message)
            assert "refused" in receive(connection)
    with connected(running) as connection:
        receive(connection)
        body = {"do": "rotate", "model": "demo"}
        send_proven(connection, body, key=key, side=REQUEST, nonce=bytes(32))
        assert "root key" in receive(connection)["refused"]
    assert running.last().kind == "checkpoint"


def test_malformed_messages_end_their_connection_only(running: Running) -> None:
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1x", b"\0\0", b""):
        with connected(running) as connection:
            receive(connection)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass
    running.client.rotate("demo")


def connected(running: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(running.state) as path:
        connection.connect(path)
    return connection


def test_it_is_for_the_user_of_the_coordinator(
    capsys: pytest.CaptureFixture[str], running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = (running.state / SOCKET_FILE).stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    monkeypatch.setattr("server.maintenance.listener.os.geteuid", lambda: 4242)
    err = refused(capsys, "model", "rotate", "demo", *running.unlocked)
    assert "takes requests of its own user only: the coordinator runs as user 4242" in err
    assert "run the command as that user" in err
    assert running.last().kind == "checkpoint"


class Impostor:
    """Listens in place of the coordinator, and does what a test asks for with a connection."""

    def __init__(self, state: Path, act: Callable[[socket.socket], object]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(state) as path:
            Path(path).unlink(missing_ok=True)
            self._socket.bind(path)
        self._socket.listen(4)
        self._act = act
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, EOFError):
                self._act(connection)  # the first connection only looks who listens


def test_a_coordinator_that_stops_meanwhile_is_reported(
    capsys: pytest.CaptureFixture[str], running: Running, tmp_path: Path
) -> None:
    running.listener.stop()

    def stop(connection: socket.socket) -> None:
        send(connection, {"version": VERSION, "nonce": "00" * 32})
        connection.recv(10)

    with Impostor(running.state, stop):
        export = ("model", "export", "demo", "--out", tmp_path / "x")
        err = refused(capsys, *export, *running.unlocked)
        assert "stopped before it answered: nothing was exported" in err
        assert not (tmp_path / "x").exists()
        err = refused(capsys, "model", "rotate", "demo", *running.unlocked)
        assert "the rotation may not be complete; rotate again" in err
    client = RunningCoordinator(running.state, running.keys.root)
    (running.state / SOCKET_FILE).unlink()
    with pytest.raises(StoreError, match="stopped before it answered"):
        client.rotate("demo")


def test_a_reply_that_is_not_the_coordinators_is_refused(running: Running) -> None:
    running.listener.stop()

    def send_done(connection: socket.socket) -> None:
        send(connection, {"version": VERSION, "nonce": "00" * 32})
        receive(connection)
        send(connection, {"text": json.dumps({"done": "rotate"}), "proof": "00" * 32})

    client = RunningCoordinator(running.state, running.keys.root)
    with (
        Impostor(running.state, send_done),
        pytest.raises(TransportError, match="does not have the coordinator's root key"),
    ):
        client.rotate("demo")
    greetings: tuple[tuple[dict[str, Any], str], ...] = (
        ({"version": 2, "nonce": "00"}, "another version"),
        ({"version": VERSION, "nonce": "x"}, "no nonce"),
        ({}, "another version"),
    )
    for greeting, why in greetings:
        with (
            Impostor(running.state, partial(send, message=greeting)),
            pytest.raises(TransportError, match=why),
        ):
            client.rotate("demo")


def test_a_request_is_not_a_reply(running: Running) -> None:
    key, nonce = proof_key(running.keys.root), bytes(32)
    here, there = socket.socketpair()
    with here, there:
        send_proven(here, {"done": "rotate"}, key=key, side=REQUEST, nonce=nonce)
        with pytest.raises(TransportError, match="root key"):
            receive_proven(there, key=key, side=b"fedlearn/maintenance-reply/1\0", nonce=nonce)


def test_without_a_coordinator_a_command_works_by_itself(
    capsys: pytest.CaptureFixture[str], running: Running
) -> None:
    running.listener.stop()
    assert not (running.state / SOCKET_FILE).exists()
    assert RunningCoordinator.find(running.state, running.keys.root) is None
    # What a kill leaves is no coordinator.
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(running.state) as path:
        dead.bind(path)
    dead.close()
    assert RunningCoordinator.find(running.state, running.keys.root) is None
    err = refused(capsys, "model", "rotate", "demo", *running.unlocked)
    assert "another process writes" in err
    again = MaintenanceListener(running.state, running.keys.root, running.store)
    again.start()
    try:
        assert run(capsys, "model", "rotate", "demo", *running.unlocked)[0] == 0
        assert again.fault() == ""
    finally:
        again.stop()


def test_a_rotation_that_is_under_way_is_finished_before_the_end(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, on = threading.Event(), threading.Event()
    rotate = running.store.rotate

    def slow(model: str) -> Any:
        begun.set()
        assert on.wait(10)
        return rotate(model)

    monkeypatch.setattr(running.store, "rotate", slow)
    ended: list[str] = []

    def ask() -> None:
        running.client.rotate("demo")
        ended.append("rotated")

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(10)
    stopping = threading.Thread(target=running.listener.stop)
    stopping.start()
    on.set()
    stopping.join(10)
    asking.join(10)
    assert ended == ["rotated"]
    assert running.last().kind == "model"


def test_a_socket_that_cannot_be_made_is_reported(running: Running, tmp_path: Path) -> None:
    missing = MaintenanceListener(tmp_path / "missing", running.keys.root, running.store)
    with pytest.raises(ConfigError, match="the socket for commands cannot be made"):
        missing.start()
