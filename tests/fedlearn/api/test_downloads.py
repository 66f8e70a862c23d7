"""Downloads to a file: whole, of the version that was asked for, and of this coordinator."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.api.downloads import download_model
from fedlearn.errors import (
    ConfigError,
    Interrupted,
    JobError,
    ModelNotAuthentic,
    StoreError,
    TransportError,
)
from fedlearn.sealing import (
    FileSigner,
    PrivateKey,
    RandomKey,
    Tensor,
    open_sealed,
    seal,
    signer_digest,
)
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.results import ModelDownload, SealedModel

OWNER = X25519PrivateKey.generate()
OWNER_KEY = OWNER.public_key().public_bytes_raw()
CA = FileSigner(ec.generate_private_key(ec.SECP256R1()))
STRANGER = FileSigner(ec.generate_private_key(ec.SECP256R1()))
PIECE = 100_000


class Source:
    """Sends files as a coordinator does, as far as a test lets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[tuple[SealedModel, bytes]] = []
        self.offsets: list[int] = []
        self.cut: list[int] = []
        """After how many bytes each of the next downloads is interrupted."""

    def add(self, version: int, *, signer: FileSigner | None = CA, model: str = "heart") -> bytes:
        data = np.full(200_000, version, np.float32).tobytes()
        path = self.folder / f"{version}.sealed"
        made = seal(
            path,
            [Tensor(name="w", dtype="F32", shape=(200_000,), data=data)],
            model=model,
            version=version,
            round=version,
            key=RandomKey(),
            recipients=[OWNER_KEY],
            signer=signer,
        )
        found = SealedModel(
            model="heart",
            version=version,
            job="heart",
            round=version,
            size=made.size,
            digest=made.digest,
            file_id=made.header.file_id,
            owners=(OWNER_KEY,),
        )
        self.files.append((found, path.read_bytes()))
        return self.files[-1][1]

    @contextlib.contextmanager
    def download_model(
        self, model: str, *, version: int = 0, offset: int = 0, file_id: bytes = b""
    ) -> Iterator[ModelDownload]:
        if model != "heart":
            raise JobError(f"there is no model {model!r}")
        found, data = self.files[(version or len(self.files)) - 1]
        begin = offset if file_id == found.file_id else 0
        self.offsets.append(begin)
        end = self.cut.pop(0) if self.cut else None

        def chunks() -> Iterator[bytes]:
            for at in range(begin, len(data), PIECE):
                if end is not None and at >= end:
                    raise Unreachable("the connection is lost")
                yield data[at : at + PIECE]

        yield ModelDownload(model=found, offset=begin, chunks=chunks())


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "coordinator").mkdir()
    return Source(tmp_path / "coordinator")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "heart.flsw"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.api.downloads.time.sleep", lambda seconds: None)


def get(source: Source, out: Path, **more: object) -> SealedModel:
    arguments = {"pin": pin(CA), **more}
    return download_model(source, "heart", out, **arguments)  # type: ignore[arg-type]


def pin(signer: FileSigner) -> bytes:
    return signer_digest(signer.public_key)


def part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def test_a_model_is_downloaded_checked_and_private(source: Source, out: Path) -> None:
    source.add(1)
    data = source.add(2)
    seen: list[tuple[int, int]] = []
    found = get(source, out, progress=lambda done, total: seen.append((done, total)))
    assert (found.version, found.size) == (2, len(data))
    assert out.read_bytes() == data
    assert out.stat().st_mode & 0o777 == 0o600
    assert seen[0] == (PIECE, len(data))
    assert seen[-1] == (len(data), len(data))
    assert not part(out).exists()
    with open_sealed(out, PrivateKey(OWNER)) as reader:
        assert bytes(reader.tensor("w")[:4]) == np.float32(2).tobytes()
    assert get(source, out.with_name("first"), version=1).version == 1


def test_a_lost_connection_is_opened_again_where_it_ended(source: Source, out: Path) -> None:
    data = source.add(1)
    source.cut = [200_000, 500_000]
    get(source, out)
    assert out.read_bytes() == data
    assert source.offsets == [0, 200_000, 500_000]


def test_a_half_downloaded_model_is_continued_by_the_next_call(source: Source, out: Path) -> None:
    data = source.add(1)
    source.cut = [300_000] * 6
    with pytest.raises(Unreachable, match="interrupted with 300000 bytes") as caught:
        get(source, out)
    assert "run the same again" in caught.value.hint
    assert not out.exists()
    assert part(out).read_bytes() == data[:300_000]
    source.cut, source.offsets = [], []
    get(source, out)
    assert source.offsets == [300_000]
    assert out.read_bytes() == data


