"""A real node: containerd, runc, a bridge for pods, and the kubelet, in namespaces of its own.

It joins a real control plane, which runs in its network. The runtime handlers that it is given
are runc under other names, so a RuntimeClass such as ``kata-qemu-snp`` shows that the plumbing
fits, and nothing about a TEE. Services and DNS are stand-ins (:mod:`real_node_services`);
NetworkPolicies are stored and not enforced.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

from tests.harness import (
    real_node_host as real_node_host,
)
from tests.harness import (
    real_node_images as real_node_images,
)
from tests.harness import (
    real_node_services as real_node_services,
)
from tests.harness.cluster import Cluster, assets
from tests.harness.started import Started

NAME: Final = "real-node"
PLUGINS: Final = Path("/usr/lib/cni")
_SOCKET: Final = "/run/containerd/containerd.sock"
_TASKS: Final = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
_READY_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 30.0
_PROGRAMS: Final = ("containerd", "runc", "ctr", "ip", "nsenter", "unshare", "setpriv")
_CRI: Final = 'plugins."io.containerd.grpc.v1.cri"'
# This may have to run where nobody may lower an oom_score_adj (no CAP_SYS_RESOURCE).
_CONTAINERD: Final = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{socket}"
[{cri}]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
[{cri}.cni]
bin_dir = "{plugins}"
conf_dir = "{folder}/cni"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
"""
_RUNTIME: Final = """\
[{cri}.containerd.runtimes.{name}]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.{name}.options]
SystemdCgroup = false
"""


