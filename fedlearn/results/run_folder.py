"""The folder in which a run on this machine is kept.

``fedlearn job try`` and ``fedlearn simulate`` write it, and :meth:`fedlearn.api.job.Job.try_` and
:meth:`~fedlearn.api.job.Job.simulate`::

    run.toml           what runs: the name of the job, the digests of job and app
    job.toml           the job as it runs here; policy.toml, its policy
    events.jsonl       the events, one JSON object a line, as every command prints them
    model.safetensors  the weights
    report.html        the report
    logs/              the output of each process; app.log, what the app wrote at the sites
    ledger/            the record of every decision, and the public key that verifies it
    federation/        what the run needs to go on; removed once it has finished
    simulation/        the same of a simulation, which has no policy and no ledger

Only its owner can access it. Nothing in it is encrypted.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from attestation.config import dumps, flag, hexadecimal, option, text, to_plain
from attestation.durable import write_durably
from fedlearn import config
from fedlearn.errors import ConfigError, TransportError
from fedlearn.job.events import EVENT_SCHEMA, MAX_EVENT_BYTES, Event
from fedlearn.results.history import RunHistory
from fedlearn.terminal.plaintext import json_text

__all__ = ["About", "Recorder", "RunFolder"]

_ABOUT: Final = "run.toml"
_EVENTS: Final = "events.jsonl"
_MAX_LINE_BYTES: Final = 4 * MAX_EVENT_BYTES
_MAX_RUNS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What runs in a folder.

    ``job``     the name of the job
    ``metric``  the one that is shown first; empty for none
    ``tee``     the kind of evidence of the simulated machines
    ``digest``  that of the job's file as it was when the run began, 32 bytes
    ``bundle``  SHA-256 of the app's bundle
    ``simulated``  whether attestation, TLS and sealing were left out (``fedlearn simulate``)
    """

    job: str = option(config.name())
    metric: str = option(text(least=0), default="")
    tee: str = option(text())
    digest: bytes = option(hexadecimal(32))
    bundle: bytes = option(hexadecimal(32))
    simulated: bool = option(flag(), default=False)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run that is kept in ``path``. Make one with :meth:`create`, or open it by :meth:`load`."""

    path: Path
    about: About

    @classmethod
    def create(cls, path: Path, about: About) -> Self:
        """Make the folder.

        :raises ConfigError: when it exists.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise ConfigError(
                "exists", where=str(path), hint="name a new folder, or continue it with --resume"
            ) from None
        write_durably(path / _ABOUT, dumps(to_plain(about)).encode())
        return cls(path, about)

    @classmethod
    def create_below(cls, base: Path, about: About) -> Self:
        """Make the next folder ``NAME-N`` below ``base``; N counts from 1."""
        for number in range(_newest(base, about.job) + 1, _MAX_RUNS):
            with contextlib.suppress(ConfigError):
                return cls.create(base / f"{about.job}-{number}", about)
        raise ConfigError("holds too many runs", where=str(base), hint="remove old ones")

    @staticmethod
    def next_below(base: Path, job: str) -> Path:
        """Return the next path ``NAME-N`` below ``base`` for a run of a job; it does not exist."""
        return base / f"{job}-{_newest(base, job) + 1}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open the folder of a run.

        :raises ConfigError: when ``path`` is not one.
        """
        if not cls.is_one(path):
            raise ConfigError(
                f"is not the folder of a run: it has no {_ABOUT}",
                where=str(path),
                hint="`fedlearn job try` makes one, and prints its name",
            )
        return cls(path, config.read_file(About, path / _ABOUT))

    @classmethod
    def newest(cls, base: Path, job: str) -> Self:
        """Open the newest folder ``NAME-N`` of a job below ``base``.

        :raises ConfigError: when there is none.
        """
        number = _newest(base, job)
        if not number:
            raise ConfigError(
                f"holds no run of the job {job!r}",
                where=str(base),
                hint="name its folder with --run, or begin one without --resume",
            )
        return cls.load(base / f"{job}-{number}")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return whether ``path`` is the folder of a run."""
        return (path / _ABOUT).is_file()

    @property
    def model(self) -> Path:
        """The file with the weights; it exists when the run has made a model."""
        return self.path / "model.safetensors"

    @property
    def report(self) -> Path:
        """The file of the report."""
        return self.path / "report.html"

    @property
    def job(self) -> Path:
        """The job as it runs here."""
        return self.path / "job.toml"

    @property
    def policy(self) -> Path:
        """The policy of the job."""
        return self.path / "policy.toml"

    @property
    def logs(self) -> Path:
        """The folder with the output of each process."""
        return self.path / "logs"

    @property
    def ledger(self) -> Path:
        """The folder with the ledger, once the run has finished."""
        return self.path / "ledger"

    @property
    def federation(self) -> Path:
        """The folder with the states of coordinator and sites, until the run has finished."""
        return self.path / "federation"

    @property
    def simulation(self) -> Path:
        """The folder with the state of a simulation, until it has finished."""
        return self.path / "simulation"

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far, each with its time in milliseconds since 1970.

        A last line that was not written completely is left out.

        :raises ConfigError: naming the line that is not an event.
        """
        for line in self._lines():
            yield line.event, line.unix_ms

    def history(self) -> RunHistory:
        """Return the history of the events so far."""
        return RunHistory.of(self.events())

    @contextlib.contextmanager
    def record(self) -> Iterator[Recorder]:
        """A context that writes events. Only one process at a time may write.

        :raises ConfigError: when another process writes.
        """
        handle = os.open(self.path / _ABOUT, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "this run goes on in another process", where=str(self.path)
                ) from None
            with Recorder(self) as recorder:
                yield recorder
        finally:
            os.close(handle)

    def _lines(self) -> Iterator[_Line]:
        file = self.path / _EVENTS
        if not file.exists():
            return
        with file.open("rb") as lines:
            for number in itertools.count(1):
                line = lines.readline(_MAX_LINE_BYTES + 1)
                if not line.endswith(b"\n") and len(line) <= _MAX_LINE_BYTES:
                    return
                yield _parsed(line, lines.tell(), f"{file}:{number}")


@dataclass(frozen=True, slots=True)
class _Line:
    """One event; ``end`` is the offset in the file behind it."""

    event: Event
    unix_ms: int
    sequence: int
    end: int


class Recorder:
    """Appends events to those of a folder; see :meth:`RunFolder.record`.

    ``sequence`` is the number of the last event that the folder has, as the coordinator counts.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.sequence = 0
        self._path = folder.path / _EVENTS
        size = 0
        for line in folder._lines():
            self.sequence, size = max(self.sequence, line.sequence), line.end
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def add(self, event: Event, *, unix_ms: int, sequence: int) -> None:
        """Write one event; its bytes are handed to the system before this returns."""
        body = {**event.to_json(), "unix_ms": unix_ms, "sequence": sequence, "schema": EVENT_SCHEMA}
        line = memoryview(json_text(body).encode() + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]
        self.sequence = max(self.sequence, sequence)


def _parsed(line: bytes, end: int, where: str) -> _Line:
    """Return the event in ``line``.

    :raises ConfigError: when it is none.
    """
    try:
        body: Any = json.loads(line) if len(line) <= _MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.pop("schema", EVENT_SCHEMA) != EVENT_SCHEMA:
        raise ConfigError(f"is not an event of the schema {EVENT_SCHEMA!r}", where=where)
    unix_ms, sequence = body.pop("unix_ms", 0), body.pop("sequence", 0)
    kind = body.pop("kind", None)
    if type(unix_ms) is not int or type(sequence) is not int or not isinstance(kind, str):
        raise ConfigError("the time, the sequence or the kind of an event is wrong", where=where)
    try:
        event = Event.decode(kind, json.dumps(body, ensure_ascii=False))
    except TransportError as error:
        raise ConfigError(str(error), where=where) from None
    return _Line(event, unix_ms, sequence, end)


def _newest(base: Path, job: str) -> int:
    """Return the largest number of a folder of the job's runs, or 0."""
    numbers = (path.name.removeprefix(f"{job}-") for path in base.glob(f"{job}-*"))
    return max((int(n) for n in numbers if n.isdecimal() and len(n) <= 6), default=0)
