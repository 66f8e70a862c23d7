"""What applications do works in a sandbox, and what cannot be protected is named."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from fedlearn.sandbox import (
    FULL,
    Protection,
    Sandbox,
    SandboxError,
    free_user,
    report,
    spawn,
    thread_environment,
)
from tests.harness.sandbox import (
    NEEDS_SANDBOX,
    Run,
    lines,
    run_here,
    run_without_namespaces,
)

pytestmark = NEEDS_SANDBOX


def test_what_applications_do_works(run: Run) -> None:
    code = """
        import multiprocessing, subprocess, tempfile
        from multiprocessing import shared_memory
        import numpy, torch
        from torch.utils.data import DataLoader, TensorDataset

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(pool.map(double, [1, 2, 3]))
            with multiprocessing.Manager() as manager:
                print(list(manager.list([1, 2])))
            loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2, num_workers=2)
            print(sum(float(batch.sum()) for (batch,) in loader))
            memory = shared_memory.SharedMemory(create=True, size=4096)
            memory.close(); memory.unlink()
            print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout.strip())
            print((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
            with tempfile.NamedTemporaryFile() as file:
                file.write(b"x")
    """
    ran = run(code, env={"PATH": "/usr/bin:/bin"}, seconds=120)
    assert lines(ran) == [
        *["[2, 4, 6]"] * 3,
        "[1, 2]",
        "28.0",
        "hello",
        "27000000.0",
    ]


def test_a_folder_with_a_long_name_has_room_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.Manager() as manager: print(list(manager.list([1])))\n"
    )
    argv = [sys.executable, "-P", str(program)]
    sandbox = Sandbox(writable=(folder,))
    assert run_here(argv, sandbox, {}, 60).output == "[1]\n"
    assert run_without_namespaces(argv, sandbox, {}, 60).output == "[1]\n"


def test_a_passed_descriptor_is_there_and_its_end_is_seen(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    code = "import os, sys, socket; socket.socket(fileno=int(sys.argv[1])).sendall(b'x')"
    with ours:
        with theirs:
            argv = [sys.executable, "-c", code, str(theirs.fileno())]
            process = spawn(
                argv, sandbox=Sandbox(writable=(tmp_path,)), env={}, pass_fds=[theirs.fileno()]
            )
        ours.settimeout(20)
        assert ours.recv(10) == b"x"
        assert ours.recv(10) == b""
        assert process.wait(10) == 0


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["022", "077"])
def test_it_runs_as_another_user_that_owns_its_folder(tmp_path: Path, mask: int) -> None:
    """With the mask of a coordinator, an agent and a client as well, which is 077."""
    before = os.umask(mask)
    try:
        _runs_as_another_user(tmp_path)
    finally:
        os.umask(before)


def _runs_as_another_user(tmp_path: Path) -> None:
    user = free_user()
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups()); open('x', 'w')"
    argv = [sys.executable, "-P", "-c", code]
    ran = run_here(argv, Sandbox(writable=(tmp_path,), user=user), {}, 30)
    assert lines(ran) == [f"{user} {user} []"]
    assert Protection.USER in ran.applied
    assert (tmp_path / "x").stat().st_uid == user
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    (tmp_path / "x").unlink()
    # Without it again, the folder is ours again.
    assert lines(run_here(argv, Sandbox(writable=(tmp_path,)), {}, 30)) == [
        f"{os.getuid()} {os.getgid()} {os.getgroups()}"
    ]


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_data_that_only_this_user_reads_stays_readable(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("1,2")
    (data / "rows.csv").chmod(0o600)
    ran = run(
        "import sys; print(open(sys.argv[1] + '/rows.csv').read())",
        data,
        readable=(data,),
        user=free_user(),
    )
    assert lines(ran) == ["1,2"]
    assert Protection.USER not in ran.applied


def test_the_exit_status_is_that_of_the_program(run: Run) -> None:
    assert run("raise SystemExit(7)").code == 7
    assert run("import os; os.kill(os.getpid(), 15)").code == -15


def test_a_protection_that_is_required_and_missing_is_named(tmp_path: Path) -> None:
    sandbox = Sandbox(writable=(tmp_path,), required=FULL)
    ran = run_without_namespaces([sys.executable, "-c", "print('ran')"], sandbox, {}, 30)
    assert ran.code == -1
    assert "pid-namespace" in ran.why
    assert "required" in ran.why
    assert "ran" not in ran.output.split()


def test_the_report_states_what_is_missing_and_why() -> None:
    found = report()
    assert found.applied | set(found.missing) == set(Protection)
    for name, why in found.missing.items():
        assert why
        assert f"{name}: {why}" in str(found)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="/no/such/program: No such file"):
        spawn(["/no/such/program"], sandbox=Sandbox(writable=(tmp_path,)), env={})


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        Sandbox(writable=(Path("here"),))
    with pytest.raises(ValueError, match="positive"):
        Sandbox(writable=(Path("/here"),), memory_bytes=0)


def test_threads_come_from_the_job() -> None:
    assert set(thread_environment(2.5).values()) == {"2"}
    assert set(thread_environment(0.1).values()) == {"1"}
