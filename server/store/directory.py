"""The directory of the sealed store: one writer, a catalogue, and the files that it names.

::

    PATH/catalogue.sealed           the high-water marks (server.store.catalogue)
    PATH/ledger-head.sealed         how far ledger and catalogue had come (server.store.head_file)
    PATH/models/MODEL.VERSION.ID    FLSW files (fedlearn.sealing)
    PATH/lock                       held by the one process that writes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from attestation.durable import is_temporary
from fedlearn.errors import DiskError, StoreError
from server.keys.root_key import RootKey, reason
from server.store.catalogue import CATALOGUE_FILE, Catalogue, CatalogueFile, MonotonicCounter
from server.store.head_file import HeadFile

__all__ = ["RESTORE_HINT", "SealedDirectory"]

RESTORE_HINT: Final = "restore the newest backup; the ledger names the versions that were written"


class SealedDirectory:
    """A directory whose files count as stored when the catalogue names them.

    Safe to use from several threads; one process at a time may write.
    """

    def __init__(
        self,
        path: Path,
        file: CatalogueFile,
        lock: int | None,
        *,
        head: HeadFile | None,
        create: bool,
    ) -> None:
        self.path = path
        self.files = path / "models"
        self._file = file
        self._lock_fd = lock
        self._head = head
        self._lock = threading.RLock()
        self.catalogue = self._start(create=create)

    @classmethod
    def open(
        cls,
        path: Path,
        root: RootKey,
        *,
        counter: MonotonicCounter | None,
        adopt_counter: bool,
        read_only: bool,
        head: HeadFile | None,
        create: bool,
    ) -> Self:
        """Open or make the directory; see ``ModelStore.open``."""
        lock = None
        if not read_only:
            try:
                (path / "models").mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = _locked(path / "lock")
            except OSError as error:
                raise StoreError(f"{path}: {reason(error)}") from error
        try:
            file = CatalogueFile(
                path / CATALOGUE_FILE,
                root,
                None if read_only else counter,
                adopt=adopt_counter,
                unbound=read_only,
            )
            return cls(path, file, lock, head=head, create=create)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    def close(self) -> None:
        """Let another process write."""
        with self._lock:
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Exclude other threads while something is written.

        :raises StoreError: when the directory is open for reading only, or closed.
        """
        with self._lock:
            if self._lock_fd is None:
                raise StoreError("the store is not open for writing")
            yield

    def commit(self, change: Callable[[Catalogue], object]) -> None:
        """Make a change of the catalogue durable, then remove files that it no longer names.

        :raises StoreError: when it cannot be written; the catalogue is then as before,
            unless only the counter failed.
        """
        fresh = self.catalogue.copy()
        change(fresh)
        try:
            self._write(fresh)
        except BaseException:
            # It is not known here whether the new catalogue was written; the next start reads it.
            with contextlib.suppress(OSError, DiskError):
                self.catalogue = self._file.read() or self.catalogue
                self._sweep(self.catalogue)
            raise
        self.catalogue = fresh
        # The next change, or the next start, removes what is left.
        with contextlib.suppress(OSError):
            self._sweep(fresh)

    def _write(self, fresh: Catalogue) -> None:
        """Write the catalogue, then seal beside the ledger's head that it was written."""
        fresh.generation = self.catalogue.generation + 1
        if self._head is None:
            self._file.write(fresh)
            return
        # First, in case an earlier catalogue was written and its generation was not.
        self._head.seal_generation(self.catalogue.generation)
        fresh.head = str(self._head.position.head or "")
        self._file.write(fresh)
        self._head.seal_generation(fresh.generation)

    def _start(self, *, create: bool) -> Catalogue:
        catalogue = self._file.read()
        if self._lock_fd is None:
            if catalogue is None:
                raise StoreError(
                    f"there is no model store in {self.path}",
                    hint="name the coordinator's state directory",
                )
            return catalogue
        if catalogue is None:
            if not create:
                raise StoreError(f"{self.path / CATALOGUE_FILE} is missing", hint=RESTORE_HINT)
            names = sorted(path.name for path in self.files.iterdir())
            if left := [name for name in names if not is_temporary(name)]:
                raise StoreError(
                    f"{self.path / CATALOGUE_FILE} is missing, and {left[0]} is there",
                    hint=RESTORE_HINT,
                )
            self.catalogue = catalogue = Catalogue()
            self._write(catalogue)
        return catalogue

    def sweep(self) -> None:
        """Remove files that the catalogue does not name: a crash left them before their commit.

        Call it only when the catalogue is known to be the newest, or it removes the newest files.
        """
        with self.writing():
            self._sweep(self.catalogue)
            # Now, because other threads write the ledger's head beside the catalogue later.
            for path in self.path.iterdir():
                if is_temporary(path.name):
                    path.unlink()

    def _sweep(self, catalogue: Catalogue) -> None:
        expected = catalogue.files()
        for path in self.files.iterdir():
            if path.name not in expected:
                path.unlink()


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreError(
            f"another process writes to {path.parent}",
            hint="stop the coordinator first, or open the store for reading only",
        ) from None
    return fd
