"""The result of a run: what its events report, its metrics as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedlearn.api.sources import Source
from fedlearn.job.events import Event
from fedlearn.results.history import RunHistory

__all__ = ["Result"]


class Result:
    """The result of a run so far; the run need not have finished.

    ``history`` is what its events report: rounds, sites, refusals, privacy and times
    (:class:`fedlearn.results.history.RunHistory`).
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.history = RunHistory.of(source.events())

    def __repr__(self) -> str:
        """Return name, status and number of finished rounds."""
        rounds = f"{len(self.history.finished)}/{self.history.planned}"
        return f"Result({self.name!r}, {self.status!r}, round {rounds})"

    @property
    def name(self) -> str:
        """What names the run."""
        return self._source.name

    @property
    def status(self) -> str:
        """``waiting``, ``running``, ``finished``, ``failed``, ``cancelled`` or ``interrupted``."""
        return self.history.status

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far, each with its time in milliseconds since 1970."""
        return self._source.events()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished rounds, one mapping each.

        ``round``, ``sites``, ``seconds``, ``bytes``, each metric by its name, and ``epsilon`` where
        the job has a privacy budget. A metric that one round lacks is left out of its mapping.
        """
        return [
            {
                "round": each.number,
                "sites": each.sites,
                "seconds": each.seconds,
                "bytes": each.bytes,
                **each.metrics,
                **({} if each.privacy is None else {"epsilon": each.privacy.epsilon}),
            }
            for each in self.history.finished
        ]

    @property
    def metrics(self) -> Any:
        """The finished rounds: a pandas DataFrame, or :attr:`rows` where pandas is not installed.

        The index of the frame is the number of the round.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            return self.rows
        frame = pd.DataFrame(self.rows, columns=None if self.rows else ["round"])
        return frame.set_index("round")
