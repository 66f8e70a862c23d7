"""An agent that runs in a cluster, and clients in virtual machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.kube.api import (
    Kube,
)
from edge.kube.permissions import MACHINES_REQUIRED, OPTIONAL, REQUIRED
from fedlearn.errors import ConfigError
from fedlearn.job.phase import Phase
from tests.harness.cluster import Cluster
from tests.harness.cluster_site import IMAGE, ClusterSite, workload

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def kubevirt(cluster: Cluster) -> None:
    """The kind of object that KubeVirt has, without KubeVirt."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    name = "virtualmachineinstances.kubevirt.io"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    cluster.request(
        path,
        "POST",
        {
            "metadata": {"name": name},
            "spec": {
                "group": "kubevirt.io",
                "scope": "Namespaced",
                "names": {
                    "kind": "VirtualMachineInstance",
                    "plural": "virtualmachineinstances",
                    "singular": "virtualmachineinstance",
                },
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": anything},
                    }
                ],
            },
        },
    )
    everywhere = "/apis/kubevirt.io/v1/virtualmachineinstances"
    cluster.wait(lambda: "items" in cluster.request(everywhere), "KubeVirt's kind to be served")


def test_a_client_runs_in_a_virtual_machine(
    cluster: Cluster, tmp_path: Path, kubevirt: None
) -> None:
    site = ClusterSite(cluster, tmp_path, rights=(*MACHINES_REQUIRED, *REQUIRED, *OPTIONAL))
    try:
        launcher = site.launcher(workload="kubevirt", tee="snp", retries=0)
        launcher.launch(workload("a"))
        launcher.launch(workload("b"))
        where = f"/apis/kubevirt.io/v1/namespaces/{site.namespace}/virtualmachineinstances"
        made = cluster.request(f"{where}/a")
        assert made["spec"]["domain"]["launchSecurity"] == {"snp": {}}
        assert "FEDLEARN_TICKET=" in made["spec"]["volumes"][1]["cloudInitNoCloud"]["userData"]
        cluster.request(f"{where}/a", "PATCH", {"status": {"phase": "Running"}})
        site.reports.wait("a", Phase.RUNNING, "its machine runs")
        cluster.request(f"{where}/a", "PATCH", {"status": {"phase": "Failed"}})
        site.reports.wait("a", Phase.FAILED, "its machine ended with a failure")
        assert launcher.running() == ("b",)
        launcher.stop("b", "enough")
        site.reports.wait("b", Phase.STOPPED)
        assert [item["metadata"]["name"] for item in cluster.request(where)["items"]] == ["a"]
    finally:
        site.close()


AGENT = """
import json, sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

import edge.agent.agent, edge.main
from edge.kube.api import Kube
from edge.kube.api.access import in_cluster
from edge.kube.launcher import KubeLauncher
from edge.config.kubernetes import KubernetesSettings
from edge.agent.client_service import Keys

environment, folder, namespace, image = json.loads(sys.argv[1])
launcher = KubeLauncher(
    Kube(in_cluster(environment, Path(folder)), namespace=namespace),
    KubernetesSettings(
        namespace=namespace, image=image, workload="insecure-pods", sponsor_listen="127.0.0.1:0"
    ),
    site="site-a",
    keys=Keys(ec.generate_private_key(ec.SECP256R1())),
    prepare=None,
    vouch_for=None,
    charge_for=lambda item, question: None,
    seed_for=None,
    report=lambda *reported: None,
    record=Path(folder) / "launched",
    start_s=10,
    stop_s=1,
)
assert launcher.running() == ()
account = launcher._kube.account()
status = Path("/proc/self/status").read_text()
resident = next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)
print(json.dumps({
    "mib": resident // 1024,
    "version": launcher.capabilities()["version"],
    "account": account.name,
    "client": "kubernetes" in sys.modules,
    "heavy": sorted({"flwr", "numpy", "torch"} & sys.modules.keys()),
}))
launcher.close()
"""


def test_an_agent_in_a_cluster_is_small(
    cluster_site: ClusterSite, cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(cluster.token(cluster_site.namespace, "fedlearn-edge"))
    (folder / "ca.crt").write_bytes(cluster.authority.path.read_bytes())
    host, _, port = cluster.url.removeprefix("https://").rpartition(":")
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    given = [environment, str(folder), cluster_site.namespace, IMAGE]
    done = subprocess.run(
        [sys.executable, "-c", AGENT, json.dumps(given)],
        cwd=Path(__file__).resolve().parents[3],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["account"] == "fedlearn-edge"
    assert found["version"] == "v1.20.2"
    assert not found["client"], "Kubernetes' own client is for kubeconfigs only"
    assert found["heavy"] == [], "an agent computes nothing"
    assert found["mib"] < 72


def test_a_kubeconfig_that_checks_no_certificate_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    document = json.loads(cluster.admin.read_text())
    document["clusters"][0]["cluster"] = {
        "server": cluster.url,
        "insecure-skip-tls-verify": True,
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="does not check the API server's certificate"):
        Kube.connect(path, namespace="default")
