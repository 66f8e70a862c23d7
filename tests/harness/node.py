"""A node without a container runtime: the real scheduler places pods on it, processes run.

It registers capacity, labels and taints, renews its lease, and does with a pod what a kubelet
does: starts the container's command, reports, stops it on deletion, states in an event why it
cannot. It acts under a kubelet's own identity (``system:node:NAME``), so the Node authorizer
and NodeRestriction apply to it.

A process sees no mounts. Where the value of an environment variable is a mount path, the
process gets the folder behind it instead; so do the words of its command, and the files of
ConfigMaps, in which paths below a mount are rewritten. A service account's token is where
``FEDLEARN_ACCOUNT`` states.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.harness.cluster import Cluster

LEASE_SECONDS: Final = 1.0
_FAILED: Final = (ApiException, HTTPError, OSError)
_KEPT: Final = (
    *("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH"),
    # Which of its kernels OpenBLAS takes here: another one gives other last bits.
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
)
_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_READ_SECONDS: Final = 10.0


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Node:
    """One node of ``cluster`` (a :class:`Cluster` of the same folder); a context manager.

    ``extended``  extended resources and how many, such as ``{"nvidia.com/gpu": 1}``
    ``handlers``  runtime handlers that it has; a pod of another RuntimeClass does not start
    ``folders``   the folder behind each PersistentVolumeClaim, by its name; by default that of
                  its volume
    ``names``     what the files of ConfigMaps get in place of other words, such as names that
                  only a cluster's DNS knows; it may grow while the node runs
    ``programs``  what an image runs in place of the pod's command, by the image's name
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        *,
        extended: Mapping[str, int] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Iterable[Mapping[str, str]] = (),
        handlers: Iterable[str] = (),
        folders: Mapping[str, Path] | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder: Path = cluster.folder / "nodes" / name
        self.folder.mkdir(parents=True)
        self._admin = _core(cluster.admin)
        identity = cluster.kubeconfig(f"system:node:{name}", groups=("system:nodes",))
        api = config.new_client_from_config(str(identity))
        self._core = client.CoreV1Api(api)
        self._leases = client.CoordinationV1Api(api)
        self._extended = dict(extended or {})
        self._labels = dict(labels or {})
        self._taints = [dict(taint) for taint in taints]
        self._handlers = frozenset(handlers)
        self._runtime_classes = client.NodeV1Api(config.new_client_from_config(str(cluster.admin)))
        self._folders = dict(folders or {})
        self._programs = dict(programs or {})
        self._environment = dict(environment or {})
        self._names = names if names is not None else {}
        self._server = cluster.url
        self._off = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pods: dict[str, _Pod] = {}
        self._lock = threading.Lock()
        self._watch: watch.Watch | None = None

    def __enter__(self) -> Self:
        """Join the cluster."""
        return self.start()

    def __exit__(self, *exception: object) -> None:
        """Leave it."""
        self.stop()

    def start(self) -> Self:
        """Register; return when the node is ready and its pods are watched."""
        self._admin.create_node(
            {
                "metadata": {
                    "name": self.name,
                    "labels": {
                        "kubernetes.io/hostname": self.name,
                        "kubernetes.io/os": "linux",
                        "kubernetes.io/arch": "amd64",
                        **self._labels,
                    },
                },
                "spec": {"taints": self._taints},
            }
        )
        self._heartbeat()
        self._core.patch_node_status(self.name, {"status": self._status()})
        self._start(self._beat, "lease")
        self._start(self._follow, "pods")
        return self

    def stop(self) -> None:
        """Stop all pods and remove the node."""
        self.lose()
        try:
            self._admin.delete_node(self.name)
        except _FAILED:
            return

    # --- what happens to nodes --------------------------------------------------------

    def lose(self) -> None:
        """Lose power: processes die and the node reports nothing any more."""
        self._off.set()
        if self._watch is not None:
            self._watch.stop()
        with self._lock:
            pods = list(self._pods.values())
        for pod in pods:
            pod.kill()

    def kill(self, pod: str, sign: int = signal.SIGKILL) -> None:
        """Kill the process of a pod, as the kernel does when memory is short."""
        self._named(pod).kill(sign)

    def evict(self, pod: str, message: str = "The node was low on resource: memory.") -> None:
        """Evict a pod as a kubelet under pressure does."""
        self._named(pod).evicted = message
        self._named(pod).kill()

    def pods(self) -> tuple[str, ...]:
        """Return the names of the pods whose process runs."""
        with self._lock:
            return tuple(name for name, pod in self._pods.items() if pod.alive)

    def started(self) -> tuple[str, ...]:
        """Return the names of all pods that were ever started here, in order."""
        with self._lock:
            return tuple(self._pods)

    def output(self, pod: str) -> str:
        """Return what a pod's process wrote."""
        return (self.folder / pod / "output").read_text(errors="replace")

    # --- the kubelet ------------------------------------------------------------------

    def _start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=f"{self.name} {name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _named(self, pod: str) -> _Pod:
        with self._lock:
            return self._pods[pod]

    def _status(self) -> dict[str, Any]:
        amount = {
            "cpu": "32",
            "memory": "128Gi",
            "pods": "110",
            "ephemeral-storage": "100Gi",
            **{name: str(count) for name, count in self._extended.items()},
        }
        conditions = {
            "Ready": "True",
            "MemoryPressure": "False",
            "DiskPressure": "False",
            "PIDPressure": "False",
        }
        return {
            "capacity": amount,
            "allocatable": amount,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "conditions": [
                {
                    "type": kind,
                    "status": value,
                    "reason": "Test",
                    "message": "",
                    "lastHeartbeatTime": _now(),
                    "lastTransitionTime": _now(),
                }
                for kind, value in conditions.items()
            ],
        }

    def _beat(self) -> None:
        while not self._off.wait(LEASE_SECONDS):
            try:
                self._heartbeat()
                # A node that was given up for lost is ready again when it reports this itself.
                self._core.patch_node_status(self.name, {"status": self._status()})
            except _FAILED:
                continue

    def _heartbeat(self) -> None:
        lease = {
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 4,
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        try:
            self._leases.patch_namespaced_lease(self.name, "kube-node-lease", lease)
        except ApiException as error:
            if error.status != 404:
                raise
            self._leases.create_namespaced_lease("kube-node-lease", lease)

    def _follow(self) -> None:
        mine = f"spec.nodeName={self.name}"
        while not self._off.is_set():
            try:
                listed = self._core.list_pod_for_all_namespaces(field_selector=mine)
                for pod in listed.items:
                    self._seen(pod)
                self._watch = watch.Watch()
                for event in self._watch.stream(
                    self._core.list_pod_for_all_namespaces,
                    field_selector=mine,
                    resource_version=listed.metadata.resource_version,
                    timeout_seconds=60,
                ):
                    if self._off.is_set():
                        return
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._seen(event["object"])
            except _FAILED:
                self._off.wait(0.2)

    def _seen(self, pod: client.V1Pod) -> None:
        name = pod.metadata.name
        with self._lock:
            known = self._pods.get(name)
            if known is None and not pod.metadata.deletion_timestamp:
                if pod.status.phase != "Pending":
                    return
                known = self._pods[name] = _Pod(pod, self.folder / name)
                self._start(lambda: self._run(known), name)
        if pod.metadata.deletion_timestamp:
            if known is None or not known.alive:
                self._forget(pod)
            elif not known.deleted:
                known.deleted = True
                known.terminate(pod.metadata.deletion_grace_period_seconds or 0)

    def _forget(self, pod: client.V1Pod) -> None:
        try:
            self._core.delete_namespaced_pod(
                pod.metadata.name,
                pod.metadata.namespace,
                body=client.V1DeleteOptions(
                    grace_period_seconds=0, preconditions={"uid": pod.metadata.uid}
                ),
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    def _run(self, known: _Pod) -> None:
        pod = known.pod
        try:
            if missing := self._missing_handler(pod):
                message = f"no runtime for {missing!r} is configured"
                self._tell(pod, "FailedCreatePodSandBox", message)
                return
            started = _now()
            mounts = self._mounts(pod, known.folder)
            code = 0
            main = pod.spec.containers[0]
            for container in (*(pod.spec.init_containers or ()), main):
                words = self._programs.get(
                    container.image, [*(container.command or ()), *(container.args or ())]
                )
                known.start(
                    [_translated(word, mounts) for word in words],
                    self._process_environment(container, mounts),
                )
                if container is main:
                    self._patch(pod, "Running", {"running": {"startedAt": started}})
                code = known.wait()
                if code or known.deleted:
                    break
            if self._off.is_set():
                return
            reason = "Completed" if code == 0 else "Error"
            ended = {
                "exitCode": code if code >= 0 else 128 - code,
                "reason": reason,
                "startedAt": started,
                "finishedAt": _now(),
                "message": known.termination_message(),
            }
            phase = "Succeeded" if code == 0 and not known.evicted else "Failed"
            self._patch(pod, phase, {"terminated": ended}, evicted=known.evicted)
            if known.deleted:
                self._forget(pod)
        except _FAILED as error:
            if not self._off.is_set() and getattr(error, "status", 0) != 404:
                raise

    def _missing_handler(self, pod: client.V1Pod) -> str:
        wanted = pod.spec.runtime_class_name
        if not wanted:
            return ""
        handler: str = self._runtime_classes.read_runtime_class(wanted).handler
        return "" if handler in self._handlers else handler

    def _mounts(self, pod: client.V1Pod, folder: Path) -> dict[str, str]:
        """Return the folder behind each path that a container of the pod mounts."""
        volumes = {volume.name: volume for volume in pod.spec.volumes or ()}
        found: dict[str, str] = {}
        written: list[tuple[Path, Mapping[str, bytes]]] = []
        for container in (*(pod.spec.init_containers or ()), *pod.spec.containers):
            for mount in container.volume_mounts or ():
                if mount.mount_path in found:
                    continue
                volume, namespace = volumes[mount.name], pod.metadata.namespace
                if volume.persistent_volume_claim is not None:
                    name = volume.persistent_volume_claim.claim_name
                    place = self._folders.get(name) or self._claimed(namespace, name)
                elif volume.host_path is not None:
                    place = Path(volume.host_path.path)
                else:
                    place = folder / "volumes" / mount.name
                    place.mkdir(parents=True, exist_ok=True)
                    if files := self._files(volume, namespace):
                        written.append((place, files))
                found[mount.mount_path] = str(place)
            found[container.termination_message_path] = str(folder / "termination")
        lasting = {path: place for path, place in found.items() if not _fleeting(path)}
        for place, contents in written:
            for name, data in contents.items():
                text = _translated(data.decode(), {**self._names, **lasting})
                (place / name).write_text(text)
                (place / name).chmod(0o600)
        return found

    def _claimed(self, namespace: str, name: str) -> Path:
        claim = self._admin.read_namespaced_persistent_volume_claim(name, namespace)
        volume = self._admin.read_persistent_volume(claim.spec.volume_name)
        return Path(volume.spec.host_path.path)

    def _files(self, volume: client.V1Volume, namespace: str) -> dict[str, bytes]:
        if volume.config_map is not None:
            name = volume.config_map.name
            found = _retry(lambda: self._core.read_namespaced_config_map(name, namespace))
            return {key: text.encode() for key, text in (found.data or {}).items()}
        if volume.secret is None:
            return {}
        secret, name = volume.secret, volume.secret.secret_name
        try:
            found = _retry(lambda: self._core.read_namespaced_secret(name, namespace))
        except ApiException as error:
            if error.status == 404 and secret.optional:
                return {}
            raise
        data = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        if secret.items:
            return {item.path: data[item.key] for item in secret.items if item.key in data}
        return data

    def _process_environment(
        self, container: client.V1Container, mounts: Mapping[str, str]
    ) -> dict[str, str]:
        # What an image has: the interpreter and the packages of this very environment.
        values = {key: os.environ[key] for key in _KEPT if key in os.environ}
        values["PATH"] = f"{Path(sys.executable).parent}:{values.get('PATH', '')}"
        values |= self._environment
        if _ACCOUNT in mounts:
            host, _, port = self._server.removeprefix("https://").rpartition(":")
            values |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
            values["FEDLEARN_ACCOUNT"] = mounts[_ACCOUNT]
        for item in container.env or ():
            values[item.name] = mounts.get(item.value, item.value or "")
        return values

    def _patch(
        self, pod: client.V1Pod, phase: str, state: dict[str, Any], evicted: str = ""
    ) -> None:
        container = pod.spec.containers[0]
        ready = phase == "Running"
        body: dict[str, Any] = {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "podIP": "127.0.0.1",
            "startTime": _now(),
            "conditions": [
                {"type": kind, "status": "True" if ready or kind == "Initialized" else "False"}
                for kind in ("Initialized", "Ready", "ContainersReady")
            ],
            "containerStatuses": [
                {
                    "name": container.name,
                    "image": container.image,
                    "imageID": container.image,
                    "containerID": f"process://{pod.metadata.uid}",
                    "restartCount": 0,
                    "ready": ready,
                    "started": ready,
                    "state": state,
                }
            ],
        }
        if evicted:
            body |= {"reason": "Evicted", "message": evicted}
        self._core.patch_namespaced_pod_status(
            pod.metadata.name, pod.metadata.namespace, {"status": body}
        )

    def _tell(self, pod: client.V1Pod, reason: str, message: str) -> None:
        self._core.create_namespaced_event(
            pod.metadata.namespace,
            {
                "metadata": {"generateName": f"{pod.metadata.name}."},
                "involvedObject": {
                    "kind": "Pod",
                    "name": pod.metadata.name,
                    "namespace": pod.metadata.namespace,
                    "uid": pod.metadata.uid,
                },
                "type": "Warning",
                "reason": reason,
                "message": message,
                "firstTimestamp": _now(),
                "lastTimestamp": _now(),
                "count": 1,
                "source": {"component": "kubelet", "host": self.name},
            },
        )


class _Pod:
    """A pod here, and its process."""

    def __init__(self, pod: client.V1Pod, folder: Path) -> None:
        self.pod = pod
        self.folder = folder
        self.deleted = False
        self.evicted = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._terminate: threading.Timer | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                # The thread of a pod waits for its process; when it is gone, so is the process.
                ["setpriv", "--pdeathsig", "KILL", "--", program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> int:
        assert self._process is not None
        code = self._process.wait()
        if self._terminate is not None:
            self._terminate.cancel()
        return code

    def terminate(self, grace: float) -> None:
        self.kill(signal.SIGTERM)
        self._terminate = threading.Timer(grace, self.kill)
        self._terminate.daemon = True
        self._terminate.start()

    def kill(self, sign: int = signal.SIGKILL) -> None:
        if self._process is not None and self._process.poll() is None:
            # Whoever waits for it may just have seen it end.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)

    def termination_message(self) -> str:
        path = self.folder / "termination"
        return path.read_text(errors="replace")[:4096] if path.exists() else ""


def _core(kubeconfig: Path) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))


def _fleeting(path: str) -> bool:
    """Whether a mount path is one that the files of this machine may be below, too."""
    return path in ("/tmp", "/dev/termination-log")


def _translated(text: str, places: Mapping[str, str]) -> str:
    """Return ``text`` with the longest of the words that have another place in their place."""
    words = sorted((word for word in places if not _fleeting(word)), key=len, reverse=True)
    if not words:
        return text
    pattern = rf"(?<![\w./])(?:{'|'.join(map(re.escape, words))})(?![\w.-])"
    return re.sub(pattern, lambda found: places[found[0]], text)


def _retry(call: Callable[[], Any]) -> Any:
    """Call again while the authorizer does not know yet that the pod is bound to this node."""
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        try:
            return call()
        except ApiException as error:
            if error.status != 403 or time.monotonic() > deadline:
                raise
        time.sleep(0.1)
