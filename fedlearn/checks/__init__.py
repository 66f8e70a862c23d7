"""Checks of a machine and of a configuration, each of which reports what it found.

A check is a function that examines one thing and returns :class:`Check` values; it leaves no
changes. ``fedlearn doctor``, ``fedlearn-server check`` and ``fedlearn-edge check``
choose from them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from attestation.errors import AttestationError
from fedlearn.errors import FedlearnError

__all__ = ["Check", "Level", "Probe", "run"]


class Level(enum.StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"
    """It works, but something is missing or weaker than it could be."""
    FAIL = "fail"
    """Something that is configured will not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was examined: what was found, and how to correct it if it is not ok."""

    name: str
    level: Level
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the check as JSON-ready values."""
        return {
            "name": self.name,
            "level": self.level.value,
            "found": self.found,
            "mend": self.mend,
        }


Probe = Callable[[], "Check | Iterable[Check]"]


def ok(name: str, found: str) -> Check:
    """Return a check without a fault."""
    return Check(name=name, level=Level.OK, found=found)


def warn(name: str, found: str, mend: str) -> Check:
    """Return a check with a warning."""
    return Check(name=name, level=Level.WARN, found=found, mend=mend)


def fail(name: str, found: str, mend: str) -> Check:
    """Return a check with a fault."""
    return Check(name=name, level=Level.FAIL, found=found, mend=mend)


def run(probes: Iterable[tuple[str, Probe]]) -> tuple[Check, ...]:
    """Run named probes; a probe that cannot be run is a failed check."""
    checks: list[Check] = []
    for name, probe in probes:
        try:
            found = probe()
            checks += [found] if isinstance(found, Check) else found
        except (FedlearnError, AttestationError) as error:
            checks.append(fail(name, str(error), error.hint))
        except OSError as error:
            checks.append(fail(name, str(error), "check the path and its permissions"))
    return tuple(checks)
