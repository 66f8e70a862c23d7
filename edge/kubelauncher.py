"""Clients as pods or virtual machines of a cluster. Implements :class:`edge.launcher.Launcher`.

The cluster is the memory: an assignment is one object whose name is the assignment's id, so
it cannot be created twice, and an agent that was restarted finds what it left. A small file
for each assignment that was started keeps one whose object is gone from being started again.
Everything is followed through watches; nothing is polled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edge import labels, podstatus
from edge.bootstrap import Bootstrap
from edge.config import SiteConfig
from edge.kube import (
    EVENTS,
    JOBS,
    MACHINES,
    PODS,
    RUNTIME_CLASSES,
    Exists,
    Follower,
    Forbidden,
    Kube,
    KubeError,
    Missing,
    Unavailable,
)
from edge.kubesettings import KubernetesSettings
from edge.launcher import Phase, Report, Workload
from edge.podspec import Launch, Owner, manifest
from edge.podstatus import Standing
from edge.sponsor import Keys, Sponsorship
from fedlearn.errors import ConfigError, LaunchError
from fedlearn.wire.channel import patiently
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.sponsor import SponsorServer

if TYPE_CHECKING:
    from edge.agent import Agent

__all__ = ["KubeLauncher", "kube_launcher"]

_LOG = logging.getLogger(__name__)
_MOST_WARNINGS: Final = 20
_ATTEMPTS: Final = 8
_LIST_SECONDS: Final = 10.0
_T = TypeVar("_T")


def kube_launcher(
    agent: Agent, config: SiteConfig, prepare: Callable[[Workload], Bootstrap]
) -> KubeLauncher:
    """Return the launcher of ``agent``, connected and listening.

    :raises ConfigError: when there is no cluster to be reached, or nowhere to listen.
    """
    settings = config.kubernetes
    if settings is None:
        raise ConfigError("a table [kubernetes] is needed", key="kubernetes")
    return KubeLauncher(
        Kube.connect(settings.kubeconfig, namespace=settings.namespace),
        settings,
        site=agent.identity.site,
        keys=Keys(agent.identity.key),
        prepare=prepare,
        vouch_for=agent.vouch_for,
        report=agent.report,
        record=config.state / "launched",
        start_s=config.launcher.start_s,
        stop_s=config.launcher.stop_s,
    )


@dataclass(slots=True)
class _Client:
    """What is known of one assignment's client."""

    workload: Workload | None = None
    found: Mapping[str, Any] | None = None
    pods: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: list[Mapping[str, Any]] = field(default_factory=list)
    told: str = ""
    said: tuple[Phase, str] | None = None
    stopping: str | None = None
    given_up: str = ""
    timer: threading.Timer | None = None

    @property
    def alive(self) -> bool:
        return self.said is None or not self.said[0].final


