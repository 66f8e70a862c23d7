"""Where the result of a run comes from: the folder of a run here, or a coordinator."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedlearn.api.link import Link
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError, JobError
from fedlearn.identity.login import ca_pin
from fedlearn.job.events import Event
from fedlearn.job.spec import JobSpec
from fedlearn.results.report import ReportFacts
from fedlearn.results.run_folder import RunFolder

if TYPE_CHECKING:
    from fedlearn.update.arrays import Array
    from server.ledger import VerifiedLedger

__all__ = ["CoordinatorSource", "FolderSource", "Source"]


class Source(Protocol):
    """Where the result of one run comes from."""

    @property
    def name(self) -> str:
        """What names the run."""
        ...

    def facts(self) -> ReportFacts:
        """Return what the report of the run shows besides its events."""
        ...

    def spec(self) -> JobSpec:
        """Return the job that was submitted."""
        ...

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far, each with its time in milliseconds since 1970."""
        ...

    def arrays(self, key: Path | None, ask: Callable[[], str] | None) -> dict[str, Array]:
        """Return the weights.

        :param key: the file of the owner's private key, for a model that is sealed.
        :param ask: returns the passphrase of the key; called only when its file is encrypted.
        """
        ...

    def download(self, path: Path, *, replace: bool) -> None:
        """Write the model to ``path``: sealed at a coordinator, in plaintext from a folder."""
        ...

    def verify_ledger(self) -> VerifiedLedger:
        """Verify every entry of the ledger."""
        ...


