"""The result of a run: what its events report, its metrics as a table and a plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from fedlearn.api.sources import FolderSource, Source
from fedlearn.extras import load
from fedlearn.job.events import Event
from fedlearn.results.history import RunHistory
from fedlearn.results.run_folder import RunFolder

if TYPE_CHECKING:
    from fedlearn.update.arrays import Array
    from server.ledger import VerifiedLedger

__all__ = ["Result"]


class Result:
    """The result of a run so far; the run need not have finished.

    ``history`` is what its events report: rounds, sites, refusals, privacy and times
    (:class:`fedlearn.results.history.RunHistory`).
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.history = RunHistory.of(source.events())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the result of a run that is kept in a folder, as ``fedlearn job try`` leaves it.

        :raises ConfigError: when it is not the folder of a run.
        """
        return cls(FolderSource(RunFolder.load(Path(folder))))

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

    @property
    def folder(self) -> Path | None:
        """The folder that keeps a run of this machine; None for one at a coordinator."""
        return self._source.folder.path if isinstance(self._source, FolderSource) else None

    @property
    def weights(self) -> Path | None:
        """The file with the weights in :attr:`folder`; None where there is none."""
        if isinstance(self._source, FolderSource) and self._source.folder.model.exists():
            return self._source.folder.model
        return None

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

    @overload
    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: Literal["arrays"] = "arrays",
    ) -> dict[str, Array]: ...

    @overload
    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: Literal["torch"],
    ) -> dict[str, Any]: ...

    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: str = "arrays",
    ) -> Any:
        """Return the weights: arrays by name, or a torch ``state_dict``.

        They are in plaintext from then on, in the memory of this process.

        :param key: the file of the owner's private key (X25519, PEM), for a run at a coordinator.
            The model of a run here is in plaintext in its folder.
        :param ask: returns the passphrase of the key; called only when its file is encrypted.
        :param as_: ``"arrays"`` for numpy, or ``"torch"``.
        :raises ConfigError: when a key is needed, or torch is not installed.
        :raises JobError: when the run has made no model.
        :raises KeyReleaseDenied: when the model is not sealed for the key.
        :raises ModelNotAuthentic: when the coordinator did not seal it.
        """
        if as_ not in ("arrays", "torch"):
            raise ValueError(f'as_ must be "arrays" or "torch", not {as_!r}')
        arrays = self._source.arrays(None if key is None else Path(key), ask)
        if as_ == "arrays":
            return arrays
        return load("fedlearn.update.torch", needed_for="a state_dict").to_state_dict(arrays)

    def download(self, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Write the model to a file: sealed from a coordinator, as safetensors from a folder.

        :param replace: replace an existing file.
        :raises ConfigError: when the file exists.
        :raises JobError: when the run has made no model.
        """
        self._source.download(Path(path), replace=replace)
        return Path(path)

    def verify_ledger(self) -> VerifiedLedger:
        """Verify the record of every decision.

        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        return self._source.verify_ledger()
