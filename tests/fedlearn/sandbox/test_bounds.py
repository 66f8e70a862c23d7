"""A sandboxed program is ended when it exceeds a bound, and nothing outlives it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from fedlearn.sandbox import (
    Sandbox,
    free_user,
    spawn,
)
from fedlearn.sandbox.user import hidden
from tests.harness.sandbox import (
    NEEDS_SANDBOX,
    Run,
    alive,
    lines,
    run_here,
)

pytestmark = NEEDS_SANDBOX

_STAYS = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]],
                         start_new_session=True, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        os.close(1); os.close(2)
        time.sleep(600)
    os._exit(0)
time.sleep(1)
"""


def test_nothing_outlives_the_first_process(run: Run) -> None:
    marker = f"marker-{uuid.uuid4()}"
    assert run(_STAYS, marker).code == 0
    assert alive(marker) == []


def test_a_kill_ends_all_of_it(tmp_path: Path) -> None:
    marker = f"marker-{uuid.uuid4()}"
    argv = [sys.executable, "-P", "-c", _STAYS + "time.sleep(600)", marker]
    process = spawn(argv, sandbox=Sandbox(writable=(tmp_path,)), env={})
    deadline = time.monotonic() + 20
    while len(alive(marker)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(marker)) >= 3
    started = time.monotonic()
    assert process.kill() == -signal.SIGKILL
    assert time.monotonic() - started < 5
    assert alive(marker) == []
    assert process.why == ""


def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    marker = f"marker-{uuid.uuid4()}"
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from fedlearn.sandbox import Sandbox, spawn
        program, folder, marker = sys.argv[1:]
        spawn([sys.executable, "-P", "-c", program, marker],
              sandbox=Sandbox(writable=(Path(folder),)), env={})
        print("started", flush=True)
        time.sleep(600)
    """)
    arguments = [_STAYS + "time.sleep(600)", str(tmp_path), marker]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(marker) == []


def test_processes_without_end_are_ended(run: Run) -> None:
    code = """
        import os, time
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(600)
            except OSError:
                time.sleep(0.01)
        """
    ran = run(code, processes=100)
    assert ran.code == -signal.SIGKILL
    assert "processes and threads, at most 100" in ran.why


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_compiled_modules_of_ours_do_not_keep_the_user_from_changing() -> None:
    number = free_user()
    assert number is not None
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        module, compiled = package / "module.py", package / "__pycache__"
        compiled.mkdir(mode=0o700)
        module.write_text("")
        module.chmod(0o644)
        package.chmod(0o755)
        assert hidden(number, readable=[], wholly=[package], reachable=[]) == ""
        module.chmod(0o600)
        assert hidden(number, readable=[], wholly=[package], reachable=[]) == str(module)


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_the_kernel_bounds_the_processes_of_another_user(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, time
        made = 0
        try:
            while made < 1000:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except BlockingIOError:
            print("refused after", made)
    """)
    sandbox = Sandbox(writable=(tmp_path,), user=free_user(), processes=50)
    ran = run_here([sys.executable, "-P", "-c", code], sandbox, {}, 30)
    assert lines(ran) == ["refused after 49"]


def test_memory_without_end_is_ended(run: Run) -> None:
    code = """
        import time
        held = []
        while True:
            held.append(bytearray(b"x") * (16 << 20))
            time.sleep(0.02)
        """
    ran = run(code, memory_bytes=300 << 20)
    assert ran.code == -signal.SIGKILL
    assert "of memory, at most 300 MiB" in ran.why


def test_memory_that_processes_share_counts_once(run: Run) -> None:
    code = """
        import os, time
        held = bytearray(b"x") * (150 << 20)
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
        time.sleep(1)
        """
    ran = run(code, memory_bytes=400 << 20)
    assert (ran.code, ran.why) == (0, "")


def test_one_allocation_that_is_far_too_large_fails(run: Run) -> None:
    ran = run("try: bytearray(8 << 30)\nexcept MemoryError: print('refused')", memory_bytes=1 << 30)
    assert ran.output == "refused\n"


def test_disk_without_end_is_ended(run: Run) -> None:
    code = """
        import itertools, time
        for number in itertools.count():
            with open(f"file-{number}", "wb") as target:
                target.write(bytes(4 << 20))
            time.sleep(0.02)
        """
    ran = run(code, disk_bytes=40 << 20)
    assert ran.code == -signal.SIGKILL
    assert "on disk, at most 40 MiB" in ran.why


def test_one_file_that_is_too_large_fails(run: Run) -> None:
    code = """
        try:
            open("large", "wb").truncate(100 << 20)
        except OSError as error:
            print(error.strerror)
        """
    assert lines(run(code, disk_bytes=40 << 20)) == ["File too large"]


def test_processor_time_is_bounded(run: Run) -> None:
    ran = run("while True: pass", cpu_seconds=1)
    assert ran.code in {-signal.SIGXCPU, -signal.SIGKILL}
