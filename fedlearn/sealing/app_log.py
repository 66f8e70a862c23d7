"""What an app has written in one round at one site, sealed to the owner of its job.

::

    sealed = HPKE (RFC 9180, base mode, suite of fedlearn.sealing.keys) to the owner's key with
             info = "fedlearn/app-log/1\\0" | LP(job) | LP(SHA-256 of the job) | LP(site)
                    | LP(client) | LP(stream) | LP(u32be round) | LP(u32be sequence)
    plaintext = JSON {"left_out": count, "lines": [[level, text, logger, file, line], ...]}

where LP(x) = u32be(len x) | x. ``stream`` is drawn by each client when it starts, and ``sequence``
counts its logs from 0, so that whoever keeps them cannot exchange, reorder or repeat them, and one
that is missing leaves a gap.

What is guaranteed: a log opens with the owner's key and under its own name only. What is not: who
sealed it (anybody can seal to a public key; the coordinator checks that an admitted client of the
site delivers it), and that no log is missing after the last one. Its size is visible.

The page is docs/adr/0031-app-logs.md.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from attestation.length_prefixed import pack
from fedlearn.sealing.keys import hpke_open, hpke_seal

__all__ = [
    "LEVELS",
    "MAX_LINES",
    "MAX_LINE_BYTES",
    "MAX_SEALED_BYTES",
    "STREAM_BYTES",
    "AppLogLine",
    "AppLogName",
    "OpenedAppLog",
    "open_app_log",
    "seal_app_log",
]

LEVELS: Final = ("output", "debug", "info", "warning", "error", "critical")
"""Of a line that the app printed (``output``), and of a record of Python's logging."""

MAX_LINES: Final = 2_000
MAX_LINE_BYTES: Final = 4_096
MAX_SEALED_BYTES: Final = 2 * 1024 * 1024
"""Upper bound of one sealed log, checked before it is stored or opened."""

STREAM_BYTES: Final = 16
_DOMAIN: Final = b"fedlearn/app-log/1\0"
_NUMBER: Final = struct.Struct(">I")
_MAX_COUNT: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLogLine:
    """One line. All of it is the app's word.

    ``level``   one of :data:`LEVELS`
    ``logger``  the name of the logger; empty for what was printed
    ``file``    the source file, relative to the app's bundle where it is in it, and its ``line``;
                empty and 0 where none is known
    """

    level: str
    text: str
    logger: str = ""
    file: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        parts = (self.level, self.text, self.logger, self.file)
        if not all(isinstance(each, str) for each in parts) or type(self.line) is not int:
            raise TypeError("a line has four texts and a whole number")
        if self.level not in LEVELS:
            raise ValueError(f"{self.level[:40]!r} is none of the levels {', '.join(LEVELS)}")
        if max(len(each.encode()) for each in parts) > MAX_LINE_BYTES:
            raise ValueError(f"a part of a line has more than {MAX_LINE_BYTES} bytes")
        if not 0 <= self.line <= _MAX_COUNT:
            raise ValueError("the number of a line of source is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLogName:
    """Whose log it is, and its place among those of its client; it is bound, not stored.

    ``digest``    of the job (:meth:`fedlearn.job.spec.JobSpec.digest`), 32 bytes
    ``stream``    16 random bytes of the client
    ``round``     0 before the first round
    ``sequence``  counts the logs of the stream from 0
    """

    job: str
    digest: bytes
    site: str
    client: str
    stream: bytes
    round: int
    sequence: int

    def info(self) -> bytes:
        """Return the HPKE info.

        :raises ValueError: when a digest, stream or number is not one.
        """
        if len(self.digest) != 32 or len(self.stream) != STREAM_BYTES:
            raise ValueError(f"a digest has 32 bytes and a stream {STREAM_BYTES}")
        if not (0 <= self.round < 2**32 and 0 <= self.sequence < 2**32):
            raise ValueError("a round and a sequence are numbers of 32 bits")
        return _DOMAIN + pack(
            self.job.encode(),
            self.digest,
            self.site.encode(),
            self.client.encode(),
            self.stream,
            _NUMBER.pack(self.round),
            _NUMBER.pack(self.sequence),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedAppLog:
    """One log in the clear. ``left_out`` lines were beyond the bound of a round."""

    lines: tuple[AppLogLine, ...]
    left_out: int = 0


def seal_app_log(log: OpenedAppLog, name: AppLogName, public_key: bytes) -> bytes:
    """Seal a log to the owner's raw X25519 public key.

    :raises ValueError: when the key is not one, or the log is larger than the bounds.
    """
    if len(log.lines) > MAX_LINES:
        raise ValueError(f"a log has at most {MAX_LINES} lines")
    rows = [[line.level, line.text, line.logger, line.file, line.line] for line in log.lines]
    document = {"left_out": log.left_out, "lines": rows}
    plain = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    sealed = hpke_seal(plain, public_key, info=name.info())
    if len(sealed) > MAX_SEALED_BYTES:
        raise ValueError(f"a sealed log has at most {MAX_SEALED_BYTES} bytes")
    return sealed


def open_app_log(sealed: bytes, name: AppLogName, key: X25519PrivateKey) -> OpenedAppLog:
    """Open what :func:`seal_app_log` made.

    :raises UnsealError: for another key, another name, altered bytes, or a content that is no log.
    """
    if len(sealed) > MAX_SEALED_BYTES:
        raise UnsealError(f"a sealed log has at most {MAX_SEALED_BYTES} bytes, not {len(sealed)}")
    plain = hpke_open(sealed, key, info=name.info())
    try:
        document: dict[str, Any] = json.loads(plain)
        left_out, rows = document["left_out"], document["lines"]
        if type(left_out) is not int or not 0 <= left_out <= _MAX_COUNT:
            raise ValueError("the number of lines that were left out is out of range")
        if not isinstance(rows, list) or len(rows) > MAX_LINES:
            raise ValueError(f"its lines are not a list of at most {MAX_LINES}")
        return OpenedAppLog(lines=tuple(map(_line, rows)), left_out=left_out)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsealError(f"its content is not a log: {error}") from None


def _line(row: Sequence[Any]) -> AppLogLine:
    level, text, logger, file, number = row
    return AppLogLine(level=level, text=text, logger=logger, file=file, line=number)