def missing() -> str:
    """Return what this machine lacks for a real node, and how to get it; empty for nothing."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    lacking += [f"{PLUGINS}/{name}" for name in ("bridge",) if not (PLUGINS / name).exists()]
    if not lacking:
        return ""
    return f"not installed: {', '.join(lacking)}: run tools/install-system-packages.sh pods"


class RealNode(Started):
    """A control plane and its one node; a context manager. Needs root.

    ``cluster``   the control plane (:class:`cluster.Cluster`)
    ``host``      the namespaces that all of it is in

    :param images: by their names in full, what the node has; it can pull nothing.
    :param handlers: names that runc has, besides its own.
    """

    def __init__(
        self,
        images: Mapping[str, real_node_images.Image],
        *,
        handlers: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        extended: Mapping[str, int] | None = None,
    ) -> None:
        self.host = real_node_host.Host()
        self._cluster: Cluster | None = None
        self.seconds: dict[str, float] = {}
        self._images = dict(images)
        self._handlers = tuple(handlers)
        self._labels = dict(labels or {})
        self._extended = dict(extended or {})
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def cluster(self) -> Cluster:
        """The control plane that the node belongs to, once it is started."""
        assert self._cluster is not None
        return self._cluster

    def start(self) -> Self:
        """Start everything; return when the node is ready.

        :raises RuntimeError: naming what is not installed, or what ended and what it wrote last.
        """
        if lacking := missing():
            raise RuntimeError(lacking)
        self._timed("host", self.host.start)
        self._cluster = Cluster(
            self.host.folder / "cluster",
            address=self.host.address,
            inside=self.host.network,
            # As 1.21 and later do: an account's token is bound to the pod, and expires.
            features=("BoundServiceAccountTokenVolume",),
        )
        self._start_containerd()
        with ThreadPoolExecutor(1) as pool:
            images = pool.submit(self._timed, "images", self._import)
            self._timed("cluster", self.cluster.start)
            services = Path(__file__).with_name("real_node_services.py")
            self._spawn("services", sys.executable, services, self.cluster.url, self.cluster.folder)
            self._start_kubelet()
            self._timed("ready", self._await_ready)
            images.result()
        return self

    def stop(self) -> None:
        """End everything."""
        self.host.kill()
        if self.cluster is not None:
            self.cluster.stop()
        self.host.stop()
        for program in self._programs.values():
            program.wait()
        self._programs.clear()

    # --- what tests ask it ------------------------------------------------------------

    def processes(self, pod: Mapping[str, Any], word: str) -> list[int]:
        """Return the processes of a pod with ``word`` in their line, by their numbers here."""
        found = []
        for pid in self.host.processes(f"pod{pod['metadata']['uid']}"):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            if word.encode() in line:
                found.append(pid)
        return found

    def container(self, pod: Mapping[str, Any]) -> dict[str, Any]:
        """Return what runc was given about the first container of a pod (its OCI runtime spec)."""
        name = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        found: dict[str, Any] = json.loads(self.host.run("cat", f"{_TASKS}/{name}/config.json"))
        return found

    def output(self, namespace: str, pod: str) -> str:
        """Return what the containers of a pod wrote, as the node keeps it."""
        folders = (self.host.folder / "log" / "pods").glob(f"{namespace}_{pod}_*")
        files = (file for folder in folders for file in sorted(folder.rglob("*.log")))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def wait(self, reached: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Return when ``reached()``; a program of the node that ends meanwhile is an error."""

        def so() -> bool:
            self._check()
            return bool(reached())

        self.cluster.wait(so, what, seconds)

    # --- the programs -----------------------------------------------------------------

    def _timed(self, what: str, work: Callable[[], object]) -> None:
        started = time.monotonic()
        work()
        self.seconds[what] = round(time.monotonic() - started, 1)

    def _spawn(self, name: str, *words: object) -> None:
        self._programs[name] = self.host.spawn(name, *map(str, words))

    def _check(self) -> None:
        for name, program in self._programs.items():
            if program.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{self.host.log(name)}")

    def _start_containerd(self) -> None:
        names = {
            "cri": _CRI,
            "socket": _SOCKET,
            "plugins": PLUGINS,
            "folder": self.host.folder,
            "pause": real_node_images.PAUSE,
        }
        text = _CONTAINERD.format(**names)
        text += "".join(_RUNTIME.format(cri=_CRI, name=it) for it in ("runc", *self._handlers))
        (self.host.folder / "containerd.toml").write_text(text)
        (self.host.folder / "cni").mkdir()
        bridge = {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni",
                "ranges": [[{"subnet": self.host.pods}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
        (self.host.folder / "cni/10-pods.conflist").write_text(json.dumps(network))
        self._spawn("containerd", "containerd", "-c", self.host.folder / "containerd.toml")

    def _import(self) -> None:
        archive = self.host.folder / "images.tar"
        real_node_images.write_archive(archive, self._images)
        ctr = ("ctr", "--address", _SOCKET, "--namespace", "k8s.io")

        def answers() -> bool:
            try:
                self.host.run(*ctr, "version", seconds=10)
            except RuntimeError:
                return False
            return True

        end = time.monotonic() + _ANSWER_SECONDS
        while not answers():
            self._check()
            if time.monotonic() > end:
                raise RuntimeError(f"containerd does not answer:\n{self.host.log('containerd')}")
            time.sleep(0.1)
        self.host.run(*ctr, "images", "import", str(archive))
        archive.unlink()

    def _start_kubelet(self) -> None:
        cluster, address = self.cluster, self.host.address
        certificate, key = cluster.authority.issue("kubelet", NAME, addresses=(address, NAME))
        identity = cluster.kubeconfig(f"system:node:{NAME}", groups=("system:nodes",))
        settings = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": address,
            "healthzPort": 0,
            "authentication": {
                "x509": {"clientCAFile": str(cluster.authority.path)},
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.host.cgroup}",
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [real_node_services.DNS_ADDRESS],
            "clusterDomain": real_node_services.DOMAIN,
            "resolvConf": "",
            "hairpinMode": "none",
            "makeIPTablesUtilChains": False,
            "nodeStatusUpdateFrequency": "2s",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "memory.available": "100Mi",
            },
        }
        path = self.host.folder / "kubelet.json"
        path.write_text(json.dumps(settings))
        flags = [
            f"--config={path}",
            f"--kubeconfig={identity}",
            f"--hostname-override={NAME}",
            f"--node-ip={address}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{_SOCKET}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
            f"--volume-plugin-dir={self.host.folder}/plugins",
        ]
        if self._labels:
            flags.append(f"--node-labels={','.join(f'{k}={v}' for k, v in self._labels.items())}")
        self._spawn("kubelet", assets() / "kubelet", *flags)

    def _await_ready(self) -> None:
        node = f"/api/v1/nodes/{NAME}"

        def ready() -> bool:
            conditions = self.cluster.request(node)["status"]["conditions"]
            return any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)

        try:
            self.wait(ready, "the node to be ready", _READY_SECONDS)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.host.log('kubelet')}") from error
        if self._extended:
            # As a device plugin would advertise them.
            amounts = {name: str(count) for name, count in self._extended.items()}
            status = {"status": {"capacity": amounts, "allocatable": amounts}}
            self.cluster.request(f"{node}/status", "PATCH", status)

        def usable() -> bool:
            taints = self.cluster.request(node)["spec"].get("taints") or []
            return not taints

        self.wait(usable, "the node to have no taint")
