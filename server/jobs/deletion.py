"""Deletes a run that is over: its record, bundle, sealed models and logs, and its secret."""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.job.state import JobState, JobStatus
from server.flower.application.app_files import kept_as
from server.jobs.active_job import noise_name
from server.jobs.app_logs import AppLogs
from server.jobs.records.job_store import JobStore
from server.keys.service import state_secret_name
from server.state_directory import StateDirectory

__all__ = ["JobDeletion"]


class JobDeletion:
    """Deletes runs. The entries of a run in the ledger stay, and its id is not used again.

    The entry of the deletion is written first, and names the models that go with it: a store
    without them is then not an older one. What a crash leaves is removed at the next start.
    """

    def __init__(self, directory: StateDirectory, job_store: JobStore, app_logs: AppLogs) -> None:
        self._directory = directory
        self._job_store = job_store
        self._app_logs = app_logs

    def delete(self, run: str, *, operator: str, keep_model: bool) -> None:
        """Delete a run, which must be over.

        :param keep_model: keep its sealed model and the sealed files of its application.
        :raises LedgerError: when the entry cannot be written; nothing is deleted then.
        :raises StoreError: when something cannot be removed; the next start removes it.
        """
        models = [] if keep_model else [run, kept_as(run)]
        body = {"job": run, "change": "deleted", "operator": operator, "models": models}
        self._directory.ledger.append("job", body)
        self._job_store.delete(run)
        self._erase(run, models)

    def delete_kept(self, run: str, *, operator: str) -> JobState:
        """Delete the model that was kept of a run which was deleted before."""
        models = [run, kept_as(run)]
        body = {"job": run, "change": "deleted", "operator": operator, "models": models}
        self._directory.ledger.append("job", body)
        facts = self._job_store.history.deleted()[run]
        self._erase(run, models)
        return JobState(
            name=run, id=facts.digest.hex(), status=facts.ended or JobStatus.INTERRUPTED
        )

    def finish(self) -> None:
        """Remove what a crash left of runs that the ledger has as deleted.

        :raises StoreError: when it cannot be removed.
        """
        for run, models in self._job_store.finish_deletions().items():
            self._erase(run, models)

    def _erase(self, run: str, models: Sequence[str]) -> None:
        for model in models:
            self._directory.store.remove(model)
        self._app_logs.forget(run)
        self._directory.keys.discard(noise_name(run))
        self._directory.keys.discard(state_secret_name(run))
