"""The app host: real sockets and real processes, and everything that it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import ConfigError, JobError
from fedlearn.sandbox import SandboxError
from fedlearn.sandbox.process_channel import ChannelClosed, ProcessChannel
from server.flower.application import app_host as apphost
from server.flower.application import hosted
from server.flower.application.app_host import MAX_RECORD, AppHost
from server.flower.application.hosted import AppHostGone, HostedApplication, start_hosted

MIB = 1024 * 1024
REQUEST = {"memory_bytes": 1024 * MIB, "full_sandbox": False}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., AppHost]]:
    found: list[AppHost] = []

    def make(*, most: int = 4) -> AppHost:
        host = AppHost(tmp_path / "own/s", scratch=tmp_path / "scratch", most=most)
        host.start()
        found.append(host)
        return host

    yield make
    for host in found:
        host.close()


@pytest.fixture
def path(made: Callable[..., AppHost], tmp_path: Path) -> Path:
    made()
    return tmp_path / "own/s"


Started = tuple[HostedApplication, ProcessChannel]


def start(path: Path, *, over: threading.Event | None = None, **more: Any) -> Started:
    """Start an application; return it and the aggregator's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        found = start_hosted(
            path,
            aggregator=theirs,
            over=over or threading.Event(),
            **{**REQUEST, "timeout": 0.5, **more},
        )
    return found, ProcessChannel(ours, limit=MIB)


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def reported(path: Path, data: bytes, descriptors: list[int]) -> dict[str, Any]:
    """Return what the app host answers to one packet."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
    with connect(path) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_RECORD)
        connection.sendmsg([data], [rights] if descriptors else [])
        found: dict[str, Any] = json.loads(connection.recv(MAX_RECORD))
        return found


def test_an_application_runs_and_its_end_and_its_words_come_back(
    path: Path, tmp_path: Path
) -> None:
    application, channel = start(path)
    assert application.poll() is None
    ended: int | None = application.returncode
    assert ended is None
    (folder,) = (tmp_path / "scratch").iterdir()
    # The first record that an application gets has to have one blob; this one ends it.
    channel.send({}, [])
    assert application.wait(30) == application.returncode == 1
    assert application.why == ""
    assert application.stdout is not None
    assert b"ValueError" in application.stdout.read()
    wait_until(lambda: not folder.exists())
    channel.close()


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_is_ended_when_asked(path: Path) -> None:
    application, channel = start(path)
    assert application.kill() == -signal.SIGKILL
    assert not Path(f"/proc/{application.pid}").exists()
    with pytest.raises(ChannelClosed):
        channel.send({}, [b"gone"])


def test_the_end_of_the_coordinator_ends_it(tmp_path: Path) -> None:
    code = """
import socket, sys, threading, time
from pathlib import Path
from server.flower.application.hosted import start_hosted
ours, theirs = socket.socketpair()
found = start_hosted(Path(sys.argv[1]), aggregator=theirs, memory_bytes=1 << 30,
                     full_sandbox=False, over=threading.Event())
print(found.pid, flush=True)
time.sleep(600)
"""
    other = tmp_path / "other/s"
    words = ["app-host", "--socket", str(other), "--scratch", str(tmp_path / "o"), "--json"]
    command = [sys.executable, "-m", "server.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["event"] == "listening"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(other)], stdout=subprocess.PIPE
        ) as coordinator:
            assert coordinator.stdout is not None
            supervisor = Path("/proc") / coordinator.stdout.readline().decode().strip()
            assert supervisor.exists()
            coordinator.kill()
            wait_until(lambda: not supervisor.exists())
        assert daemon.poll() is None
        assert not list((tmp_path / "o").iterdir())
        daemon.terminate()
        assert daemon.wait(20) == 0
    assert not other.exists()


@pytest.mark.skipif(
    subprocess.run(
        ["unshare", "--pid", "--ipc", "--mount", "--fork", "--mount-proc", "true"],
        capture_output=True,
        check=False,
    ).returncode
    != 0,
    reason="no PID namespace can be made here",
)
def test_as_the_first_process_of_a_container_it_serves_who_is_outside(tmp_path: Path) -> None:
    path, scratch = tmp_path / "own/s", tmp_path / "scratch"
    command = ["unshare", "--pid", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-m", "server.main", "app-host", "--json"]
    command += ["--socket", str(path), "--scratch", str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["pid"] == 1
        application, channel = start(path)
        other, _other = start(path)
        channel.send({}, [])
        assert application.wait(30) == 1
        daemon.kill()
        assert other.wait(30) == -signal.SIGKILL
        assert other.why == f"the app host at {path} is gone"
    wait_until(lambda: not alive(str(scratch)))


def alive(word: str) -> list[Path]:
    """Return the processes with this word in their command lines."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (each / "cmdline").read_bytes():
                found.append(each)
    return found


