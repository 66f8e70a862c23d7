"""The state of a client on the disk of its site, sealed, for the client that is started after it.

After each call the client writes what it keeps (:class:`edge.client.flower.memory.Memory`) and
reports the SHA-256 of the file with its reply. The coordinator has that digest in its checkpoint
and names it in the next question. A client that was started again takes the file with this digest
and no other, so a file that was altered, exchanged or set back is refused, with what was found.

The page is docs/adr/0047-algorithms.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attestation.durable import sync_directory, write_durably
from attestation.errors import UnsealError
from edge.client.flower.app_state import Call
from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import Part, view_of
from fedlearn.sealing.client_state import StateName, open_state, seal_state, state_name

__all__ = ["StateStore"]

_ROUNDS: Final = 4
"""Rounds whose states are kept: those that the coordinator may run or evaluate again."""
_MOST_FILES: Final = 64
"""More are neither read nor named; what this client writes is less."""
_DIGEST: Final = re.compile("[0-9a-f]{64}")


class StateStore:
    """The states of one job at one site.

    :param folder: of this job alone; it is made when it is needed.
    :param key: returns :func:`fedlearn.sealing.client_state.state_key`; called once, when the
        first state is sealed or opened.
    :param most: bytes of a file that are read.
    """

    def __init__(
        self, folder: Path, *, job: str, site: str, key: Callable[[], bytes], most: int
    ) -> None:
        self.folder = folder
        self.job = job
        self.site = site
        self.most = most
        self._ask = key
        self._key = b""

    @property
    def key(self) -> bytes:
        """The key of the states."""
        self._key = self._key or self._ask()
        return self._key

    def save(self, call: Call, parts: Sequence[Part]) -> str:
        """Seal a state after a call, durably; return the digest of the file in hexadecimal.

        :raises StoreError: when it cannot be written.
        """
        data = seal_state(
            [bytes(view_of(part)) for part in parts], self._name(call.round, call.phase), self.key
        )
        digest = hashlib.sha256(data).hexdigest()
        try:
            self._make_folder()
            write_durably(self.folder / _file_name(call.round, call.phase, digest), data)
            self._trim()
        except OSError as error:
            raise StoreError(
                f"the state of the client cannot be kept in {self.folder}: {error.strerror}",
                hint="make room on the disk of the site",
            ) from error
        return digest

    def load(self, digest: str) -> list[bytes]:
        """Return the state with a digest that this site reported.

        :raises StoreError: when no file has this digest, naming what is there.
        """
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest[:80]!r} is not the SHA-256 of a state")
        found: list[str] = []
        for path in self._files():
            try:
                with path.open("rb") as file:
                    data = file.read(self.most + 1)
                if len(data) > self.most:
                    raise UnsealError(f"larger than {self.most} bytes")
                name = state_name(data)
                if hashlib.sha256(data).hexdigest() == digest:
                    return open_state(data, self._name(name.round, name.phase), self.key)
                found.append(f"{path.name} ({self._fault(path, name, data)})")
            except (OSError, UnsealError) as error:
                found.append(f"{path.name} ({error})")
        raise StoreError(
            f"the state with the SHA-256 {digest[:16]}..., which this site reported last, is not "
            f"in {self.folder}: it was altered, exchanged, removed or set back to an older one. "
            f"Found: {'; '.join(found) or 'nothing'}",
            hint="restore the folder as it was, or run the job again",
        )

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for parent in (self.folder.parent, self.folder.parent.parent):
                sync_directory(parent)

    def _name(self, round_: int, phase: int) -> StateName:
        return StateName(job=self.job, site=self.site, round=round_, phase=phase)

    def _fault(self, path: Path, name: StateName, data: bytes) -> str:
        """Return why a file is not the one that is looked for."""
        if (name.job, name.site) != (self.job, self.site):
            return f"of {name.title}"
        own = _file_name(name.round, name.phase, hashlib.sha256(data).hexdigest())
        return f"of round {name.round}" if path.name == own else "altered or renamed"

    def _files(self) -> list[Path]:
        """Return the files, those of the newest calls first."""
        return sorted(self.folder.glob("*.sealed"), reverse=True)[:_MOST_FILES]

    def _trim(self) -> None:
        files = self._files()
        rounds = sorted({path.name.split("-")[0] for path in files})
        for path in files:
            if path.name.split("-")[0] not in rounds[-_ROUNDS:]:
                path.unlink(missing_ok=True)


def _file_name(round_: int, phase: int, digest: str) -> str:
    return f"{round_:08}-{phase}-{digest[:16]}.sealed"