class FolderSource:
    """A run that is kept in a folder of this machine."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.path.resolve().name

    def facts(self) -> ReportFacts:
        """Return what the folder has about the run."""
        about = self.folder.about
        if about.simulated:
            return _facts_of_simulation(self.folder)
        return ReportFacts(
            metric=about.metric,
            insecure=f"This run was a trial on one machine: its evidence ({about.tee}) is made by "
            "software.",
            about=[("Digest of the job", about.digest.hex()), ("App", about.bundle.hex())],
            notes=[
                "All parties ran on one machine, as one user.",
                "The policy of the job was replaced by one for simulated machines.",
            ],
        )

    def spec(self) -> JobSpec:
        """Return the job as it runs here.

        :raises JobError: when the run ended before the job was submitted.
        """
        if not self.folder.job.exists():
            raise JobError(f"the run in {self.folder.path} ended before its job was submitted")
        return JobSpec.from_toml(file_bytes(self.folder.job), str(self.folder.job))

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events of the folder."""
        return self.folder.events()

    def arrays(self, key: Path | None, ask: Callable[[], str] | None) -> dict[str, Array]:
        """Return the weights, which are in plaintext here: no key is used.

        :raises JobError: when the run has made no model.
        """
        from fedlearn.update.arrays import Update

        file = self._model()
        return dict(Update.from_bytes(file.read_bytes(), max_bytes=file.stat().st_size))

    def download(self, path: Path, *, replace: bool) -> None:
        """Copy the file with the weights to ``path``, with mode 0600.

        :raises ConfigError: when ``path`` exists and is not to be replaced.
        :raises JobError: when the run has made no model.
        """
        from attestation.durable import write_durably

        file = self._model()
        if not replace and os.path.lexists(path):
            raise ConfigError("exists", where=str(path), hint="name another file, or replace it")
        write_durably(path, file.read_bytes())

    def verify_ledger(self) -> VerifiedLedger:
        """Verify every entry of the ledger.

        :raises JobError: when the run has not finished.
        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        from server.ledger import LEDGER_FILE, PUBLIC_KEY_FILE, LedgerReader, load_public_key

        if self.folder.about.simulated:
            raise JobError(
                f"the run in {self.folder.path} was simulated, so that it has no ledger",
                hint="`fedlearn job try` runs the job with attestation and keeps the ledger",
            )
        kept = self.folder.ledger
        if not kept.is_dir():
            raise JobError(
                f"the run in {self.folder.path} has not finished, so that it has no ledger yet",
                hint="`fedlearn job try --resume` continues it",
            )
        return LedgerReader(kept / LEDGER_FILE).verify(load_public_key(kept / PUBLIC_KEY_FILE))

    def _model(self) -> Path:
        if not self.folder.model.exists():
            raise JobError(
                f"the run in {self.folder.path} has made no model",
                hint="`fedlearn job try --resume` continues a run that has not finished",
            )
        return self.folder.model


def _facts_of_simulation(folder: RunFolder) -> ReportFacts:
    about = folder.about
    private = folder.job.exists() and "[privacy]" in folder.job.read_text(encoding="utf-8")
    return ReportFacts(
        metric=about.metric,
        insecure="This run was simulated: attestation, TLS and sealing were left out.",
        about=[("Digest of the job", about.digest.hex()), ("App", about.bundle.hex())],
        notes=[
            "All parties shared the processes of one user; no client had a sandbox.",
            *(
                ["The noise was derived from the seed of the job, and is not secret."]
                if private
                else []
            ),
        ],
    )


class CoordinatorSource:
    """A run at a coordinator, over an operator's login.

    :param reference: what names exactly this run to the coordinator.
    :param name: what names it to people.
    :param metric: the metric that is shown first; empty for none.
    """

    def __init__(self, link: Link, reference: str, name: str, metric: str) -> None:
        self._link = link
        self._reference = reference
        self._name = name
        self._metric = metric

    @property
    def name(self) -> str:
        """The job's name, ``NAME@N`` from the second run on."""
        return self._name

    def facts(self) -> ReportFacts:
        """Return the address of the coordinator, and which run of the job it is."""
        state = self._link.client.get_job(self._reference)
        return ReportFacts(
            metric=self._metric,
            source=self._link.login.address,
            about=[("Run", state.reference), ("Digest of the job", state.id)],
        )

    def spec(self) -> JobSpec:
        """Return the job that was submitted, checked against its digest."""
        return self._link.client.get_submission(self._reference).spec

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events that the coordinator has."""
        for item in self._link.client.follow_job(self._reference, past_only=True):
            yield Event.decode(item.kind, item.json), item.unix_ms

    def arrays(self, key: Path | None, ask: Callable[[], str] | None) -> dict[str, Array]:
        """Download the sealed model and open it with the owner's key.

        :raises ConfigError: without a key, or when it cannot be read.
        :raises JobError: when the run has made no model.
        :raises KeyReleaseDenied: when the model is not sealed for the key.
        :raises ModelNotAuthentic: when this coordinator did not seal it.
        """
        from fedlearn.api.owned import open_owned
        from fedlearn.update import sealed

        if key is None:
            raise ConfigError(
                "is needed: the model is sealed for the job's owner",
                key="key",
                hint="name the file with the private half of the job's owner_key",
            )
        with tempfile.TemporaryDirectory(prefix="fedlearn-model-") as scratch:
            file = Path(scratch) / "model.sealed"
            self.download(file, replace=False)
            with open_owned(file, key, ask=ask) as reader:
                return sealed.load(reader)

    def download(self, path: Path, *, replace: bool) -> None:
        """Download the sealed model to ``path``; see :mod:`fedlearn.api.downloads`.

        :raises JobError: when the run has made no model.
        """
        from fedlearn.api.downloads import download_model

        state = self._link.client.get_job(self._reference)
        if not state.model:
            raise JobError(f"the job {self.name} has no model; it is {state.status}")
        pin = bytes.fromhex(ca_pin(self._link.login.ca))
        # By the run: the name of the job alone is that of its newest run.
        download_model(self._link.client, state.reference, path, pin=pin, replace=replace)

    def verify_ledger(self) -> VerifiedLedger:
        """Verify every entry of the coordinator's ledger; see :meth:`Link.verify_ledger`."""
        return self._link.verify_ledger()
