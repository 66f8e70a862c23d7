"""One call of a client, as it goes to where it runs, and what comes back.

The call is a function of these values alone: the job's seed, the site, the round and the kind of
the message, the message, and what the client has kept. So it may run in any process, and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from flwr.app import RecordDict

from edge.client.flower.app_process import (
    Answer,
    AppLimits,
)
from edge.client.flower.app_state import State
from edge.client.flower.fleet import Work
from edge.client.flower.loaded_app import LoadedApp
from edge.client.flower.replies import ClientPlan, Memory, Replies
from fedlearn.app.install import Installed
from fedlearn.app.message import Head
from fedlearn.app.tracebacks import app_traceback
from fedlearn.config.filters import FilterSpec
from fedlearn.data.flower_datasets import provide_as_asked
from fedlearn.errors import FedlearnError, JobError
from fedlearn.job.seeds import derive
from fedlearn.job.spec import JobSpec
from fedlearn.privacy import simulated_secret
from fedlearn.privacy.app_config import app_config
from fedlearn.sandbox.memory_file import Part

__all__ = ["Backend", "ClientCall", "ClientResult", "Clients", "Pending"]

_MIB: Final = 1024 * 1024
_MAX_FAILURE: Final = 4000
_NOWHERE: Final = Path("/nonexistent")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCall:
    """A question for one client.

    ``index``   the place of the site in the job, its ``partition-id``
    ``data``    the folder of its data, empty for none
    ``node``    the number of its node
    ``id``      of the message, whose head and parts are ``frames``
    ``memory``  what the client kept so far
    """

    site: str
    index: int
    data: str
    node: int
    id: str
    frames: Sequence[Part]
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """The answer of one client: head and parts, what it has kept then, and what its app wrote."""

    frames: Sequence[Part]
    memory: Memory
    lines: Sequence[str] = ()


class Pending(Protocol):
    """A call that was submitted."""

    def result(self) -> ClientResult:
        """Wait for the answer and return it.

        :raises FedlearnError: when the call could not be made at all.
        """
        ...


class Backend(Protocol):
    """Where calls run. ``capacity`` is how many may be under way at once."""

    @property
    def capacity(self) -> int: ...

    def submit(self, call: ClientCall) -> Pending:
        """Begin a call; results may be taken in any order."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


class Clients:
    """All clients of a job, in this process: the app is loaded once for all of them.

    :param installed: the unpacked app.
    :param filters: of each site.
    :raises JobError: when the app cannot be loaded, with the reason.
    """

    def __init__(
        self,
        spec: JobSpec,
        installed: Installed,
        *,
        run: int,
        filters: tuple[FilterSpec, ...] = (),
    ) -> None:
        self._spec = spec
        self._filters = filters
        self._run = run
        self._folder = installed.folder
        self._limits = AppLimits(
            seconds=spec.deadline_s,
            cpu=spec.resources.cpu,
            memory_bytes=spec.resources.memory_mib * _MIB,
        )
        provide_as_asked()
        try:
            self._app = LoadedApp(
                installed,
                seed=derive(spec.seed, "client", spec.sites[0], 0),
                run_config=installed.run_config(spec.config),
            )
        except FedlearnError:
            raise
        except Exception as error:
            reason = app_traceback(error, installed.folder).reason
            raise JobError(f"the app cannot be loaded: {reason}") from error

    def call(self, call: ClientCall) -> ClientResult:
        """Make one call, as the client of the field does."""
        config: dict[str, Any] = {
            "data": call.data,
            "site": call.site,
            "partition-id": call.index,
            "num-partitions": len(self._spec.sites),
        }
        secret = b""
        if (privacy := self._spec.privacy) is not None:
            secret = simulated_secret(privacy, seed=self._spec.seed, site=call.site)
            config |= app_config(privacy, secret, simulated=True)
        plan = ClientPlan(
            spec=self._spec,
            site=call.site,
            bundle=b"",
            node_config=config,
            limits=self._limits,
            noise_secret=secret,
            filters=self._filters,
            filter_secret=derive(self._spec.seed, "filters", call.site),
        )
        lines = _Lines()
        replies = Replies(
            plan,
            directory=_NOWHERE,
            charge=_charge_nothing,
            log=lines,
            app=_AppOfSite(self._app, config, self._folder, lines),
            memory=call.memory,
        )
        replies.node, replies.run = call.node, self._run
        head, *parts = call.frames
        names = Head.from_bytes(head).parts
        work = Work(id=call.id, head=head, objects=dict(zip(names, parts, strict=True)))
        flat = replies.reply(work)
        return ClientResult(frames=flat.frames(0), memory=replies.memory, lines=lines.taken())


def _charge_nothing(question: str) -> None:
    """A simulated site has no budget for its data."""


class _AppOfSite:
    """The loaded app as the process of one site's app."""

    alive = True

    def __init__(
        self, app: LoadedApp, config: Mapping[str, Any], folder: Path, lines: _Lines
    ) -> None:
        self._app = app
        self._context = app.context(config)
        self._folder = folder
        self._lines = lines

    def ask(
        self, question: Mapping[str, Any], message: Sequence[Part], state: State | None
    ) -> Answer:
        """Call the app; an exception of it becomes a failure with its place in the app."""
        failure, content, kept = None, RecordDict(), list[Part]()
        try:
            content = self._app.call(
                self._context,
                message,
                run=question["run"],
                node=question["node"],
                seed=bytes.fromhex(question["seed"]),
                state=state,
            )
            kept = self._app.state(self._context)
        except FedlearnError as error:
            failure = str(error)[:_MAX_FAILURE]
            kept = self._app.state(self._context)
        except Exception as error:  # noqa: BLE001  user code may raise anything; it is reported
            found = app_traceback(error, self._folder)
            self._lines.add(found.lines)
            failure = found.reason[:_MAX_FAILURE]
            kept = self._app.state(self._context)
        return Answer(failure=failure, content=content, state=kept)

    def drain(self) -> None:
        """Nothing waits to be taken: what the app writes is taken where it runs."""

    def close(self) -> None:
        """The app stays for the other sites."""


class _Lines:
    """Keeps the lines about one call, at most :data:`_MOST`."""

    _MOST: Final = 1_000

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, lines: Sequence[str]) -> None:
        self._found += lines[: self._MOST - len(self._found)]

    def write(self, data: bytes) -> None:
        """Take what the app wrote."""
        self.add(data.decode(errors="replace").splitlines())

    def note(self, text: str) -> None:
        """Take a line about the app."""
        self.add([text])

    def deliver(self, round_: int) -> None:
        """They are taken with the result."""

    def taken(self) -> list[str]:
        return self._found
