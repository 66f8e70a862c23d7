"""A connection to a coordinator, with an operator's login.

The page is docs/reference/api/python.md.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedlearn.api.job import Job
from fedlearn.api.link import Link
from fedlearn.api.run import Run
from fedlearn.api.validation import policy_signature
from fedlearn.identity.login import ca_pin, default_folder
from fedlearn.job.state import JobState

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient, SiteState
    from fedlearn.wire.results import SealedModel
    from server.ledger import VerifiedLedger

__all__ = ["Connection", "connect"]


def connect(login: str | os.PathLike[str] | None = None) -> Connection:
    """Return a connection to the coordinator that an operator's login names.

    Nothing is sent before the first call. Use it as a context, or keep it: it holds no more than a
    network connection, which is opened when it is needed and again after it was closed.

    :param login: the folder of the login, as ``fedlearn operator login`` makes it; without one,
        the folder that ``FEDLEARN_OPERATOR`` names, or the one in the user's settings.
    :raises ConfigError: when the login is missing or wrong.

    ::

        with fedlearn.connect() as coordinator:
            run = coordinator.submit(fedlearn.Job.load("my-job/job.toml"))
            print(run.follow().metrics)
    """
    return Connection(Path(login) if login is not None else default_folder())


class Connection:
    """A connection to a coordinator; made by :func:`connect`.

    Each call raises :class:`~fedlearn.errors.TransportError` when the coordinator cannot be
    reached or does not prove who it is. It is not thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self._link = Link(folder)

    def __repr__(self) -> str:
        """Return the address of the coordinator."""
        return f"Connection({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where the coordinator is: ``host:port``."""
        return self._link.login.address

    @property
    def client(self) -> OperatorClient:
        """Every call that an operator can make, for what this class has no method for."""
        return self._link.client

    def submit(self, job: Job) -> Run:
        """Check a job, submit it, and return its run.

        The notes of its state are about its app, and about what sites report that they refuse.

        :raises ConfigError: when something is wrong with it, here or at the coordinator.
        :raises JobError: when the coordinator does not accept it.
        """
        report = job.validate()
        # Paths of this machine are not sent.
        submitted = dataclasses.replace(
            report.spec, app=report.app.name or "app", policy=report.policy_file.name
        )
        state = self.client.submit_job(
            job_toml=submitted.to_toml(),
            bundle=report.bundle,
            policy_toml=report.policy_toml,
            policy_signature=policy_signature(report.policy_file),
        )
        noted = dataclasses.replace(state, notes=(*report.app_notes, *state.notes))
        return Run(self._link, noted, metric=report.spec.evaluate.metric)

    def job(self, name: str) -> Run:
        """Return the run of a job that was submitted before.

        :raises JobError: when the coordinator does not know it.
        """
        return Run(self._link, self.client.get_job(name))

    def jobs(self) -> tuple[JobState, ...]:
        """Return the state of every job."""
        return self.client.list_jobs()

    def sites(self) -> tuple[SiteState, ...]:
        """Return the state of every site."""
        return self.client.list_sites()

    def models(self) -> tuple[SealedModel, ...]:
        """Return every version of every sealed model that the coordinator keeps."""
        return self.client.list_models()

    def download(
        self,
        model: str,
        path: str | os.PathLike[str],
        *,
        version: int = 0,
        replace: bool = False,
    ) -> SealedModel:
        """Download a sealed model to ``path``, checked; return what it is.

        It stays sealed: the owner's key opens it, with ``fedlearn model open`` or
        :meth:`fedlearn.api.result.Result.model`. A download that was interrupted goes on when it
        is called again.

        :param version: 0 for the latest.
        :param replace: replace an existing file.
        :raises ModelNotAuthentic: when this coordinator did not seal what arrived.
        """
        from fedlearn.api.downloads import download_model

        pin = bytes.fromhex(ca_pin(self._link.login.ca))
        return download_model(
            self.client, model, Path(path), pin=pin, version=version, replace=replace
        )

    def verify_ledger(self) -> VerifiedLedger:
        """Verify every entry of the coordinator's ledger, under the key that its CA signed.

        It must go on from the head that this login verified before; the new head is kept.

        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        return self._link.verify_ledger()

    def close(self) -> None:
        """Close the network connection; the next call opens it again."""
        self._link.close()
