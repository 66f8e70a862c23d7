"""What a sandboxed program reads and writes: the folders that it was given, and no other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from fedlearn.sandbox import Protection, report
from tests.harness.sandbox import (
    NEEDS_SANDBOX,
    Run,
    attack,
)

pytestmark = NEEDS_SANDBOX


def test_files_outside_cannot_be_read(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other-job"
    other.mkdir()
    (other / "model").write_text("weights")
    found = attack(
        run,
        """
        attempt(lambda: open("/etc/shadow").read())
        attempt(lambda: open(sys.argv[1] + "/model").read())
        attempt(os.listdir, sys.argv[1])
        attempt(lambda: open("/proc/1/environ").read())
        os.symlink(sys.argv[1] + "/model", "link")
        attempt(lambda: open("link").read())
        """,
        other,
    )
    assert len(found) == 5
    assert all(line.startswith("refused") for line in found), found


def test_nothing_is_written_outside(run: Run, tmp_path: Path) -> None:
    found = attack(
        run,
        """
        for path in (sys.argv[1] + "/x", "/usr/x", "/etc/x", "/dev/x", "/x", "/sys/x"):
            attempt(lambda: open(path, "w"))
        attempt(os.rename, "program.py", sys.argv[1] + "/moved")
        attempt(os.link, "program.py", sys.argv[1] + "/linked")
        """,
        tmp_path,
    )
    assert len(found) == 8
    assert all(line.startswith("refused") for line in found), found
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("run", ["namespaces"], indirect=True)
def test_a_folder_in_shared_memory_is_given_without_the_rest_of_it(run: Run) -> None:
    """With namespaces; without them, all programs share /dev/shm."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        given, other = Path(name, "given"), Path(name, "other")
        for folder in (given, other):
            folder.mkdir()
            (folder / "rows.csv").write_text("1,2")
        given.parent.chmod(0o755)
        code = """
        attempt(lambda: open(sys.argv[1] + "/rows.csv").read())
        attempt(lambda: open(sys.argv[2] + "/rows.csv").read())
        """
        found = attack(run, code, given, other, readable=(given,))
    assert found == ["done 1,2", "refused ENOENT"]


def test_what_it_was_given_is_readable_and_not_writable(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("1,2")
    found = attack(
        run,
        """
        attempt(lambda: open(sys.argv[1] + "/rows.csv").read())
        attempt(lambda: open(sys.argv[1] + "/rows.csv", "a"))
        attempt(lambda: open(sys.argv[1] + "/more.csv", "w"))
        attempt(os.unlink, sys.argv[1] + "/rows.csv")
        """,
        data,
        readable=(data,),
    )
    assert found[0] == "done 1,2"
    assert [line.split()[0] for line in found[1:]] == ["refused"] * 3
    assert (data / "rows.csv").read_text() == "1,2"


NAME_A_THREAD = """
import threading
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
comm = f"/proc/self/task/{thread.native_id}/comm"
attempt(lambda: open(comm, "w").write("worker"))
stop.set()
"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_thread_is_named_where_the_sandbox_permits_it(run: Run, asked: bool) -> None:
    """CUDA's driver does so, and does not start where it is refused."""
    (found,) = attack(run, NAME_A_THREAD, thread_names=asked)
    # Without namespaces, and without Landlock, nothing keeps a process from it.
    assert found == "done 6" if asked else found.split()[0] in ("refused", "done")
    if not asked and Protection.LANDLOCK in report().applied:
        assert found.startswith("refused")


def test_the_rest_of_proc_stays_as_it_is_where_threads_are_named(run: Run) -> None:
    found = attack(
        run,
        """
        for path in (
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sysrq-trigger",
            "/proc/irq/default_smp_affinity",
            "/proc/1/comm",
            "/proc/1/oom_score_adj",
            "/proc/1/mem",
        ):
            attempt(lambda: open(path, "w"))
        attempt(os.mkdir, "/proc/sys/x")
        """,
        thread_names=True,
    )
    assert len(found) == 8
    assert all(line.startswith("refused") for line in found), found