def test_a_process_that_it_started_is_refused(path: Path) -> None:
    """The code of a job, where no mount namespace hides the socket."""
    code = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
print(s.recv(1 << 16).decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, check=True, timeout=30
    )
    found = json.loads(done.stdout)
    assert "is one of an application" in found["error"]
    assert found["busy"] is False


def test_a_process_whose_parents_have_ended_is_refused_where_we_adopt_it(path: Path) -> None:
    """As a supervisor does, or the first process of a container."""
    code = """
import ctypes, os, subprocess, sys
from pathlib import Path
from server.flower.application.app_host import AppHost
import socket
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
folder = Path(sys.argv[1])
host = AppHost(folder / "s", scratch=folder.parent / "scratch2", most=1)
host.start()
read, write = os.pipe()
if os.fork() == 0:
    between = os.getpid()
    if os.fork() == 0:
        while os.getppid() == between:
            pass
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.connect(str(folder / "s"))
        os.write(write, s.recv(1 << 16))
    os._exit(0)
print(os.read(read, 1 << 16).decode(), flush=True)
host.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path.parent / "adopting")],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert "is one of an application" in json.loads(done.stdout)["error"]


def test_a_peer_that_lets_a_child_connect_and_end_is_refused(path: Path) -> None:
    code = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    s.connect(sys.argv[1])
    os._exit(0)
os.wait()
print(s.recv(1 << 16).decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["error"].startswith("process ")


def test_another_user_is_refused_on_both_sides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "peer_of", lambda connection: (1, os.geteuid() + 1))
    with pytest.raises(JobError, match=f"runs as user {os.geteuid() + 1}"):
        start(path)
    monkeypatch.undo()
    monkeypatch.setattr(apphost, "peer_of", lambda connection: (0, os.geteuid() + 1))
    with pytest.raises(SandboxError, match="may not start applications"):
        start(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_real_other_user_is_refused(path: Path) -> None:
    path.parent.chmod(0o755)
    path.chmod(0o777)
    for folder in path.parents[1 : len(path.parents) - 2]:
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o011)
    code = """
import os, socket, sys
os.setuid(61234)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
print(s.recv(1 << 16).decode())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(path)],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert "user 61234 may not" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * (MAX_RECORD + 1), "at most"),
        (b"{", "a request is a JSON object"),
        (b"[" * 60_000, "a request is a JSON object"),
        (b"[1]", "a request is a JSON object"),
        (json.dumps({**REQUEST, "argv": ["/bin/sh"]}).encode(), "a request is a JSON object"),
        (json.dumps({"memory_bytes": 1}).encode(), "a request is a JSON object"),
        (json.dumps({**REQUEST, "memory_bytes": 0}).encode(), "memory_bytes"),
        (json.dumps({**REQUEST, "memory_bytes": True}).encode(), "memory_bytes"),
        (json.dumps({**REQUEST, "memory_bytes": 1 << 60}).encode(), "memory_bytes"),
        (json.dumps({**REQUEST, "full_sandbox": 1}).encode(), "full_sandbox"),
    ],
)
def test_a_malformed_request_is_refused(path: Path, data: bytes, message: str) -> None:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    with ours, theirs:
        found = reported(path, data, [theirs.fileno(), write])
    os.close(read)
    os.close(write)
    assert message in found["error"]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_are_counted_and_looked_at(path: Path) -> None:
    data = json.dumps(REQUEST).encode()
    before = descriptors()
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    ends = [theirs.fileno(), write]
    for some in ([], ends[:1], [*ends, write], ends * 40):
        assert "two descriptors" in reported(path, data, some)["error"]
    for wrong in (ends[::-1], [write, write], [ends[0], ends[0]]):
        assert "a socket and a pipe" in reported(path, data, wrong)["error"]
    for end in (ours, theirs):
        end.close()
    os.close(read)
    os.close(write)
    # The app host runs in this process: what it was sent is closed.
    wait_until(lambda: descriptors() <= before)


