"""A job at a coordinator: follow it, cancel it, and get its result.

The page is docs/adr/0037-python-api.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.api.app_logs import AppLogs, fetch_app_logs
from fedlearn.api.link import Link
from fedlearn.api.result import Result, track
from fedlearn.api.sources import CoordinatorSource
from fedlearn.errors import FedlearnError, Interrupted, JobError, TransportError
from fedlearn.job.events import Event, JobCancelled, JobFailed, JobFinished, JobInterrupted
from fedlearn.job.state import JobState, JobStatus
from fedlearn.terminal.notebook import in_notebook, show_here
from fedlearn.terminal.progress import Show

if TYPE_CHECKING:
    from fedlearn.tracking.record import Recorded, TrackerName

__all__ = ["Run"]


class Run:
    """A run of a job at a coordinator; made by :class:`~fedlearn.api.connection.Connection`.

    It goes on whether or not this object exists, and whoever follows it.
    """

    def __init__(self, link: Link, state: JobState, *, metric: str = "") -> None:
        self._link = link
        self.metric = metric
        """The metric that is shown first; empty for none."""
        self.state = state
        """What the coordinator reported last; :meth:`refresh` asks it."""

    def __repr__(self) -> str:
        """Return name and last known status."""
        return f"Run({self.name!r}, {str(self.state.status)!r})"

    @property
    def name(self) -> str:
        """The name of the job; from the second run on, with the number of the run: ``NAME@2``."""
        return self.state.label

    @property
    def status(self) -> JobStatus:
        """The status now, as the coordinator reports it."""
        return self.refresh().status

    def refresh(self) -> JobState:
        """Return the state now."""
        self.state = self._link.client.get_job(self.state.reference)
        return self.state

    def events(self, *, follow: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield the events, each with its time in milliseconds since 1970.

        :param follow: also yield new ones, until the run ends.
        :raises Interrupted: on Ctrl-C, or when the cell of a notebook is interrupted. The run goes
            on.

        ::

            for event, unix_ms in run.events(follow=True):
                if event.kind == "round.finished":
                    print(event.round, dict(event.metrics))
        """
        try:
            for item in self._link.client.follow_job(self.state.reference, past_only=not follow):
                yield Event.decode(item.kind, item.json), item.unix_ms
        except KeyboardInterrupt:
            again, stop = (
                ("run.follow()", "run.cancel()")
                if in_notebook()
                else (f"fedlearn job logs {self.name} --follow", f"fedlearn job cancel {self.name}")
            )
            raise Interrupted(
                f"job {self.name} goes on at the coordinator",
                hint=f"`{again}` follows it again, and `{stop}` stops it",
            ) from None

    def follow(self, *, show: Show | None = None) -> Result:
        """Show the progress until the run ends, and return its result.

        In a terminal it is a live view, in a notebook a display that is updated in place, and
        elsewhere one line an event.

        :param show: another output.
        :raises JobError: when the run fails, is cancelled or is interrupted.
        :raises Interrupted: on Ctrl-C, or when the cell of a notebook is interrupted. The run goes
            on.
        """
        last: Event | None = None
        with show or show_here(metric=self.metric) as shown:
            for event, unix_ms in self.events(follow=True):
                shown.show(event, unix_ms=unix_ms)
                last = event
        return self._ended(last)

    def wait(self) -> Result:
        """Wait until the run ends, and return its result; :meth:`follow` that shows nothing."""
        last: Event | None = None
        for event, _ in self.events(follow=True):
            last = event
        return self._ended(last)

    def result(self) -> Result:
        """Return the result so far: it does not wait, and the run may have failed."""
        return Result(self._source)

    def track(
        self,
        to: TrackerName,
        *,
        project: str = "fedlearn",
        at: str = "",
        show: Show | None = None,
    ) -> Recorded:
        """Record the run with an experiment tracker until it ends, and show its progress.

        Parameters, metrics by round, the privacy spent and the report are recorded from here;
        the coordinator and the sites do not know of it. What is recorded already is not recorded
        again, so that the same call continues after an interruption. The privacy unit, delta and
        sampling without which an epsilon means nothing are in the parameters and the report.

        :param to: ``mlflow``, ``tensorboard``, ``wandb`` or ``trackio``; each needs the extra of
            its name.
        :param project: the experiment of MLflow, or the project.
        :param at: where: MLflow's tracking URI, or the folder of another tracker.
        :param show: another output than the progress display.
        :raises ConfigError: when the package of the tracker is not installed.
        :raises TrackingError: when the tracker does not record something. The run is not affected.
        :raises Interrupted: on Ctrl-C, or when the cell of a notebook is interrupted. The run goes
            on.
        """
        try:
            with show or show_here(metric=self.metric) as shown:
                done = track(
                    self._source,
                    self.events(follow=True),
                    to=to,
                    project=project,
                    at=at,
                    show=lambda event, unix_ms: shown.show(event, unix_ms=unix_ms),
                )
        except Interrupted as stopped:
            raise Interrupted(
                stopped.message, hint=f"the same again continues the record with {to}"
            ) from None
        if done.status in ("waiting", "running"):
            raise _broken_off(self.name, f"fedlearn job track {self.name} --to {to}")
        return done

    @property
    def _source(self) -> CoordinatorSource:
        return CoordinatorSource(self._link, self.state.reference, self.name, self.metric)

    def app_logs(self, site: str, key: X25519PrivateKey) -> AppLogs:
        """Return what the app wrote at one site, opened with the private key of the job's owner.

        Both the job and the site have to ask for logs (``app_logs = "sealed"``).

        :raises JobError: when the job has no such site, or was submitted without logs.
        :raises KeyReleaseDenied: when the logs are not sealed for this key.
        """
        return fetch_app_logs(self._link.client, self.state.reference, site, key)

    def cancel(self) -> JobState:
        """Stop the run. Its sealed checkpoints stay; it can be resumed."""
        self.state = self._link.client.cancel_job(self.state.reference)
        return self.state

    def resume(self) -> JobState:
        """Continue the run from its last sealed checkpoint."""
        self.state = self._link.client.resume_job(self.state.reference)
        return self.state

    def _ended(self, last: Event | None) -> Result:
        if error := _outcome(self.name, last):
            raise error
        return self.result()


def _outcome(name: str, last: Event | None) -> FedlearnError | None:
    """Return the error of a run whose last event is ``last``; None when it has finished.

    A run that was resumed has an earlier end; only the last event is used.
    """
    match last:
        case JobFinished():
            return None
        case JobFailed():
            return JobError(f"job {name} failed: {last.detail}", hint=last.hint)
        case JobCancelled() | JobInterrupted():
            return JobError(
                f"job {name} was {last.kind.removeprefix('job.')}: {last.detail}".rstrip(": "),
                hint=f"`fedlearn job resume {name}` continues it",
            )
        case _:
            return _broken_off(name, f"fedlearn job logs {name} --follow")


def _broken_off(name: str, command: str) -> TransportError:
    return TransportError(
        f"the coordinator ended the stream while job {name} was running",
        hint=f"`{command}` continues",
    )
