"""Download a sealed model to a file, over an operator's login or an owner's session.

What arrives is written to ``OUT.part``, checked, and only then renamed: a file under the wanted
name is whole, is the version that was asked for, and is signed by the coordinator whose CA is
pinned. It is still sealed; the owner's key opens it (``fedlearn model open``).

A download that was interrupted goes on where it ended, if the coordinator still has that very file:
``OUT.part`` begins with the file's id, and the digest of the whole is compared at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from attestation.durable import rename_durably
from attestation.errors import UnsealError
from fedlearn.backoff import Backoff
from fedlearn.errors import ConfigError, Interrupted, ModelNotAuthentic, StoreError, TransportError
from fedlearn.job.model_name import run_of_model
from fedlearn.sealing import SealedFile, read_header
from fedlearn.sealing.header import MAGIC
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.results import ModelDownload, SealedModel

__all__ = ["ModelSource", "Progress", "download_model"]

Progress = Callable[[int, int], object]
"""Called with the number of bytes that are there, and of those that the file has."""

_RECONNECTS: Final = 4
_AGAIN: Final = "run the same again: it goes on where it ended"
_MAX_BYTES: Final = 2**50


class ModelSource(Protocol):
    """Sends sealed models: an operator's client, or an owner's."""

    def download_model(
        self, model: str, *, version: int = 0, offset: int = 0, file_id: bytes = b""
    ) -> AbstractContextManager[ModelDownload]:
        """Begin a download; see :meth:`fedlearn.wire.results.OperatorResults.download_model`."""
        ...


def download_model(
    source: ModelSource,
    model: str,
    out: Path,
    *,
    pin: bytes,
    version: int = 0,
    replace: bool = False,
    progress: Progress | None = None,
) -> SealedModel:
    """Download one version (0: the latest) of ``model`` to ``out``; return what it is.

    ``model`` is the name of a job, for its newest run, or ``NAME@N``; with ``.files`` behind it,
    the files that its app wrote.

    A lost connection is opened again some times, and then reported; the same call later goes on.

    :param pin: SHA-256 of the key of the coordinator's CA, which must have signed the file.
    :param replace: whether ``out`` may exist.
    :param progress: is called after each piece.
    :raises ConfigError: when ``out`` exists, or another download writes there.
    :raises ModelNotAuthentic: when what arrived is not the file that this coordinator sealed;
        nothing of it is kept then.
    :raises FedlearnError: as the coordinator raised it, or a TransportError.
    :raises StoreError: when the file cannot be written.
    :raises Interrupted: on Ctrl-C; what arrived is kept.
    """
    if not replace and os.path.lexists(out):
        raise ConfigError("exists", where=str(out), hint="name another file, or --replace it")
    part = out.with_name(f"{out.name}.part")
    try:
        with _locked(part) as file:
            found = _received(source, model, version, file, part, progress)
            _check(part, found, model, version, pin)
            os.fsync(file)
            rename_durably(part, out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(
            f"{part}: {reason}",
            hint="correct that and run the same again: it goes on where it ended",
        ) from error
    return found


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """Open ``part``, which only its owner may read, for this download alone."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        hint = "wait for it, or name another file"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = str(part)
            raise ConfigError("another download writes it", where=where, hint=hint) from None
        # Not what another download has renamed since, and not somebody's file of this name.
        if not part.exists() or not os.path.samestat(os.fstat(fd), part.stat()):
            raise ConfigError("another download wrote it", where=str(part), hint=hint)
        begin = os.pread(fd, len(MAGIC), 0)
        if not MAGIC.startswith(begin):
            raise ConfigError(
                "is not a download that was interrupted",
                where=str(part),
                hint="remove it, or name another file",
            )
        yield fd
    finally:
        os.close(fd)


def _received(
    source: ModelSource,
    model: str,
    version: int,
    file: int,
    part: Path,
    progress: Progress | None,
) -> SealedModel:
    """Fill ``part`` to its end; return what it is by the coordinator's answer."""
    failures, backoff = 0, Backoff(first=0.4)
    while True:
        before = os.fstat(file).st_size
        try:
            return _receive(source, model, version, file, part, progress)
        except KeyboardInterrupt:
            raise Interrupted(
                f"the download was interrupted with {os.fstat(file).st_size} bytes in {part}",
                hint=_AGAIN,
            ) from None
        except Unreachable as error:
            have = os.fstat(file).st_size
            failures = 1 if have > before else failures + 1
            if failures > _RECONNECTS:
                raise Unreachable(
                    f"the download was interrupted with {have} bytes in {part}: {error}",
                    hint=_AGAIN,
                ) from error
        time.sleep(backoff.next())


def _receive(
    source: ModelSource,
    model: str,
    version: int,
    file: int,
    part: Path,
    progress: Progress | None,
) -> SealedModel:
    file_id = _file_id(part)
    have = os.fstat(file).st_size if file_id else 0
    with source.download_model(model, version=version, offset=have, file_id=file_id) as download:
        found, done = download.model, download.offset
        if found.size > _MAX_BYTES:
            raise TransportError(f"the coordinator announces a model of {found.size} bytes")
        if done not in (0, have):
            raise TransportError(f"the coordinator sends from byte {done}, {have} were asked for")
        os.ftruncate(file, done)
        os.lseek(file, done, os.SEEK_SET)
        for chunk in download.chunks:
            done += len(chunk)
            if done > found.size:
                raise TransportError(
                    f"the coordinator sends more than the {found.size} bytes that it announced"
                )
            _write(file, chunk)
            if progress is not None:
                progress(done, found.size)
    if done < found.size:
        raise Unreachable(f"{done} of {found.size} bytes arrived")
    return found


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(file, view) :]


def _file_id(part: Path) -> bytes:
    """Return the id of the file that ``part`` is the beginning of; empty where it is none."""
    try:
        return read_header(part).file_id
    except UnsealError:
        return b""


def _check(part: Path, found: SealedModel, model: str, version: int, pin: bytes) -> None:
    """Check that ``part`` is the file that was asked for and announced, and who sealed it.

    Otherwise nothing of it is kept.
    """
    try:
        with SealedFile(part) as file:
            header = file.header
            wanted = version or found.version
            if not run_of_model(header.model, model) or header.version != wanted:
                raise UnsealError(
                    f"it contains {header.model}, version {header.version}, "
                    f"instead of {model}, version {wanted}"
                )
            digest = file.digest()
            if digest != found.digest:
                raise UnsealError(
                    f"its digest is {digest.hex()}, and {found.digest.hex()} was announced"
                )
            file.check_signer({pin})
    except UnsealError as error:
        part.unlink(missing_ok=True)
        raise ModelNotAuthentic(
            f"{model}: what was downloaded is refused and was removed: {error}",
            hint="download it again; if it is refused again, run `fedlearn model verify` at the "
            "coordinator",
        ) from error