def test_an_interrupted_download_keeps_what_arrived(source: Source, out: Path) -> None:
    data = source.add(1)

    def stop(done: int, total: int) -> None:
        if done >= 200_000:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="interrupted with 200000 bytes") as caught:
        get(source, out, progress=stop)
    assert "run the same again" in caught.value.hint
    assert part(out).read_bytes() == data[:200_000]
    get(source, out)
    assert out.read_bytes() == data
    assert source.offsets == [0, 200_000]


def test_a_part_of_another_version_is_begun_again(source: Source, out: Path) -> None:
    source.add(1)
    source.cut = [300_000] * 6
    with pytest.raises(Unreachable):
        get(source, out)
    data = source.add(2)
    source.cut, source.offsets = [], []
    get(source, out)
    assert source.offsets == [0]
    assert out.read_bytes() == data


def test_a_part_without_a_whole_header_is_begun_again(source: Source, out: Path) -> None:
    data = source.add(1)
    for begun in (b"", b"FL", data[:20]):
        part(out).write_bytes(begun)
        get(source, out, replace=True)
        assert out.read_bytes() == data
    assert source.offsets == [0, 0, 0]


def test_a_damaged_part_is_refused_by_digest_and_removed(source: Source, out: Path) -> None:
    data = source.add(1)
    damaged = bytearray(data[:300_000])
    damaged[200_000] ^= 1
    part(out).write_bytes(damaged)
    with pytest.raises(ModelNotAuthentic, match=r"its digest is .* was announced") as caught:
        get(source, out)
    assert "download it again" in caught.value.hint
    assert not out.exists()
    assert not part(out).exists()
    get(source, out)
    assert out.read_bytes() == data


@pytest.mark.parametrize(
    ("signer", "why"), [(None, "it is not signed"), (STRANGER, "which is not pinned")]
)
def test_a_model_of_another_coordinator_is_refused(
    source: Source, out: Path, signer: FileSigner | None, why: str
) -> None:
    source.add(1, signer=signer)
    with pytest.raises(ModelNotAuthentic, match=why):
        get(source, out)
    assert list(out.parent.glob("heart*")) == []


def test_another_model_or_version_than_was_asked_for_is_refused(source: Source, out: Path) -> None:
    source.add(1, model="lung")
    with pytest.raises(ModelNotAuthentic, match="contains lung, version 1, instead of heart"):
        get(source, out)
    source.files.clear()
    source.add(7)
    with pytest.raises(ModelNotAuthentic, match="version 7, instead of heart, version 1"):
        get(source, out, version=1)


def test_a_coordinator_that_sends_more_or_elsewhere_is_refused(source: Source, out: Path) -> None:
    data = source.add(1)
    found, _ = source.files[0]
    source.files[0] = (found, data + bytes(PIECE))
    with pytest.raises(TransportError, match="sends more than"):
        get(source, out)

    @contextlib.contextmanager
    def elsewhere(*_: object, **__: object) -> Iterator[ModelDownload]:
        yield ModelDownload(model=found, offset=5, chunks=iter([data]))

    source.download_model = elsewhere  # type: ignore[method-assign]
    part(out).unlink()
    with pytest.raises(TransportError, match="sends from byte 5, 0 were asked for"):
        get(source, out)


def test_no_file_is_overwritten_unless_it_is_requested(source: Source, out: Path) -> None:
    data = source.add(1)
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        get(source, out)
    assert out.read_text() == "mine"
    get(source, out, replace=True)
    assert out.read_bytes() == data
    part(out).write_text("notes of mine")
    with pytest.raises(ConfigError, match="is not a download that was interrupted"):
        get(source, out, replace=True)
    assert part(out).read_text() == "notes of mine"
    part(out).unlink()
    part(out).symlink_to(out)
    with pytest.raises(StoreError, match="part"):
        get(source, out, replace=True)
    with pytest.raises(StoreError, match="no such file"):
        get(source, out.parent / "missing" / "file")


def test_two_downloads_to_one_file_exclude_each_other(source: Source, out: Path) -> None:
    source.add(1)
    with part(out).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another download writes it"):
            get(source, out)


def test_what_the_coordinator_refuses_is_reported(source: Source, out: Path) -> None:
    with pytest.raises(JobError, match="there is no model 'lung'"):
        download_model(source, "lung", out, pin=pin(CA))
