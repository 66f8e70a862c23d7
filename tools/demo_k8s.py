"""The demo with clusters: two real control planes on this machine, with sites in both.

Two Kubernetes clusters run with etcd, API server, controllers and scheduler. Helm installs the
fedlearn-edge chart for each site; the agents run under the accounts of the chart; and clients are
Jobs that the agents create and the schedulers place. The coordinator is outside of both clusters,
as in a real federation.

No containers run. A node here registers with its cluster and handles pods as a kubelet does, but
runs their commands as processes of this machine (tests/harness/node.py). So there are no TEEs, no
images and no network of pods; the evidence is signed by development keys.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import click

from attestation.evidence import Tee
from fedlearn.cli.demo import commands as demo
from fedlearn.cli.demo.stage import Options
from fedlearn.demo.data import DATA_SETS, DEFAULT_SEED
from fedlearn.errors import FedlearnError, LaunchError
from fedlearn.local.children import Children, terminate_as_interrupt
from fedlearn.local.federation import COORDINATOR, Federation, Party, free_port
from fedlearn.terminal.console import line

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness.cluster import Cluster, assets  # noqa: E402
from tests.harness.node import Node  # noqa: E402

CHART: Final = ROOT / "helm" / "fedlearn-edge"
RELEASE: Final = "fedlearn-edge"
CLUSTERS: Final = 2
NODES: Final = 2
DIGEST: Final = "sha256:" + "ab" * 32
"""A placeholder for the images' digests: nothing is pulled here."""
LIMITS: Final = (
    "Pods ran as processes: the nodes of both clusters are stand-ins that run a pod's command "
    "without a container, so nothing is shown about images, TEEs, kata or pod networks.",
)
_CONNECT_SECONDS: Final = 120.0
_HELM_SECONDS: Final = 120


class Clusters:
    """Two control planes with two nodes each, and helm."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.helm = folder, programs / "helm"
        self.all = [
            Cluster(folder / f"cluster-{number + 1}", programs=programs)
            for number in range(CLUSTERS)
        ]
        self._nodes: list[Any] = []
        # Addresses for agents in place of those in a cluster's network.
        self.names = {"0.0.0.0": "127.0.0.1"}

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Start both at once; each ends with the thread of ``pool`` that started it."""
        list(pool.map(lambda cluster: cluster.start(), self.all))
        for cluster in self.all:
            for number in range(NODES):
                node = Node(cluster, f"node-{number + 1}", names=self.names)
                self._nodes.append(node.start())

    def stop(self) -> None:
        """End everything."""
        for node in self._nodes:
            node.lose()
        for cluster in self.all:
            cluster.stop()

    def install(self, cluster: Any, namespace: str, values: Path, token: Path) -> None:
        """Install the chart, as the owner of a site does.

        :raises LaunchError: with helm's message, when helm fails.
        """
        words = ["install", RELEASE, str(CHART), "--namespace", namespace, "--create-namespace"]
        words += ["--values", str(values), "--set-file", f"enrollment.token={token}"]
        done = subprocess.run(
            [str(self.helm), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=_HELM_SECONDS,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "KUBECONFIG": str(cluster.admin),
            },
        )
        if done.returncode:
            raise LaunchError(f"helm install at {namespace}: {done.stderr.strip()}")

    def output(self) -> str:
        """Return the last output of all pods, to find a fault."""
        found = []
        for node in self._nodes:
            for pod in node.started():
                with contextlib.suppress(OSError):
                    found.append(f"--- {pod}\n{node.output(pod)[-1500:]}")
        return "\n".join(found)


