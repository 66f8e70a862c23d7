"""A site in a cluster: a namespace, an agent's account with its Role, and nothing else."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.trust import TrustAnchors
from edge.agent.client_service import Keys
from edge.config.kubernetes import KubernetesSettings, Placement
from edge.kube.api import Kube
from edge.kube.launcher import KubeLauncher
from edge.kube.permissions import OPTIONAL, REQUIRED, Permission
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.workload import Workload
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.identity.voucher import sign_voucher
from fedlearn.job.assignment import Assignment
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec, workload_digest
from tests.harness.cluster import Cluster
from tests.harness.node import Node

IMAGE: Final = "registry.example/fedlearn-client@sha256:" + "ab" * 32
BUNDLE: Final = b"the bundle"
BUNDLE_DIGEST: Final = bytes.fromhex("12" * 32)
SITE: Final = "site-a"
HERE: Final = "fedlearn.test/site"
_NUMBERS: Final = itertools.count(1)
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"

JOB: Final = """\
name = "mortality"
app = "app"
rounds = 3
sites = ["site-a", "site-b"]
policy = "policy.toml"
policy_digest = "{digest}"

[resources]
cpu = 1.5
memory_mib = 512
gpu = {gpu}
"""


def job(gpu: int = 0) -> JobSpec:
    """A job that wants ``gpu`` GPUs."""
    return JobSpec.from_toml(JOB.format(digest="cd" * 32, gpu=gpu))


def workload(identity: str, *, gpu: int = 0, data: str = "", site: str = SITE) -> Workload:
    """One client of that job."""
    spec = job(gpu)
    now = datetime.now(UTC)
    assignment = Assignment(
        id=identity,
        job=spec.name,
        site=site,
        spec=spec.to_json(),
        bundle=BUNDLE_DIGEST,
        policy="",
        workload=workload_digest(spec.digest(), BUNDLE_DIGEST),
        issued=now,
        expires=now + timedelta(hours=1),
    )
    return Workload(assignment=assignment, spec=spec, bundle=BUNDLE, data=data, client="c1")


def bootstrap(item: Workload) -> Bootstrap:
    """What its client receives."""
    return Bootstrap(
        site=item.assignment.site,
        client=item.client,
        spec=item.assignment.spec,
        policy=item.assignment.policy,
        bundle=item.bundle,
        gate_address="127.0.0.1:1",
        ca_pin=bytes(32),
        data=item.data,
        attester=AttesterSettings(kind="insecure-sample"),
        state=Path("/state"),
        trust=TrustAnchors(),
    )


@dataclass
class Reports:
    """What a launcher reported, and a way to wait for it."""

    reported: list[tuple[str, Phase, str]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, assignment: str, phase: Phase, reason: str) -> None:
        with self.news:
            self.reported.append((assignment, phase, reason))
            self.news.notify_all()

    def of(self, assignment: str) -> list[tuple[Phase, str]]:
        with self.news:
            return [(phase, reason) for name, phase, reason in self.reported if name == assignment]

    def wait(self, assignment: str, phase: Phase, words: str = "", *, seconds: float = 30.0) -> str:
        """Return the first reason that has ``words`` and came with ``phase``."""

        def found() -> str | None:
            for name, at, reason in self.reported:
                if name == assignment and at is phase and words in reason:
                    return reason or " "
            return None

        with self.news:
            reason = self.news.wait_for(found, seconds)
        assert reason is not None, f"no {phase} with {words!r} of {assignment}: {self.reported}"
        return reason


class ClusterSite:
    """A namespace of ``cluster`` with an agent's account, and launchers under that account."""

    def __init__(
        self,
        cluster: Cluster,
        state: Path,
        *,
        rights: Iterable[Permission] = (*REQUIRED, *OPTIONAL),
    ) -> None:
        self.cluster = cluster
        self.state = state
        self.namespace = f"site-{next(_NUMBERS)}"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.reports = Reports()
        self.nodes: list[Node] = []
        self._open: list[KubeLauncher] = []
        self._make("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        here = f"/api/v1/namespaces/{self.namespace}"
        for account in ("fedlearn-edge", "fedlearn-client"):
            self._make(f"{here}/serviceaccounts", {"metadata": {"name": account}})
        self._grant(tuple(rights))
        token = cluster.token(self.namespace, "fedlearn-edge")
        self.kubeconfig = cluster.kubeconfig(
            f"{self.namespace}-agent", token=token, namespace=self.namespace
        )

    def kube(self) -> Kube:
        """A connection under the agent's account."""
        return Kube.connect(self.kubeconfig, namespace=self.namespace)

    def node(self, name: str, program: Sequence[str] = (), **details: Any) -> Node:
        """Start a node for this site's clients only, whose image runs ``program``."""
        details["labels"] = {HERE: self.namespace, **details.get("labels", {})}
        if program:
            details["programs"] = {IMAGE: tuple(program)}
        node = Node(self.cluster, f"{self.namespace}-{name}", **details).start()
        self.nodes.append(node)
        return node

    def claim(self, name: str, folder: Path) -> None:
        """Make a PersistentVolumeClaim that is bound to a volume with ``folder``."""
        volume = f"{self.namespace}-{name}"
        size = {"storage": "1Gi"}
        self._make(
            "/api/v1/persistentvolumes",
            {
                "metadata": {"name": volume},
                "spec": {
                    "capacity": size,
                    "accessModes": ["ReadOnlyMany"],
                    "hostPath": {"path": str(folder)},
                    "claimRef": {"name": name, "namespace": self.namespace},
                },
            },
        )
        self._make(
            f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims",
            {
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadOnlyMany"],
                    "storageClassName": "",
                    "volumeName": volume,
                    "resources": {"requests": size},
                },
            },
        )

    def settings(self, **changes: Any) -> KubernetesSettings:
        """Settings for this namespace."""
        values: dict[str, Any] = {
            "kubeconfig": self.kubeconfig,
            "namespace": self.namespace,
            "workload": "insecure-pods",
            "image": IMAGE,
            "sponsor_listen": "127.0.0.1:0",
            "placement": Placement(node_selector={HERE: self.namespace}, unreachable_s=1),
        }
        return KubernetesSettings(**{**values, **changes})

    def launcher(self, *, start_s: float = 60.0, **changes: Any) -> KubeLauncher:
        """A launcher, as an agent that was just started has it."""

        def vouch(item: Workload, nonce: bytes, tls_key: bytes) -> bytes:
            return sign_voucher(
                self.key,
                job=item.assignment.job,
                site=item.assignment.site,
                client=item.client,
                nonce=nonce,
                tls_key=tls_key,
            )

        launcher = KubeLauncher(
            self.kube(),
            self.settings(**changes),
            site=SITE,
            keys=Keys(self.key),
            prepare=bootstrap,
            vouch_for=vouch,
            charge_for=lambda item, question: None,
            seed_for=lambda item, request: b"seed of " + item.assignment.id.encode() + request,
            report=self.reports,
            record=self.state / "launched",
            start_s=start_s,
            stop_s=2.0,
        )
        self._open.append(launcher)
        return launcher

    def close(self) -> None:
        """Close the launchers and remove what they left."""
        for launcher in self._open:
            launcher.close()
        jobs = f"/apis/batch/v1/namespaces/{self.namespace}/jobs?propagationPolicy=Background"
        self.cluster.request(jobs, "DELETE")
        pods = f"/api/v1/namespaces/{self.namespace}/pods?gracePeriodSeconds=0"
        self.cluster.request(pods, "DELETE")
        for node in self.nodes:
            node.stop()

    def jobs(self) -> dict[str, Any]:
        """The jobs that are there, by name."""
        found = self.cluster.request(f"/apis/batch/v1/namespaces/{self.namespace}/jobs")
        return {item["metadata"]["name"]: item for item in found["items"]}

    def pods(self) -> list[dict[str, Any]]:
        """The pods that are there."""
        found = self.cluster.request(f"/api/v1/namespaces/{self.namespace}/pods")
        return list(found["items"])

    def evict(self, pod: str) -> None:
        """Evict a pod through the API, as a drain does."""
        self._make(
            f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction",
            {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": pod}},
        )

    def _make(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.cluster.request(path, "POST", dict(body))

    def _grant(self, rights: tuple[Permission, ...]) -> None:
        subject = {
            "kind": "ServiceAccount",
            "name": "fedlearn-edge",
            "namespace": self.namespace,
        }
        for wide in (False, True):
            rules = [
                {
                    "apiGroups": [item.resource.group],
                    "resources": [
                        str(item).partition(".")[0]
                        if not item.part
                        else f"{item.resource.plural}/{item.part}"
                    ],
                    "verbs": list(item.verbs),
                }
                for item in rights
                if item.resource.namespaced is not wide
            ]
            kind = "ClusterRole" if wide else "Role"
            where = _RBAC if wide else f"{_RBAC}/namespaces/{self.namespace}"
            name = f"{self.namespace}-agent"
            plural = f"{kind.lower()}s"
            self._make(f"{where}/{plural}", {"metadata": {"name": name}, "rules": rules})
            self._make(
                f"{where}/{kind.lower()}bindings",
                {
                    "metadata": {"name": name},
                    "subjects": [subject],
                    "roleRef": {
                        "apiGroup": "rbac.authorization.k8s.io",
                        "kind": kind,
                        "name": name,
                    },
                },
            )