class KubeLauncher:
    """Starts clients in a cluster.

    :param record: folder for what was started; it must outlive the agent.
    :param start_s: seconds after which a client that does not come up is given up.
    """

    kind: Final = "kubernetes"

    def __init__(
        self,
        kube: Kube,
        settings: KubernetesSettings,
        *,
        site: str,
        keys: Keys,
        prepare: Callable[[Workload], Bootstrap],
        vouch_for: Callable[[Workload, bytes, bytes], bytes],
        report: Report,
        record: Path,
        start_s: float,
        stop_s: float,
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._site = site
        self._prepare = prepare
        self._report = report
        self._record = record
        self._start_s = start_s
        self._stop_s = stop_s
        self._resource = MACHINES if settings.workload == "kubevirt" else JOBS
        self._lock = threading.RLock()
        self._clients: dict[str, _Client] = {}
        self._closed = False
        record.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sponsorship = Sponsorship(keys, vouch_for=vouch_for, told=self._told)
        self._server = SponsorServer(
            self._sponsorship, keys.tls, listen=settings.sponsor_listen
        ).start()
        self._owner = self._own()
        self._listed = threading.Event()
        self._followers = self._follow()

    # --- the protocol -----------------------------------------------------------------

    @property
    def sponsor_port(self) -> int:
        """Where clients are answered."""
        return self._server.port

    def launch(self, workload: Workload) -> None:
        """Start a client, or adopt the one that is there."""
        identity = workload.assignment.id
        # The client may be faster than the answer to its creation.
        self._sponsorship.take(workload, self._prepare)
        with self._lock:
            client = self._clients.setdefault(identity, _Client())
            client.workload = workload
            # What an agent's earlier life knew was told to nobody in this one.
            client.said = None
        try:
            self._place(workload)
        except BaseException:
            self._forget(identity)
            raise
        self._look(identity)

    def stop(self, assignment: str, reason: str) -> None:
        """Stop a client and clean up after it."""
        self._listed.wait(_LIST_SECONDS)
        with self._lock:
            client = self._clients.get(assignment)
            if client is None or client.stopping is not None:
                return
            client.stopping = reason or "stopped"
        self._remove(assignment)

    def running(self) -> tuple[str, ...]:
        """Return the assignments whose clients are there."""
        self._listed.wait(_LIST_SECONDS)
        with self._lock:
            return tuple(
                name
                for name, client in self._clients.items()
                if client.found is not None and client.alive
            )

    def capabilities(self) -> Mapping[str, Any]:
        """Return what the cluster can run."""
        from edge.capabilities import survey

        return survey(self._kube, self._settings).to_json()

    def close(self) -> None:
        """Let go; the clients stay."""
        with self._lock:
            self._closed = True
            timers = [client.timer for client in self._clients.values() if client.timer]
        for timer in timers:
            timer.cancel()
        for follower in self._followers:
            follower.stop()
        self._server.stop()
        self._kube.close()

    # --- starting ---------------------------------------------------------------------

    def _place(self, workload: Workload) -> None:
        """Have exactly one object for the assignment in the cluster."""
        identity = workload.assignment.id
        launch = Launch(
            sponsor=self._settings.sponsor_address,
            pin=self._sponsorship.keys.pin,
            ticket=self._sponsorship.keys.tag(identity),
            grace_s=self._stop_s,
            owner=self._owner,
        )
        body = manifest(workload, self._settings, launch)
        marker = self._record / identity
        with _words():
            if marker.exists():
                found = patiently(lambda: _retrying(lambda: self._find(identity)))
                if found is None:
                    raise LaunchError(
                        f"assignment {identity} was started before, and its client is gone "
                        "from the cluster",
                        hint="an assignment runs once; resume the job to get a new one",
                    )
            else:
                self._check_runtime_class()
                found = patiently(lambda: _retrying(lambda: self._create(body)), attempts=_ATTEMPTS)
                marker.touch(mode=0o600)
        self._check_same(found, body)
        with self._lock:
            client = self._clients[identity]
            if client.found is None:
                client.found = found

    def _create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._kube.create(self._resource, body)
        except Exists:
            return self._kube.get(self._resource, body["metadata"]["name"])

    def _find(self, identity: str) -> dict[str, Any] | None:
        try:
            return self._kube.get(self._resource, identity)
        except Missing:
            return None

    @staticmethod
    def _check_same(found: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Do not adopt what only has the same name."""
        name = body["metadata"]["name"]
        ours = body["metadata"]["annotations"][labels.WORKLOAD]
        theirs = (found["metadata"].get("annotations") or {}).get(labels.WORKLOAD, "")
        if ours != theirs:
            raise LaunchError(
                f"the cluster has something else under the name {name}",
                hint=f"look at it: kubectl get job {name} -o yaml",
            )

    def _check_runtime_class(self) -> None:
        wanted = self._settings.runtime_class
        if not wanted:
            return
        try:
            patiently(
                lambda: _retrying(lambda: self._kube.get(RUNTIME_CLASSES, wanted)),
                attempts=_ATTEMPTS,
            )
        except Missing:
            raise LaunchError(
                f"the cluster has no RuntimeClass `{wanted}`",
                hint="install Confidential Containers, or name another in kubernetes.runtime_class",
            ) from None
        except Forbidden:
            # Then an event says it later.
            return

    def _set_deadline(self, identity: str, client: _Client) -> None:
        """A client that starts, for the first time or again, has so much time."""
        if client.timer is not None and client.timer.is_alive():
            return
        client.timer = threading.Timer(self._start_s, self._give_up, args=(identity,))
        client.timer.daemon = True
        client.timer.start()

    def _give_up(self, identity: str) -> None:
        """End a client that does not come up; what it waited for is the reason."""
        with self._lock:
            client = self._clients.get(identity)
            if client is None or self._closed or not client.alive:
                return
            client.timer = None
            standing = self._assess(client)
            if standing is None or standing.phase is not Phase.STARTING:
                return
            if standing.waits:
                self._set_deadline(identity, client)
                return
            client.given_up = f"did not start in {self._start_s:g} s: {standing.reason}"
        self._remove(identity)

    # --- ending -----------------------------------------------------------------------

    def _remove(self, identity: str) -> None:
        try:
            patiently(
                lambda: _retrying(lambda: self._kube.delete(self._resource, identity)),
                attempts=_ATTEMPTS,
            )
        except (KubeError, Unreachable) as error:
            _LOG.warning("%s cannot be removed from the cluster: %s", identity, error)
        self._look(identity)

    def _forget(self, identity: str) -> None:
        self._sponsorship.release(identity)
        with self._lock:
            client = self._clients.get(identity)
            if client is not None and client.found is None:
                del self._clients[identity]

    # --- following --------------------------------------------------------------------

    def _follow(self) -> tuple[Follower, ...]:
        mine = labels.clients_of(self._site)
        followers = [
            self._kube.follow(
                self._resource, listed=self._all_found, changed=self._found, selector=mine
            ),
            self._kube.follow(PODS, listed=self._all_pods, changed=self._pod, selector=mine),
        ]
        try:
            heard = self._kube.may("watch", EVENTS)
        except KubeError:
            heard = False
        if heard:
            followers.append(
                self._kube.follow(EVENTS, listed=self._all_events, changed=self._event)
            )
        return tuple(followers)

    def _all_found(self, objects: list[dict[str, Any]]) -> None:
        names = {found["metadata"]["name"] for found in objects}
        with self._lock:
            for found in objects:
                self._clients.setdefault(found["metadata"]["name"], _Client()).found = found
            absent = [
                (name, client.found)
                for name, client in self._clients.items()
                if client.found is not None and name not in names
            ]
        self._listed.set()
        for name in names:
            self._look(name)
        for name, before in absent:
            # The list may be older than the object.
            try:
                if self._find(name) is None:
                    self._found(before, True)
            except KubeError as error:
                _LOG.info("whether %s is still there cannot be known: %s", name, error)

    def _found(self, found: Mapping[str, Any], gone: bool) -> None:
        name = found["metadata"]["name"]
        with self._lock:
            client = self._clients.setdefault(name, _Client())
            client.found = None if gone else found
            if gone:
                if not client.alive or client.workload is None:
                    del self._clients[name]
                    return
                client.said = client.said or (Phase.STARTING, "")
        self._look(name)

    def _all_pods(self, pods: list[dict[str, Any]]) -> None:
        with self._lock:
            for client in self._clients.values():
                client.pods.clear()
        for pod in pods:
            self._pod(pod, False)

    def _pod(self, pod: Mapping[str, Any], gone: bool) -> None:
        metadata = pod["metadata"]
        name = (metadata.get("labels") or {}).get(labels.ASSIGNMENT, "")
        with self._lock:
            client = self._clients.get(name)
            if client is None:
                if gone:
                    return
                client = self._clients[name] = _Client()
            if gone:
                client.pods.pop(metadata["uid"], None)
                if client.found is None and client.workload is None and not client.pods:
                    del self._clients[name]
                    return
            else:
                client.pods[metadata["uid"]] = pod
        self._look(name)

    def _all_events(self, events: list[dict[str, Any]]) -> None:
        self._listed.wait(_LIST_SECONDS)
        for event in events:
            self._event(event, False)

    def _event(self, event: Mapping[str, Any], gone: bool) -> None:
        if gone or event.get("type") != "Warning":
            return
        about = event.get("involvedObject") or {}
        with self._lock:
            name = self._named(about)
            if not name:
                return
            warnings = self._clients[name].warnings
            warnings.append(event)
            del warnings[:-_MOST_WARNINGS]
        self._look(name)

    def _named(self, about: Mapping[str, Any]) -> str:
        """Return the assignment that an event is about; empty when it is none of ours."""
        name = str(about.get("name") or "")
        if about.get("kind") != "Pod":
            return name if name in self._clients else ""
        for assignment, client in self._clients.items():
            if about.get("uid") in client.pods or name.startswith(f"{assignment}-"):
                return assignment
        return ""

    def _told(self, assignment: str, phase: Phase, reason: str) -> None:
        """Hear the client itself; its words explain what the cluster says."""
        with self._lock:
            client = self._clients.get(assignment)
            if client is None:
                return
            client.told = reason
        _LOG.info("client of %s: %s: %s", assignment, phase.value, reason)
        self._look(assignment)

    # --- saying -----------------------------------------------------------------------

    def _look(self, identity: str) -> None:
        """Report where a client stands, if that is news."""
        with self._lock:
            client = self._clients.get(identity)
            if client is None or self._closed:
                return
            standing = self._assess(client)
            if standing is None or not client.alive:
                return
            now = (standing.phase, standing.reason)
            if now == client.said:
                return
            client.said = now
            # Said in the order in which it happened: reports do not block.
            if client.workload is not None:
                self._report(identity, standing.phase, standing.reason)
            final = standing.phase.final
            if final and client.timer is not None:
                client.timer.cancel()
            if standing.phase is Phase.STARTING and client.workload is not None:
                self._set_deadline(identity, client)
            if final and client.found is None:
                del self._clients[identity]
        if final:
            self._sponsorship.release(identity)
            if standing.phase is Phase.REFUSED:
                # The cluster would try again where it does not know better.
                self._remove(identity)

    def _assess(self, client: _Client) -> Standing | None:
        if client.found is None:
            if client.said is None:
                return None
            if client.stopping is not None:
                return Standing(phase=Phase.STOPPED, reason=client.stopping)
            reason = client.given_up or "its object was removed from the cluster by somebody else"
            return Standing(phase=Phase.FAILED, reason=reason)
        if self._resource is MACHINES:
            standing = podstatus.of_machine(client.found, client.warnings, told=client.told)
        else:
            pods = list(client.pods.values())
            standing = podstatus.of_job(client.found, pods, client.warnings, told=client.told)
        if standing.phase is Phase.STOPPED or (client.given_up and not standing.phase.final):
            # Being removed is not removed: wait until it is gone.
            return None
        if standing.phase.final and client.stopping is not None:
            return Standing(phase=Phase.STOPPED, reason=client.stopping)
        return standing

    def _own(self) -> Owner | None:
        """Return what owns the clients: our service account, so that they go with the chart."""
        account = self._kube.account()
        if account is None or account.namespace != self._kube.namespace:
            return None
        return Owner(api_version="v1", kind="ServiceAccount", name=account.name, uid=account.uid)


def _retrying(call: Callable[[], _T], *, again: type[KubeError] = Unavailable) -> _T:
    """Call once; say that it may be tried again when the server is away, or ``again``."""
    try:
        return call()
    except (Unavailable, again) as error:
        raise Unreachable(str(error), hint=error.hint) from error


@contextmanager
def _words() -> Iterator[None]:
    """A launcher raises LaunchError."""
    try:
        yield
    except Unreachable as error:
        if isinstance(error.__cause__, KubeError):
            raise error.__cause__ from None
        raise LaunchError(str(error), hint=error.hint) from error