class ClusterFederation(Federation):
    """A federation whose sites are releases of the chart, by turns in one and the other cluster."""

    def __init__(
        self, folder: Path, children: Children, *, tee: Tee, clusters: Clusters, quiet: bool
    ) -> None:
        super().__init__(folder, children, tee=tee)
        self._clusters = clusters
        self._quiet = quiet

    def join(
        self,
        name: str,
        *,
        data: Mapping[str, Path],
        bundle: bytes,
        visible_updates: bool = False,
        app_logs: str = "off",
    ) -> Party:
        """Install the chart for a site, with its token, its data and the code that it accepts."""
        folder = self.folder / "sites" / name
        party = Party(
            name=name,
            folder=folder,
            machine=self.machines[name],
            data=data,
            visible_updates=visible_updates,
            app_logs=app_logs,
        )
        cluster = self._clusters.all[len(self.parties) % CLUSTERS]
        self._clusters.names[f"{RELEASE}.{name}.svc"] = "127.0.0.1"
        values, token = folder / "values.json", folder / "token.txt"
        values.write_text(json.dumps(self._values(party, bundle)))
        token.touch(mode=0o600)
        token.write_text(self.token(name))
        _volume(cluster, name, RELEASE, folder)
        self._clusters.install(cluster, name, values, token)
        for dataset, path in data.items():
            _volume(cluster, f"{name}-clients", dataset, path)
            _claim(cluster, f"{name}-clients", dataset)
        self.parties[name] = party
        if not self._quiet:
            line(f"  $ helm install {RELEASE} helm/fedlearn-edge --namespace {name} ...", bold=True)
            line(f"    in {cluster.folder.name} ({cluster.url})")
        return party

    def await_connected(self, names: Iterable[str]) -> None:
        """Return when all agents have a connection.

        :raises LaunchError: after two minutes, naming the agents without a connection.
        """
        wanted, end = set(names), time.monotonic() + _CONNECT_SECONDS
        while late := wanted - {one.name for one in self.operator.list_sites() if one.connected}:
            self.check()
            if time.monotonic() > end:
                raise LaunchError(
                    f"not connected: {', '.join(sorted(late))}\n{self._clusters.output()}"
                )
            time.sleep(0.1)

    def _values(self, party: Party, bundle: bytes) -> dict[str, Any]:
        machine = party.machine
        return {
            "site": {"name": party.name},
            "image": {"digest": DIGEST},
            "client": {"image": {"digest": DIGEST}},
            "workloads": {"namespace": f"{party.name}-clients"},
            "sponsor": {"port": free_port()},
            # All parties are on this machine, and nothing here enforces a NetworkPolicy.
            "networkPolicy": {"coordinator": {"to": [{"ipBlock": {"cidr": "127.0.0.1/32"}}]}},
            "config": {
                "kubernetes": {"workload": "insecure-pods"},
                "launcher": {"start_s": 120, "stop_s": 5},
                # The substitute for a machine's TEE belongs to the machine, not to the pod.
                "attester": {
                    **machine.table(),
                    "key": str(machine.state / "insecure-development.key"),
                    "hardware_id": machine.hardware_id.hex(),
                },
                "accept": {"bundles": [bundle.hex()]},
                "trust": {"insecure_sample_keys": self.anchors([COORDINATOR])},
                "data": {name: {"claim": name} for name in party.data},
            },
        }


def _volume(cluster: Any, namespace: str, claim: str, folder: Path) -> None:
    """Make a volume with a folder of this machine, for one claim."""
    cluster.request(
        "/api/v1/persistentvolumes",
        "POST",
        {
            "metadata": {"name": f"{namespace}-{claim}"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                "hostPath": {"path": str(folder)},
                "claimRef": {"name": claim, "namespace": namespace},
            },
        },
    )


def _claim(cluster: Any, namespace: str, name: str) -> None:
    cluster.request(
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        "POST",
        {
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": f"{namespace}-{name}",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )


@contextlib.contextmanager
def running() -> Iterator[Clusters]:
    """Both clusters in a private folder, as a context that ends and removes them."""
    programs = assets()
    with (
        terminate_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="fedlearn-clusters-") as folder,
        ThreadPoolExecutor(CLUSTERS) as pool,
    ):
        clusters = Clusters(Path(folder), programs)
        try:
            clusters.start(pool)
            yield clusters
        finally:
            clusters.stop()


@click.command()
@click.option("--data", "name", type=click.Choice(list(DATA_SETS)), default="medpar")
@click.option("--sites", type=click.IntRange(2, 12), default=4, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 1000), default=None)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=DEFAULT_SEED)
@click.option("--output", type=click.Path(path_type=Path), default=Path("fedlearn-demo"))
@click.option("--keep", is_flag=True, help="Keep the state of all parties in OUTPUT/run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines for programs.")
def main(
    name: str,
    sites: int,
    rounds: int | None,
    seed: int,
    output: Path,
    keep: bool,
    as_json: bool,
) -> None:
    """Train a model across sites in two Kubernetes clusters on this machine."""
    options = Options(
        data=name,
        sites=sites,
        rounds=rounds,
        tee="sample",
        seed=seed,
        output=output,
        program="python tools/demo_k8s.py",
        limits=LIMITS,
    )
    started = time.monotonic()
    try:
        with running() as clusters:
            if not as_json:
                seconds = time.monotonic() - started
                line(
                    f"{CLUSTERS} clusters with {NODES} nodes each run ({seconds:.1f} s)", bold=True
                )

            def federation(folder: Path, children: Children, *, tee: Tee) -> Federation:
                return ClusterFederation(
                    folder, children, tee=tee, clusters=clusters, quiet=as_json
                )

            demo.run(options, keep=keep, as_json=as_json, federation=federation)
    except FedlearnError as error:
        raise click.ClickException(f"{error}{f' ({error.hint})' if error.hint else ''}") from error


if __name__ == "__main__":
    main()
