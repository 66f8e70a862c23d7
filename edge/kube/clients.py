"""The state of a site's clients in a cluster, kept up to date by watches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge.kube import labels
from edge.kube import status as podstatus
from edge.kube.api import EVENTS, MACHINES, PODS, Follower, Kube, KubeError, Missing, Resource
from edge.kube.status import ClientStatus
from edge.protocol.workload import Workload
from fedlearn.job.phase import Phase

__all__ = ["Client", "Clients"]

_LOG = logging.getLogger(__name__)
_MOST_WARNINGS: Final = 20
_LIST_SECONDS: Final = 10.0


@dataclass(slots=True)
class Client:
    """The state of one assignment's client.

    ``workload``   what it runs; ``None`` for a client of an earlier agent, until it is adopted
    ``found``      its Job or machine, as the cluster has it now
    ``reported``   the reason that the client itself reported last
    ``forwarded``  the phase and reason that were sent to the coordinator last
    ``stopping``   why it is being stopped; ``given_up``: why it was given up
    """

    workload: Workload | None = None
    found: Mapping[str, Any] | None = None
    pods: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: list[Mapping[str, Any]] = field(default_factory=list)
    reported: str = ""
    forwarded: tuple[Phase, str] | None = None
    stopping: str | None = None
    given_up: str = ""
    timer: threading.Timer | None = None

    @property
    def alive(self) -> bool:
        """Whether its end has not been sent to the coordinator yet."""
        return self.forwarded is None or not self.forwarded[0].final

    @property
    def unclaimed(self) -> bool:
        """Whether neither the agent nor a stop waits for its end."""
        return self.workload is None and self.stopping is None


class Clients:
    """The clients of one site. Hold ``lock`` while reading ``known``.

    :param news: called with an assignment whenever the state of its client has changed.
    """

    def __init__(
        self, kube: Kube, resource: Resource, *, site: str, news: Callable[[str], None]
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._site = site
        self._news = news
        self._listed = threading.Event()
        self._followers: tuple[Follower, ...] = ()
        self.lock = threading.RLock()
        self.known: dict[str, Client] = {}

    def wait_listed(self) -> None:
        """Return when the clients of an earlier agent are known, or after ten seconds."""
        self._listed.wait(_LIST_SECONDS)

    def stop(self) -> None:
        """Stop following."""
        for follower in self._followers:
            follower.stop()

    # --- following --------------------------------------------------------------------

    def follow(self) -> None:
        """Follow the cluster until :meth:`stop`."""
        mine = labels.clients_of(self._site)
        followers = [
            Follower(
                self._kube,
                self._resource,
                listed=self._all_found,
                changed=self._found,
                selector=mine,
            ),
            Follower(self._kube, PODS, listed=self._all_pods, changed=self._pod, selector=mine),
        ]
        try:
            allowed = self._kube.may("watch", EVENTS)
        except KubeError:
            allowed = False
        if allowed:
            followers.append(
                Follower(self._kube, EVENTS, listed=self._all_events, changed=self._event)
            )
        self._followers = tuple(followers)

    def _all_found(self, objects: list[dict[str, Any]]) -> None:
        names = {found["metadata"]["name"] for found in objects}
        with self.lock:
            for found in objects:
                self.known.setdefault(found["metadata"]["name"], Client()).found = found
            absent = [
                (name, client.found)
                for name, client in self.known.items()
                if client.found is not None and name not in names
            ]
        self._listed.set()
        for name in names:
            self._news(name)
        for name, before in absent:
            # The list may have been made before the object.
            try:
                if self._is_gone(name):
                    self._found(before, True)
            except KubeError as error:
                _LOG.info("cannot check whether %s still exists: %s", name, error)

    def _found(self, found: Mapping[str, Any], gone: bool) -> None:
        name = found["metadata"]["name"]
        with self.lock:
            client = self.known.setdefault(name, Client())
            client.found = None if gone else found
            if gone:
                if not client.alive or client.unclaimed:
                    del self.known[name]
                    return
                client.forwarded = client.forwarded or (Phase.STARTING, "")
        self._news(name)

    def _all_pods(self, pods: list[dict[str, Any]]) -> None:
        with self.lock:
            for client in self.known.values():
                client.pods.clear()
        for pod in pods:
            self._pod(pod, False)

    def _pod(self, pod: Mapping[str, Any], gone: bool) -> None:
        metadata = pod["metadata"]
        name = (metadata.get("labels") or {}).get(labels.ASSIGNMENT, "")
        with self.lock:
            client = self.known.get(name)
            if client is None:
                if gone:
                    return
                client = self.known[name] = Client()
            if gone:
                client.pods.pop(metadata["uid"], None)
                if client.found is None and client.unclaimed and not client.pods:
                    del self.known[name]
                    return
            else:
                client.pods[metadata["uid"]] = pod
        self._news(name)

    def _all_events(self, events: list[dict[str, Any]]) -> None:
        self.wait_listed()
        for event in events:
            self._event(event, False)

    def _event(self, event: Mapping[str, Any], gone: bool) -> None:
        if gone or event.get("type") != "Warning":
            return
        about = event.get("involvedObject") or {}
        with self.lock:
            name = self._named(about)
            if not name:
                return
            warnings = self.known[name].warnings
            warnings.append(event)
            del warnings[:-_MOST_WARNINGS]
        self._news(name)

    def _named(self, about: Mapping[str, Any]) -> str:
        """Return the assignment that an event is about; empty when it is not of this site."""
        name = str(about.get("name") or "")
        if about.get("kind") != "Pod":
            return name if name in self.known else ""
        for assignment, client in self.known.items():
            if about.get("uid") in client.pods or name.startswith(f"{assignment}-"):
                return assignment
        return ""

    def _is_gone(self, name: str) -> bool:
        try:
            self._kube.get(self._resource, name)
        except Missing:
            return True
        return False

    def assess(self, client: Client) -> ClientStatus | None:
        """Return the status of a client; ``None`` while it is not certain."""
        if client.found is None:
            if client.forwarded is None:
                return None
            if client.stopping is not None:
                return ClientStatus(phase=Phase.STOPPED, reason=client.stopping)
            reason = client.given_up or "its object was removed from the cluster by somebody else"
            return ClientStatus(phase=Phase.FAILED, reason=reason)
        if self._resource is MACHINES:
            status = podstatus.of_machine(client.found, client.warnings, reported=client.reported)
        else:
            pods = list(client.pods.values())
            status = podstatus.of_job(client.found, pods, client.warnings, reported=client.reported)
        if status.phase is Phase.STOPPED or (client.given_up and not status.phase.final):
            # The object is being removed: wait until it has been.
            return None
        if status.phase.final and client.stopping is not None:
            return ClientStatus(phase=Phase.STOPPED, reason=client.stopping)
        return status