def test_a_silent_peer_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apphost, "_REQUEST_SECONDS", 0.2)
    with connect(path) as connection:
        assert "no request arrived" in json.loads(connection.recv(MAX_RECORD))["error"]


def test_one_too_many_waits_for_another_one_to_end(
    made: Callable[..., AppHost], tmp_path: Path
) -> None:
    made(most=1)
    path = tmp_path / "own/s"
    first, _first = start(path)
    with pytest.raises(JobError, match="1 applications run already") as found:
        start(path)
    assert not isinstance(found.value, AppHostGone), "it is there, so this is no crash"
    threading.Timer(0.5, first.kill).start()
    second, _second = start(path, timeout=20)
    assert first.poll() is not None
    second.kill()


def test_nobody_there_is_a_crash_that_names_the_socket(tmp_path: Path) -> None:
    with pytest.raises(AppHostGone, match=f"no app host answers at {tmp_path / 's'}: No such"):
        start(tmp_path / "s", timeout=0)
    assert AppHostGone.code == "crashed"
    over = threading.Event()
    over.set()
    began = time.monotonic()
    with pytest.raises(AppHostGone):
        start(tmp_path / "s", timeout=60, over=over)
    assert time.monotonic() - began < 5


def test_an_app_host_that_does_not_answer_counts_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that takes the request, reports that it runs, and then sends nothing more."""
    monkeypatch.setattr(hosted, "_KILL_SECONDS", 0.2)
    monkeypatch.setattr(hosted, "_ANSWER_SECONDS", 0.2)
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    with listener:
        with pytest.raises(AppHostGone, match="timed out"):
            start(path, timeout=0)
        listener.accept()[0].close()
        held: list[socket.socket] = []

        def answer() -> None:
            held.append(listener.accept()[0])
            held[0].recv(MAX_RECORD)
            held[0].send(json.dumps({"pid": 7, "applied": [], "missing": {}, "abi": 0}).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        application, _ = start(path)
        thread.join()
        assert application.kill() == -signal.SIGKILL
        assert application.why == f"the app host at {path} is gone"
        held[0].close()


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"pid": "x"}', b'{"applied": ["new"]}'])
def test_a_malformed_answer_is_refused(tmp_path: Path, answer: bytes) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        with listener.accept()[0] as connection:
            connection.recv(MAX_RECORD)
            connection.send(answer)

    thread = threading.Thread(target=serve)
    with listener:
        thread.start()
        with pytest.raises(JobError, match="malformed"):
            start(tmp_path / "s")
        thread.join()


def test_what_the_sandbox_refuses_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise SandboxError("landlock: the kernel has none")

    monkeypatch.setattr(apphost, "start_application", refuse)
    with pytest.raises(SandboxError, match="the kernel has none"):
        start(path, full_sandbox=True)


def test_its_folder_is_its_own(tmp_path: Path, made: Callable[..., AppHost]) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="not a folder of this user alone"):
        AppHost(shared / "s", scratch=tmp_path / "scratch", most=1)
    with pytest.raises(ConfigError, match="107 bytes"):
        AppHost(tmp_path / ("x" * 120) / "s", scratch=tmp_path / "scratch", most=1)
    made()
    with pytest.raises(ConfigError, match="another app host listens"):
        made()


def test_a_socket_that_a_killed_one_left_is_replaced(
    tmp_path: Path, made: Callable[..., AppHost]
) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(tmp_path / "own/s"))
    made()
    application, _ = start(tmp_path / "own/s")
    application.kill()
