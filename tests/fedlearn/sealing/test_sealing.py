"""Sealed files open as they were sealed, for whom they were sealed, one tensor at a time."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.durable import (
    is_temporary,
)
from attestation.errors import UnsealError
from fedlearn.sealing import (
    ContentKey,
    PrivateKey,
    RandomKey,
    Sealed,
    SealedWriter,
    Tensor,
    TensorSpec,
    open_released,
    open_sealed,
    read_header,
    release_to,
    seal,
)

CHUNK = 4096


class HeldKey:
    """A content key that a key service holds: the header names it, nothing wraps it."""

    key_id = "service/1"

    def __init__(self) -> None:
        self.value = secrets.token_bytes(32)

    def content_key(self, file_id: bytes) -> bytes:
        """Return the one key; each test seals one file with it."""
        return self.value


def tensors() -> list[Tensor]:
    return [
        Tensor(name="a", dtype="F32", shape=(3, 1000), data=os.urandom(12_000)),
        Tensor(name="empty", dtype="I64", shape=(0, 7), data=b""),
        Tensor(name="scalar", dtype="F64", shape=(), data=os.urandom(8)),
        Tensor(name="b", dtype="U8", shape=(2 * CHUNK,), data=os.urandom(2 * CHUNK)),
    ]


def sealed_for(path: Path, *keys: X25519PrivateKey, version: int = 4) -> Sealed:
    return seal(
        path,
        tensors(),
        model="demo",
        version=version,
        round=3,
        key=RandomKey(),
        recipients=[key.public_key().public_bytes_raw() for key in keys],
        meta={"job": "demo", "final": True, "sites": 5},
        chunk=CHUNK,
    )


def test_what_was_sealed_comes_out(tmp_path: Path) -> None:
    owner = X25519PrivateKey.generate()
    given = tensors()
    written = seal(
        tmp_path / "m",
        iter(given),
        model="demo",
        version=4,
        round=3,
        key=RandomKey(),
        recipients=[owner.public_key().public_bytes_raw()],
        meta={"job": "demo", "final": True},
        chunk=CHUNK,
    )
    assert written.size == (tmp_path / "m").stat().st_size
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600
    with open_sealed(tmp_path / "m", PrivateKey(owner)) as reader:
        assert (reader.header.model, reader.header.version, reader.header.round) == ("demo", 4, 3)
        assert reader.header.meta == {"job": "demo", "final": True}
        assert [spec.name for spec in reader.header.tensors] == ["a", "empty", "scalar", "b"]
        for tensor, (spec, values) in zip(given, reader.tensors(), strict=True):
            assert (spec.dtype, spec.shape) == (tensor.dtype, tensor.shape)
            assert bytes(values) == tensor.data
        assert reader.verify() == reader.digest() == written.digest
        assert b"".join(map(bytes, reader.chunks("a"))) == given[0].data
        assert bytes(reader.tensor("b")) == given[3].data
    for tensor in given:
        assert not tensor.data or tensor.data not in (tmp_path / "m").read_bytes()


def test_reading_into_a_buffer_of_the_caller(tmp_path: Path) -> None:
    owner = X25519PrivateKey.generate()
    sealed_for(tmp_path / "m", owner)
    with open_sealed(tmp_path / "m", PrivateKey(owner)) as reader:
        target = bytearray(2 * CHUNK)
        assert reader.tensor("b", into=target) == target
        assert target == reader.tensor("b")
        with pytest.raises(ValueError, match="8192 bytes are needed"):
            reader.tensor("b", into=bytearray(1))
        with pytest.raises(UnsealError, match="no tensor 'c'"):
            reader.tensor("c")


def test_one_tensor_opens_although_another_is_damaged(tmp_path: Path) -> None:
    owner = X25519PrivateKey.generate()
    sealed_for(tmp_path / "m", owner)
    raw = bytearray((tmp_path / "m").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "m").write_bytes(raw)
    with open_sealed(tmp_path / "m", PrivateKey(owner)) as reader:
        assert len(reader.tensor("a")) == 12_000
        with pytest.raises(UnsealError, match="tensor 'b', chunk 5 of the file: was altered"):
            reader.tensor("b")
        with pytest.raises(UnsealError, match="tensor 'b'"):
            reader.verify()


def test_one_tensor_is_read_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, path = X25519PrivateKey.generate(), tmp_path / "demo"
    given = {tensor.name: tensor for tensor in tensors()}
    seal(
        path,
        given.values(),
        model="demo",
        version=1,
        round=1,
        key=RandomKey(),
        recipients=[owner.public_key().public_bytes_raw()],
        chunk=CHUNK,
    )
    read: list[tuple[int, int]] = []
    preadv = os.preadv

    def noted(fd: int, buffers: list[memoryview], at: int) -> int:
        read.append((at, sum(map(len, buffers))))
        return preadv(fd, buffers, at)

    with open_sealed(path, PrivateKey(owner)) as reader:
        monkeypatch.setattr(os, "preadv", noted)
        found = bytes(reader.tensor("b"))
        monkeypatch.undo()
        start = path.stat().st_size - 2 * (CHUNK + 16)
        assert read == [(start, CHUNK + 16), (start + CHUNK + 16, CHUNK + 16)]
    assert found == bytes(given["b"].data)
    whole = path.read_bytes()
    # The two chunks of it in the other order, one twice, one of another tensor, and a cut.
    first, second = whole[start : start + CHUNK + 16], whole[start + CHUNK + 16 :]
    other = whole[start - 8 - 16 - CHUNK - 16 : start - 8 - 16]
    for damaged in (second + first, first + first, other + second):
        path.write_bytes(whole[:start] + damaged)
        with open_sealed(path, PrivateKey(owner)) as reader:
            with pytest.raises(UnsealError, match="tensor 'b', chunk"):
                reader.tensor("b")
            assert bytes(reader.tensor("a")) == bytes(given["a"].data)
    path.write_bytes(whole[:-1])
    with pytest.raises(UnsealError, match="too short by 1 bytes"):
        open_sealed(path, PrivateKey(owner))
    path.write_bytes(whole)
    with open_sealed(path, PrivateKey(owner)) as reader:
        os.truncate(path, start + CHUNK)
        with pytest.raises(UnsealError, match="tensor 'b': the file was truncated"):
            reader.tensor("b")


def test_each_recipient_opens_and_nobody_else(tmp_path: Path) -> None:
    one, two, other = (X25519PrivateKey.generate() for _ in range(3))
    sealed_for(tmp_path / "m", one, two)
    for key in (one, two):
        with open_sealed(tmp_path / "m", PrivateKey(key)) as reader:
            reader.verify()
    with pytest.raises(UnsealError) as caught:
        open_sealed(tmp_path / "m", PrivateKey(other))
    message = str(caught.value)
    assert one.public_key().public_bytes_raw().hex()[:16] in message
    assert other.public_key().public_bytes_raw().hex()[:16] in message
    with pytest.raises(UnsealError, match="not the key"):
        open_sealed(tmp_path / "m", ContentKey(bytes(32)))
    with pytest.raises(UnsealError, match="32 bytes, not 31"):
        open_sealed(tmp_path / "m", ContentKey(bytes(31)))


def test_a_key_that_is_held_elsewhere_leaves_no_wrap(tmp_path: Path) -> None:
    held = HeldKey()
    seal(tmp_path / "m", tensors(), model="demo", version=1, round=0, key=held, chunk=CHUNK)
    assert read_header(tmp_path / "m").key == "service/1"
    with open_sealed(tmp_path / "m", ContentKey(held.value)) as reader:
        reader.verify()
    with pytest.raises(UnsealError, match="sealed for no key"):
        open_sealed(tmp_path / "m", PrivateKey(X25519PrivateKey.generate()))


def test_a_released_key_is_good_for_its_holder_and_its_file_only(tmp_path: Path) -> None:
    held, inside = HeldKey(), X25519PrivateKey.generate()
    file_id = seal(
        tmp_path / "m", tensors(), model="demo", version=1, round=0, key=held
    ).header.file_id
    blob = release_to(
        held.value, inside.public_key().public_bytes_raw(), model="demo", file_id=file_id
    )
    key = open_released(blob, inside, model="demo", file_id=file_id)
    with open_sealed(tmp_path / "m", key) as reader:
        reader.verify()
    for private, model, file in (
        (X25519PrivateKey.generate(), "demo", file_id),
        (inside, "other", file_id),
        (inside, "demo", bytes(16)),
    ):
        with pytest.raises(UnsealError, match="made for another key, model or file"):
            open_released(blob, private, model=model, file_id=file)
    assert held.value.hex() not in repr(key)


def test_a_file_for_nobody_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never be opened"):
        seal(tmp_path / "m", tensors(), model="demo", version=1, round=0, key=RandomKey())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Tensor(name="", dtype="F32", shape=(), data=bytes(4)), "name"),
        (Tensor(name="x", dtype="F31", shape=(), data=bytes(4)), "not a type"),
        (Tensor(name="x", dtype="F32", shape=(2,), data=bytes(4)), "needs 8"),
        (Tensor(name="x", dtype="F32", shape=(-1,), data=bytes(4)), "from 0"),
        (Tensor(name="x", dtype="F32", shape=(1,) * 17, data=bytes(4)), "dimensions"),
        (Tensor(name="a", dtype="U8", shape=(1,), data=bytes(1)), "the same name"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path: Path, tensor: Tensor, reason: str) -> None:
    (tmp_path / "m").write_bytes(b"previous")
    with pytest.raises(ValueError, match=reason):
        seal(
            tmp_path / "m",
            [*tensors(), tensor],
            model="demo",
            version=1,
            round=0,
            key=HeldKey(),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"previous"


def test_a_writer_that_is_left_early_leaves_nothing(tmp_path: Path) -> None:
    specs = [TensorSpec(name=name, dtype="U8", shape=(4,)) for name in ("a", "b")]
    arguments: dict[str, Any] = {
        "model": "demo",
        "version": 1,
        "round": 0,
        "tensors": specs,
        "key": HeldKey(),
    }
    with SealedWriter(tmp_path / "m", **arguments) as writer:
        writer.write(bytes(4))
        with pytest.raises(ValueError, match="b: was not written"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []
    with SealedWriter(tmp_path / "m", **arguments) as writer:
        writer.write(bytes(4))
        writer.write(bytes(4))
        with pytest.raises(ValueError, match="all tensors"):
            writer.write(bytes(4))
        writer.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_older_version_or_another_model_is_refused(tmp_path: Path) -> None:
    owner = X25519PrivateKey.generate()
    sealed_for(tmp_path / "m", owner, version=4)
    open_sealed(tmp_path / "m", PrivateKey(owner), model="demo", at_least=4).close()
    with pytest.raises(UnsealError, match="rolled back: contains version 4, version 5 was sealed"):
        open_sealed(tmp_path / "m", PrivateKey(owner), at_least=5)
    with pytest.raises(UnsealError, match="contains the model 'demo', not 'other'"):
        open_sealed(tmp_path / "m", PrivateKey(owner), model="other")


def test_a_model_without_tensors_is_still_authentic(tmp_path: Path) -> None:
    held = HeldKey()
    seal(tmp_path / "m", [], model="demo", version=1, round=0, key=held)
    with open_sealed(tmp_path / "m", ContentKey(held.value)) as reader:
        assert list(reader.tensors()) == []
    with pytest.raises(UnsealError, match="not the key"):
        open_sealed(tmp_path / "m", ContentKey(bytes(32)))


_MEMORY = """
import re, sys
from pathlib import Path
from fedlearn.sealing import ContentKey, Tensor, open_sealed, seal

class Held:
    key_id = "held"
    def content_key(self, file_id): return bytes(32)

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before

size = 64 << 20
data = bytearray(size)
path = Path(sys.argv[1])
t = [Tensor(name="w", dtype="U8", shape=(size,), data=data)]
print(peak(lambda: seal(path, t, model="m", version=1, round=0, key=Held())))
reader = open_sealed(path, ContentKey(bytes(32)))
print(peak(reader.verify))
print(peak(lambda: reader.tensor("w", into=data)))
"""


def test_extra_memory_is_bounded_by_chunks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY), str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    sealing, verifying, opening = map(int, done.stdout.split())
    assert sealing <= 8, f"sealing 64 MiB took {sealing} MiB more"
    assert verifying <= 8, f"verifying 64 MiB took {verifying} MiB more"
    assert opening <= 8, f"opening 64 MiB took {opening} MiB more"


def test_temporary_names_are_recognised() -> None:
    assert is_temporary(".m.flsw.0123456789abcdef.tmp")
    assert not is_temporary("m.flsw")
    assert not is_temporary(".m.tmp")
