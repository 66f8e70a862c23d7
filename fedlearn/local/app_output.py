"""What apps write at the sites of this machine, as it comes.

The sites have ``accept.app_logs = "insecure-plain"``: their clients write the lines of the app into
their own logs, which are followed here. Only where all the data is one's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge.client.app_log import PREFIX

__all__ = ["AppOutput"]

_EVERY_SECONDS: Final = 0.1
_PIECE: Final = 1024 * 1024
_PREFIX: Final = PREFIX.encode()


class AppOutput:
    """Follows the logs of clients in a thread of its own, within its context.

    :param folders: of the logs of each site's clients.
    :param show: ``show(site, text)`` gets each line of an app, from that thread.
    :param old: whether what the logs have already is left out, as in a run that is continued.
    """

    def __init__(
        self, folders: Mapping[str, Path], show: Callable[[str, str], object], *, old: bool = False
    ) -> None:
        self._folders = folders
        self._show = show
        self._over = threading.Event()
        self._read: dict[Path, int] = {}
        if old:
            for folder in folders.values():
                self._read |= {path: path.stat().st_size for path in folder.glob("*.log")}
        self._thread = threading.Thread(target=self._follow, name="app output", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._over.wait(_EVERY_SECONDS)
            for site, folder in self._folders.items():
                for path in sorted(folder.glob("*.log")):
                    with contextlib.suppress(OSError):  # the site is being removed
                        self._look(site, path)

    def _look(self, site: str, path: Path) -> None:
        """Show the lines of one log that have ended since the last look."""
        with path.open("rb") as source:
            source.seek(self._read.get(path, 0))
            while piece := source.read(_PIECE):
                end = piece.rfind(b"\n")
                if end < 0:
                    return
                self._read[path] = self._read.get(path, 0) + end + 1
                source.seek(self._read[path])
                for line in piece[:end].split(b"\n"):
                    if line.startswith(_PREFIX):
                        self._show(site, line.removeprefix(_PREFIX).decode(errors="replace"))
