"""What Linux does with a configfs-tsm report directory, without a TEE behind it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class TsmKernel:
    """``make(report_data)`` gives the report; a write raises the generation, as in Linux.

    ``disturb``  how often another process writes between our write and our read
    """

    make_report: Callable[[bytes], bytes]
    provider: str = "tdx_guest"
    auxblob: bytes = b""
    disturb: int = 0
    entries: dict[str, dict[str, bytes]] = field(default_factory=dict)
    made: int = 0

    def make(self) -> str:
        self.made += 1
        name = f"entry-{self.made}"
        self.entries[name] = {"generation": b"0\n"}
        return name

    def write(self, name: str, attribute: str, data: bytes) -> None:
        if attribute != "inblob":
            raise OSError(errno.EACCES, "Permission denied")
        if len(data) > 64:
            raise OSError(errno.EINVAL, "Invalid argument")
        self._bump(name, data)

    def _bump(self, name: str, data: bytes) -> None:
        entry = self.entries[name]
        entry["inblob"] = data
        entry["generation"] = b"%d\n" % (int(entry["generation"]) + 1)

    def read(self, name: str, attribute: str) -> bytes:
        entry = self.entries[name]
        if attribute == "provider":
            return self.provider.encode() + b"\n"
        if attribute == "generation":
            return entry["generation"]
        if attribute == "auxblob":
            return self.auxblob
        if attribute == "outblob":
            if "inblob" not in entry:
                raise OSError(errno.EINVAL, "Invalid argument")
            if self.disturb:
                self.disturb -= 1
                self._bump(name, b"somebody else's question".ljust(64, b"\0"))
            return self.make_report(entry["inblob"])
        raise OSError(errno.ENOENT, "No such file or directory")

    def remove(self, name: str) -> None:
        del self.entries[name]
