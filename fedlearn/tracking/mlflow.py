"""Records runs with MLflow: its server, or a database file (``sqlite:///mlflow.db``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedlearn.tracking.tracker import RunId

__all__ = ["open_tracker"]

_TAG: Final = "fedlearn.run"
_STEPS: Final = "round/number"
_STATUS: Final = {"finished": "FINISHED", "failed": "FAILED"}


def open_tracker(run: RunId, *, project: str, at: str) -> MlflowRun:
    """Open the run in the experiment ``project``.

    :param at: the tracking URI; without one that of MLFLOW_TRACKING_URI, or MLflow's default.
    """
    # By default MLflow tries for minutes before it reports that a server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return MlflowRun(MlflowClient(tracking_uri=at or None), run, project)


class MlflowRun:
    """A run of MLflow. It is found again by one of its tags."""

    def __init__(self, client: Any, run: RunId, project: str) -> None:
        self._client = client
        experiment = client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else client.create_experiment(project)
        found = client.search_runs([number], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        self._run = (
            found[0]
            if found
            else client.create_run(
                number, start_time=run.started_unix_ms, run_name=run.name, tags={_TAG: run.id}
            )
        )
        self._id = self._run.info.run_id
        steps = client.get_metric_history(self._id, _STEPS)
        self.recorded = max((each.step for each in steps), default=0)

    @property
    def place(self) -> str:
        """The tracking URI, and the id of the run."""
        return f"{self._client.tracking_uri}, run {self._id}"

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters that are not there: MLflow refuses to change one."""
        from mlflow.entities import Param

        fresh = [Param(k, v) for k, v in values.items() if k not in self._run.data.params]
        for start in range(0, len(fresh), 100):  # MLflow's bound of one request
            self._client.log_batch(self._id, params=fresh[start : start + 100])

    def round(self, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        """Record one round."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, unix_ms, step) for name, value in values.items()]
        # The number of the round last: a request that was cut off is made again.
        metrics.sort(key=lambda metric: metric.key == _STEPS)
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])
        self.recorded = step

    def artifact(self, file: Path) -> None:
        """Upload a file."""
        self._client.log_artifact(self._id, str(file))

    def end(self, status: str, unix_ms: int) -> None:
        """Set the status and the time of the end."""
        self._client.set_tag(self._id, "fedlearn.status", status)
        self._client.set_terminated(self._id, _STATUS.get(status, "KILLED"), unix_ms or None)

    def close(self) -> None:
        """Do nothing: every call was a request of its own."""
