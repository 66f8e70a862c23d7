"""Whatever the demo starts ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.errors import LaunchError
from fedlearn.local.children import Children, terminate_as_interrupt

_SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
_STUBBORN = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(os.getpid(), flush=True); time.sleep(60)"
)
_PARENT = """
import sys, time
from pathlib import Path
from fedlearn.local.children import Children
with Children(Path(sys.argv[1])) as children:
    children.start("sleeper", [sys.executable, "-c", sys.argv[2]])
    print("started", flush=True)
    time.sleep(60)
"""


def _await(found: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _number(log: Path) -> int:
    _await(lambda: log.exists() and log.read_text().strip().isdigit())
    return int(log.read_text())


def test_children_end_with_the_context(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("sleeper", [sys.executable, "-c", _SLEEPER])
        pid = _number(child.log)
        child.check()
        children.check()
        assert _alive(pid)
    assert not _alive(pid)
    assert child.status is not None


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("stubborn", [sys.executable, "-c", _STUBBORN])
        pid = _number(child.log)
        child.stop(0.3)
        _await(lambda: not _alive(pid))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_end_when_their_parent_is_killed(tmp_path: Path, number: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path), _SLEEPER], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    pid = _number(tmp_path / "sleeper.log")
    parent.send_signal(number)
    parent.wait(10)
    parent.stdout.close()
    _await(lambda: not _alive(pid))


def test_a_child_that_ended_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start(
            "coordinator", [sys.executable, "-c", "import sys; sys.exit('no such port')"]
        )
        assert child.wait(10) == 1
        with pytest.raises(LaunchError, match=r"coordinator ended with status 1:\nno such port"):
            children.check()


def test_a_command_is_run_to_its_end(tmp_path: Path) -> None:
    with Children(tmp_path, {"WHO": "world"}) as children:
        script = "import os; print('hello', os.environ['WHO'])"
        assert children.run("greet", [sys.executable, "-c", script]) == "hello world\n"
        with pytest.raises(LaunchError, match="fail ended with status 3"):
            children.run("fail", [sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(LaunchError, match="did not end within"):
            children.run("slow", [sys.executable, "-c", _SLEEPER], seconds=0.2)


def test_sigterm_is_taken_as_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        _end_myself()
    assert signal.getsignal(signal.SIGTERM) is before


def _end_myself() -> None:
    with terminate_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_what_a_child_started_ends_with_it_in_whatever_session(tmp_path: Path) -> None:
    grandchild = (
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    child = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    with Children(tmp_path / "logs") as children:
        children.start("child", [sys.executable, "-c", child])
        pid = _number(tmp_path / "pid")
        assert _alive(pid)
    _await(lambda: not _alive(pid))
