"""A full disk or a killed writer never costs the previous file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.durable import is_temporary
from fedlearn.sealing import ContentKey, Tensor, open_sealed, seal


class HeldKey:
    """One fixed key, for files that only this test reads."""

    key_id = "held"

    def content_key(self, file_id: bytes) -> bytes:
        """Return the key."""
        return bytes(32)


def write(path: Path, size: int, version: int) -> None:
    tensor = Tensor(name="w", dtype="U8", shape=(size,), data=bytes(size))
    seal(path, [tensor], model="demo", version=version, round=0, key=HeldKey())


def version(path: Path) -> int:
    with open_sealed(path, ContentKey(bytes(32))) as reader:
        reader.verify()
        return reader.header.version


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, where this process may mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_keeps_the_previous_file(small_disk: Path) -> None:
    write(small_disk / "m", 1 << 20, version=1)
    with pytest.raises(OSError, match="No space left") as caught:
        write(small_disk / "m", 8 << 20, version=2)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] == ["m"]
    assert version(small_disk / "m") == 1
    write(small_disk / "m", 1 << 20, version=2)
    assert version(small_disk / "m") == 2


_LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fedlearn.sealing import Tensor, seal

class Held:
    key_id = "held"
    def content_key(self, file_id): return bytes(32)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
tensor = Tensor(name="w", dtype="U8", shape=(8 << 20,), data=bytes(8 << 20))
try:
    seal(Path(sys.argv[1]), [tensor], model="demo", version=2, round=0, key=Held())
except OSError as error:
    print("refused", error.errno)
"""


def test_a_write_that_stops_short_keeps_the_previous_file(tmp_path: Path) -> None:
    write(tmp_path / "m", 1 << 20, version=1)
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LIMITED), str(tmp_path / "m"), root],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["refused", str(errno.EFBIG)]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert version(tmp_path / "m") == 1


_ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fedlearn.sealing import SealedWriter, TensorSpec

class Held:
    key_id = "held"
    def content_key(self, file_id): return bytes(32)

specs = [TensorSpec(name=str(i), dtype="U8", shape=(1 << 20,)) for i in range(64)]
with SealedWriter(
    Path(sys.argv[1]), model="demo", version=2, round=0, tensors=specs, key=Held()
) as writer:
    for index in range(8):
        writer.write(bytes(1 << 20))
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_keeps_the_previous_file(tmp_path: Path) -> None:
    write(tmp_path / "m", 1 << 20, version=1)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_ENDLESS), str(tmp_path / "m"), root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    left = [path.name for path in tmp_path.iterdir() if path.name != "m"]
    assert len(left) == 1
    assert is_temporary(left[0])
    assert version(tmp_path / "m") == 1
