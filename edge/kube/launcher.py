"""Clients as pods or virtual machines of a cluster. Implements
:class:`edge.protocol.workload.Launcher`.

The state is in the cluster: an assignment is one object whose name is the assignment's id, so it
cannot be created twice, and an agent that was restarted finds its clients. A small file for each
started assignment prevents a second start after its object was removed. Changes are received
through watches; nothing is polled.

The page is docs/explanation/kubernetes.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attestation.durable import write_durably
from edge.agent.client_service import Keys, WorkloadService
from edge.config.kubernetes import KubernetesSettings
from edge.config.site import SiteConfig
from edge.kube import labels
from edge.kube.api import (
    JOBS,
    MACHINES,
    RUNTIME_CLASSES,
    Exists,
    Forbidden,
    Kube,
    KubeError,
    Missing,
    Unavailable,
)
from edge.kube.client_object import Launch, Owner
from edge.kube.clients import Client, Clients
from edge.kube.pod_manifest import manifest
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.workload import Report, Workload
from fedlearn.backoff import retry
from fedlearn.errors import ConfigError, LaunchError
from fedlearn.job.phase import Phase
from fedlearn.wire.client_service import WorkloadApiServer
from fedlearn.wire.failure import Unreachable

if TYPE_CHECKING:
    from edge.agent.client_callbacks import ClientCallbacks

__all__ = ["KubeLauncher", "kube_launcher"]

_LOG = logging.getLogger(__name__)
_ATTEMPTS: Final = 8
_T = TypeVar("_T")


def kube_launcher(
    callbacks: ClientCallbacks, config: SiteConfig, prepare: Callable[[Workload], Bootstrap]
) -> KubeLauncher:
    """Return a launcher that is connected to the cluster and listens for its clients.

    :raises ConfigError: when the cluster cannot be reached, or the address cannot be bound.
    """
    settings = config.kubernetes
    if settings is None:
        raise ConfigError("a table [kubernetes] is needed", key="kubernetes")
    return KubeLauncher(
        Kube.connect(settings.kubeconfig, namespace=settings.namespace),
        settings,
        site=callbacks.identity.site,
        keys=Keys(callbacks.identity.key),
        prepare=prepare,
        vouch_for=callbacks.vouch_for,
        seed_for=callbacks.seed_for,
        charge_for=callbacks.charge_for,
        report=callbacks.report,
        record=config.state / "launched",
        start_s=config.launcher.start_s,
        stop_s=config.launcher.stop_s,
    )


class KubeLauncher:
    """Starts clients in a cluster.

    :param record: folder for what was started; it must outlive the agent.
    :param start_s: seconds after which a client that has not started is given up.
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
        seed_for: Callable[[Workload, bytes], bytes],
        charge_for: Callable[[Workload, str], None],
        report: Report,
        record: Path,
        start_s: float,
        stop_s: float,
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._prepare = prepare
        self._report = report
        self._record = record
        self._start_s = start_s
        self._stop_s = stop_s
        self._resource = MACHINES if settings.workload == "kubevirt" else JOBS
        self._clients = Clients(kube, self._resource, site=site, news=self._look)
        self._lock = self._clients.lock
        self._closed = False
        record.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._service = WorkloadService(
            keys,
            vouch_for=vouch_for,
            seed_for=seed_for,
            charge_for=charge_for,
            report=self._take_report,
        )
        self._server = WorkloadApiServer(
            self._service, keys.tls, listen=settings.sponsor_listen
        ).start()
        self._owner = self._own()
        self._clients.follow()

    # --- the protocol -----------------------------------------------------------------

    def launch(self, workload: Workload) -> None:
        """Start a client, or adopt the one that exists."""
        identity = workload.assignment.id
        # The client may call before the answer to its creation arrives.
        self._service.take(workload, self._prepare)
        with self._lock:
            client = self._clients.known.setdefault(identity, Client())
            client.workload = workload
            # An earlier agent may have reported; this one has not.
            client.forwarded = None
        try:
            self._place(workload)
        except BaseException:
            self._forget(identity)
            raise
        self._look(identity)

    def stop(self, assignment: str, reason: str) -> None:
        """Stop a client and remove its object."""
        self._clients.wait_listed()
        with self._lock:
            client = self._clients.known.get(assignment)
            if client is None or client.stopping is not None:
                return
            client.stopping = reason or "stopped"
        self._remove(assignment)

    def running(self) -> tuple[str, ...]:
        """Return the assignments whose clients run."""
        self._clients.wait_listed()
        with self._lock:
            return tuple(
                name
                for name, client in self._clients.known.items()
                if client.found is not None and client.alive
            )

    def capabilities(self) -> Mapping[str, Any]:
        """Return what the cluster can run."""
        from edge.kube.capabilities import survey

        return survey(self._kube, self._settings).to_json()

    def close(self) -> None:
        """Stop following and serving; the clients stay."""
        with self._lock:
            self._closed = True
            timers = [client.timer for client in self._clients.known.values() if client.timer]
        for timer in timers:
            timer.cancel()
        self._clients.stop()
        self._server.stop()
        self._kube.close()

    # --- starting ---------------------------------------------------------------------

    def _place(self, workload: Workload) -> None:
        """Ensure that the cluster has exactly one object for the assignment."""
        identity = workload.assignment.id
        launch = Launch(
            agent_address=self._settings.sponsor_address,
            pin=self._service.keys.pin,
            ticket=self._service.keys.tag(identity),
            grace_s=self._stop_s,
            owner=self._owner,
        )
        body = manifest(workload, self._settings, launch)
        marker = self._record / identity
        with _launch_errors():
            if marker.exists():
                found = _retrying(lambda: self._find(identity))
                if found is None:
                    raise LaunchError(
                        f"assignment {identity} was started before, and its client was removed "
                        "from the cluster",
                        hint="an assignment runs once; resume the job to get a new one",
                    )
            else:
                self._check_runtime_class()
                found = _retrying(lambda: self._create(body))
                write_durably(marker, b"")
        self._check_same(found, body)
        with self._lock:
            client = self._clients.known[identity]
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
        """Refuse to adopt an object that has the same name but another workload."""
        name = body["metadata"]["name"]
        ours = body["metadata"]["annotations"][labels.WORKLOAD]
        theirs = (found["metadata"].get("annotations") or {}).get(labels.WORKLOAD, "")
        if ours != theirs:
            raise LaunchError(
                f"the cluster has another workload under the name {name}",
                hint=f"inspect it: kubectl get job {name} -o yaml",
            )

    def _check_runtime_class(self) -> None:
        wanted = self._settings.runtime_class
        if not wanted:
            return
        try:
            _retrying(lambda: self._kube.get(RUNTIME_CLASSES, wanted))
        except Missing:
            raise LaunchError(
                f"the cluster has no RuntimeClass `{wanted}`",
                hint="install Confidential Containers, or name another in kubernetes.runtime_class",
            ) from None
        except Forbidden:
            # Without the permission, a later event reports a missing class.
            return

    def _set_deadline(self, identity: str, client: Client) -> None:
        """Start the timer for a client that starts, for the first time or again."""
        if client.timer is not None and client.timer.is_alive():
            return
        client.timer = threading.Timer(self._start_s, self._give_up, args=(identity,))
        client.timer.daemon = True
        client.timer.start()

    def _give_up(self, identity: str) -> None:
        """End a client that has not started; what it waits for is the reason."""
        with self._lock:
            client = self._clients.known.get(identity)
            if client is None or self._closed or not client.alive:
                return
            client.timer = None
            status = self._clients.assess(client)
            if status is None or status.phase is not Phase.STARTING:
                return
            if status.waits:
                self._set_deadline(identity, client)
                return
            client.given_up = f"did not start in {self._start_s:g} s: {status.reason}"
        self._remove(identity)

    # --- ending -----------------------------------------------------------------------

    def _remove(self, identity: str) -> None:
        def delete() -> None:
            # KubeVirt keeps a machine until its pod is gone, by a finalizer of its own.
            self._kube.delete(self._resource, identity, foreground=self._resource is JOBS)

        try:
            _retrying(delete)
        except (KubeError, Unreachable) as error:
            _LOG.warning("%s cannot be removed from the cluster: %s", identity, error)
        self._look(identity)

    def _forget(self, identity: str) -> None:
        self._service.release(identity)
        with self._lock:
            client = self._clients.known.get(identity)
            if client is not None and client.found is None:
                del self._clients.known[identity]

    # --- reporting --------------------------------------------------------------------

    def _take_report(self, assignment: str, phase: Phase, reason: str) -> None:
        """Take a client's own report, whose reason explains the state in the cluster."""
        with self._lock:
            client = self._clients.known.get(assignment)
            if client is None:
                return
            client.reported = reason
        self._look(assignment)

    def _look(self, identity: str) -> None:
        """Report the status of a client if it has changed."""
        with self._lock:
            client = self._clients.known.get(identity)
            if client is None or self._closed:
                return
            status = self._clients.assess(client)
            if status is None or not client.alive:
                return
            now = (status.phase, status.reason)
            if now == client.forwarded:
                return
            client.forwarded = now
            # Reported under the lock, so in the order of the changes; reports do not block.
            if client.workload is not None or client.stopping is not None:
                self._report(identity, status.phase, status.reason)
            final = status.phase.final
            if final and client.timer is not None:
                client.timer.cancel()
            if status.phase is Phase.STARTING and client.workload is not None:
                self._set_deadline(identity, client)
            if final and client.found is None:
                del self._clients.known[identity]
        if final:
            self._service.release(identity)
            if status.phase is Phase.REFUSED:
                # Otherwise the cluster may start it again.
                self._remove(identity)

    def _own(self) -> Owner | None:
        """Return the owner of the clients: the agent's service account, which the chart removes."""
        account = self._kube.account()
        if account is None or account.namespace != self._kube.namespace:
            return None
        return Owner(api_version="v1", kind="ServiceAccount", name=account.name, uid=account.uid)


def _retrying(call: Callable[[], _T]) -> _T:
    """Call until the server answers, for at most some seconds.

    A server that has just started may not know all roles yet: after it was unavailable, a call
    that it forbids is repeated as well.

    :raises Unreachable: when the time is up; its cause is the last answer.
    """
    away = False

    def once() -> _T:
        nonlocal away
        try:
            return call()
        except Unavailable as error:
            away = True
            raise Unreachable(str(error), hint=error.hint) from error
        except Forbidden as error:
            if not away:
                raise
            raise Unreachable(str(error), hint=error.hint) from error

    return retry(once, failures=(Unreachable,), attempts=_ATTEMPTS)


@contextmanager
def _launch_errors() -> Iterator[None]:
    """Turn a failure to reach the server into the error that a launcher raises."""
    try:
        yield
    except Unreachable as error:
        if isinstance(error.__cause__, KubeError):
            raise error.__cause__ from None
        raise LaunchError(str(error), hint=error.hint) from error
