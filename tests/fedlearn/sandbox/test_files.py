"""What a sandboxed program reads and writes: the folders that it was given, and no other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

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
