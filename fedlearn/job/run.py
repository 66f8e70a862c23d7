"""The runs of a job: each submission of one name is a run of its own.

People type the name of a job. Each run has an *id*, under which the ledger, the SPIFFE ids of its
clients, its sealed model and its sites know it::

    heart       the first run of the job ``heart``
    heart.2     the second

No name of a job has a dot, so no id of one job is that of another. A *reference* is what a person
types: ``NAME`` is the newest run, ``NAME@N`` is run N, and the id of a later run is that run.

The page is docs/adr/0033-runs.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from fedlearn.errors import ConfigError

__all__ = ["MAX_RUNS", "RunName", "checked_reference", "checked_run_id"]

MAX_RUNS: Final = 9_999
"""The most runs of one name."""

_MAX_CHARS: Final = 63  # a DNS label, and the value of a label in Kubernetes
_NAME: Final = r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
_ID: Final = re.compile(_NAME + r"(?:\.([1-9][0-9]{0,3}))?")
_REFERENCE: Final = re.compile(_NAME + r"(?:[.@]([1-9][0-9]{0,3}))?")
_HINT: Final = "use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"


@dataclass(frozen=True, slots=True, order=True)
class RunName:
    """Run ``number`` of the job ``name``; the first is 1.

    >>> RunName("heart").id, RunName("heart", 2).id, RunName("heart", 2).reference
    ('heart', 'heart.2', 'heart@2')
    >>> RunName.of_id("heart.2")
    RunName(name='heart', number=2)
    """

    name: str
    number: int = 1

    @property
    def id(self) -> str:
        """The id of the run: the name of the job for the first, ``NAME.N`` for run N."""
        return self.name if self.number == 1 else f"{self.name}.{self.number}"

    @property
    def reference(self) -> str:
        """What names exactly this run to every command: ``NAME@N``."""
        return f"{self.name}@{self.number}"

    @classmethod
    def of_id(cls, text: str, what: str = "job") -> Self:
        """Return the run that has the id ``text``.

        :raises ConfigError: naming ``what`` when it is not the id of a run.
        """
        found = _ID.fullmatch(text) if len(text) <= _MAX_CHARS else None
        if found is None or found[2] == "1":
            shown = ascii(text if len(text) <= 64 else text[:61] + "...")
            raise ConfigError(f"{shown} is not a name", key=what, hint=_HINT)
        return cls(found[1], int(found[2] or 1))


def checked_run_id(text: str, what: str = "job") -> str:
    """Return ``text`` if it is the id of a run.

    :raises ConfigError: naming ``what`` otherwise.
    """
    return RunName.of_id(text, what).id


def checked_reference(text: str, what: str = "job") -> tuple[str, int | None]:
    """Return the name of a job and the number of a run, ``None`` for the newest one.

    >>> checked_reference("heart"), checked_reference("heart@1"), checked_reference("heart.2")
    (('heart', None), ('heart', 1), ('heart', 2))

    :raises ConfigError: naming ``what`` when ``text`` names neither.
    """
    found = _REFERENCE.fullmatch(text) if len(text) <= _MAX_CHARS + 5 else None
    if found is None:
        shown = ascii(text if len(text) <= 64 else text[:61] + "...")
        raise ConfigError(
            f"{shown} is not a name", key=what, hint=f"{_HINT}; NAME@2 is the second run of NAME"
        )
    return found[1], None if found[2] is None else int(found[2])
