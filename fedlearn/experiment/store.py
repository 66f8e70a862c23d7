"""The results of cells on disk: one folder for each key, whose small files are the whole truth.

::

    results/
      cells/KEY/order.json    what runs, written before it runs
      cells/KEY/run/          the simulator's folder, from which an interrupted cell goes on
      cells/KEY/progress      rounds done, of how many
      cells/KEY/output.log    what the process of the cell wrote
      cells/KEY/result.json   the result; written once, whole, when the cell has finished
      cells/KEY/failure.json  why it failed
      *.parquet, report/      made of the results; see fedlearn.experiment.parquet and .report

Each JSON file is written atomically and has the SHA-256 of its content in it, so that one which
was cut short or changed is detected, named, and not used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from attestation.durable import write_durably
from fedlearn.errors import ConfigError, StoreError
from fedlearn.experiment.cells import Cell
from fedlearn.experiment.keys import KEY_LENGTH

__all__ = ["CellResult", "Failure", "RoundResult", "Store", "read_sealed", "write_sealed"]

_MAX_BYTES: Final = 256 * 1024 * 1024
_RESULT: Final = "fedlearn experiment result/1"
_FAILURE: Final = "fedlearn experiment failure/1"
_KEY: Final = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One round of a cell.

    ``seconds``          wall clock
    ``virtual_seconds``  simulated clock at the end of the round, None without virtual time
    ``bytes_down``, ``bytes_up``  to and from the clients
    ``epsilon``          spent so far, None without privacy
    """

    round: int
    seconds: float
    bytes_down: int
    bytes_up: int
    virtual_seconds: float | None = None
    epsilon: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The result of one cell.

    ``content``      everything that the key is the digest of
    ``environment``  the machine and its system
    ``rounds``       in their order, with round 0 where the first model was evaluated
    ``clients``      by metric, the value of each client in its last evaluation
    ``insecure``     what the simulation left out, in words
    """

    key: str
    cell: Cell
    content: Mapping[str, Any]
    environment: Mapping[str, str]
    finished_unix_ms: int
    seconds: float
    cpu_seconds: float
    rounds: tuple[RoundResult, ...]
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    insecure: str = ""

    def series(self, metric: str) -> list[tuple[RoundResult, float]]:
        """Return the rounds that have a finite value of ``metric``, with it."""
        return [
            (each, each.metrics[metric])
            for each in self.rounds
            if math.isfinite(each.metrics.get(metric, math.nan))
        ]

    @property
    def last_round(self) -> int:
        """The number of its last round; 0 without any."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics of its rounds, sorted."""
        return sorted({name for each in self.rounds for name in each.metrics})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a cell failed: the error and the last lines that its process wrote."""

    error: str
    hint: str = ""
    tail: str = ""
    unix_ms: int = 0


class Store:
    """The results below ``folder``, which is made when something is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether anything was ever run here."""
        return (self.folder / "cells").is_dir()

    def cell_folder(self, key: str) -> Path:
        """Return the folder of a cell."""
        return self.folder / "cells" / key

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process runs cells of this store.

        :raises ConfigError: when another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "cells").mkdir(exist_ok=True)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "another process runs this experiment",
                    where=str(self.folder),
                    hint="wait for it, or stop it; nothing that has finished is lost",
                ) from None
            yield
        finally:
            os.close(handle)

    def result(self, key: str) -> CellResult | None:
        """Return the result of a cell; None when it has not finished.

        :raises StoreError: when its file was cut short or changed.
        """
        path = self.cell_folder(key) / "result.json"
        if not path.exists():
            return None
        body = read_sealed(path, _RESULT)
        try:
            return _decoded(body)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise StoreError(f"{path}: is not a result of this release") from None

    def results(self) -> tuple[list[CellResult], list[str]]:
        """Return every result, and a sentence for each file that cannot be used."""
        found, faults = [], []
        if self.exists:
            for folder in sorted((self.folder / "cells").iterdir()):
                if _KEY.fullmatch(folder.name):
                    try:
                        result = self.result(folder.name)
                    except StoreError as error:
                        faults.append(str(error))
                        continue
                    if result is not None:
                        found.append(result)
        return found, faults

    def failure(self, key: str) -> Failure | None:
        """Return why a cell failed; None when it did not, or nobody can tell."""
        path = self.cell_folder(key) / "failure.json"
        if not path.exists():
            return None
        try:
            return Failure(**read_sealed(path, _FAILURE))
        except (StoreError, TypeError):
            return Failure(error=f"{path} was cut short or changed")

    def write_result(self, result: CellResult) -> None:
        """Keep the result of a cell; the failure of an earlier attempt is removed.

        :raises OSError: when the disk is full or cannot be written.
        """
        folder = self.cell_folder(result.key)
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / "result.json", _RESULT, _encoded(result))
        self.forget_failure(result.key)

    def write_failure(self, key: str, failure: Failure) -> None:
        """Keep why a cell failed."""
        folder = self.cell_folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        body = {name: getattr(failure, name) for name in ("error", "hint", "tail", "unix_ms")}
        write_sealed(folder / "failure.json", _FAILURE, body)

    def forget_failure(self, key: str) -> None:
        """Let a cell that failed run again."""
        (self.cell_folder(key) / "failure.json").unlink(missing_ok=True)

    def progress(self, key: str) -> tuple[int, int]:
        """Return the rounds that a cell has done, and how many it has; 0 where not known."""
        try:
            done, _, planned = (self.cell_folder(key) / "progress").read_text().partition("/")
            return int(done), int(planned)
        except (OSError, ValueError):
            return 0, 0


def write_sealed(path: Path, schema: str, body: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, with its schema and the digest of its content."""
    text = json.dumps(body, sort_keys=True, indent=1, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    head = json.dumps({"schema": schema, "sha256": digest})
    write_durably(path, f"{head}\n{text}\n".encode(), mode=0o644)


def read_sealed(path: Path, schema: str) -> dict[str, Any]:
    """Return what :func:`write_sealed` wrote.

    :raises StoreError: naming the file, when it was cut short, was changed or is another one.
    """
    with path.open("rb") as source:
        data = source.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise StoreError(f"{path}: is larger than the {_MAX_BYTES} bytes that are read")
    head, _, rest = data.partition(b"\n")
    text = rest[:-1] if rest.endswith(b"\n") else rest
    try:
        described = json.loads(head)
        known = described["schema"] == schema
        whole = described["sha256"] == hashlib.sha256(text).hexdigest()
        body = json.loads(text) if whole else None
    except (ValueError, KeyError, TypeError, RecursionError):
        known, body = True, None
    if not known:
        raise StoreError(f"{path}: is not a {schema!r}")
    if not isinstance(body, dict):
        raise StoreError(
            f"{path}: was cut short or changed: its content does not have the digest in its "
            "first line",
            hint="`fedlearn experiment resume` runs this cell again; all others are kept",
        )
    return body


# --- JSON -----------------------------------------------------------------------------


def _encoded(result: CellResult) -> dict[str, Any]:
    cell = result.cell
    return {
        "key": result.key,
        "cell": {
            "seed": cell.seed,
            "arm": cell.arm,
            "labels": dict(cell.labels),
            "values": dict(cell.values),
            "trial": cell.trial,
        },
        "content": dict(result.content),
        "environment": dict(result.environment),
        "finished_unix_ms": result.finished_unix_ms,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "insecure": result.insecure,
        "rounds": [
            {
                "round": each.round,
                "seconds": each.seconds,
                "bytes_down": each.bytes_down,
                "bytes_up": each.bytes_up,
                "virtual_seconds": _number(each.virtual_seconds),
                "epsilon": _number(each.epsilon),
                "metrics": _numbers(each.metrics),
            }
            for each in result.rounds
        ],
        "clients": {metric: _numbers(values) for metric, values in result.clients.items()},
    }


def _decoded(body: Mapping[str, Any]) -> CellResult:
    return CellResult(
        **{
            **body,
            "cell": Cell(**body["cell"]),
            "rounds": tuple(
                RoundResult(
                    **{
                        **each,
                        "virtual_seconds": _optional(each["virtual_seconds"]),
                        "epsilon": _optional(each["epsilon"]),
                        "metrics": _floats(each["metrics"]),
                    }
                )
                for each in body["rounds"]
            ),
            "clients": {metric: _floats(values) for metric, values in body["clients"].items()},
        }
    )


def _number(value: float | None) -> float | str | None:
    """A number that is not finite is its name: JSON has no other form of it (RFC 8259)."""
    return value if value is None or math.isfinite(value) else str(value)


def _numbers(values: Mapping[str, float]) -> dict[str, float | str | None]:
    return {name: _number(value) for name, value in values.items()}


def _optional(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def _floats(values: Mapping[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
