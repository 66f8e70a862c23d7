"""The rights of an agent in its cluster, and what its survey and the doctor report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.config.kubernetes import NFD_LABELS, Devices, Placement
from edge.kube.api import (
    JOBS,
    PODS,
    Exists,
    Forbidden,
    Kube,
    Missing,
    Resource,
)
from edge.kube.capabilities import cluster_checks, survey
from edge.kube.permissions import NEVER, OPTIONAL, REQUIRED
from fedlearn.checks import Level
from fedlearn.errors import ConfigError
from tests.harness.cluster import Cluster
from tests.harness.cluster_site import IMAGE, ClusterSite, workload
from tests.harness.kube_clients import TDX, WAIT, until

pytestmark = pytest.mark.e2e


def test_what_an_agent_may_not_do(cluster_site: ClusterSite) -> None:
    kube = cluster_site.kube()
    for permission in (*REQUIRED, *OPTIONAL):
        for verb in permission.verbs:
            assert kube.may(verb, permission.resource, part=permission.part), (verb, permission)
    for permission in NEVER:
        for verb in permission.verbs:
            allowed = kube.may(verb, permission.resource, part=permission.part)
            assert not allowed, (verb, permission)


def test_the_api_server_refuses_what_an_agent_may_not_do(cluster_site: ClusterSite) -> None:
    kube = cluster_site.kube()
    secrets, maps = Resource(plural="secrets"), Resource(plural="configmaps")
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    attempts: list[Callable[[], object]] = [
        lambda: kube.objects(secrets),
        lambda: kube.create(secrets, {"metadata": {"name": "s"}}),
        lambda: kube.objects(maps),
        lambda: kube.create(PODS, pod),
        lambda: kube.delete(PODS, "p"),
        lambda: kube._json("POST", PODS.path(kube.namespace, "p", "exec"), PODS),
        lambda: kube._json("PATCH", JOBS.path(kube.namespace, "a"), JOBS, body={}),
        lambda: Kube.connect(cluster_site.kubeconfig, namespace="default").objects(JOBS),
    ]
    for attempt in attempts:
        with pytest.raises(Forbidden) as caught:
            attempt()
        assert "fedlearn-edge chart" in caught.value.hint


def test_clients_belong_to_the_agents_account(cluster_site: ClusterSite) -> None:
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    (owner,) = cluster_site.jobs()["a"]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("ServiceAccount", "fedlearn-edge")
    account = f"/api/v1/namespaces/{cluster_site.namespace}/serviceaccounts/fedlearn-edge"
    cluster_site.cluster.request(account, "DELETE")
    until(lambda: not cluster_site.jobs(), "the client to go with its agent", 30)


def test_errors_state_what_and_what_to_do(
    cluster_site: ClusterSite, tmp_path: Path, cluster: Cluster
) -> None:
    kube = cluster_site.kube()
    with pytest.raises(Missing, match=r'jobs\.batch "nothing" not found'):
        kube.get(JOBS, "nothing")
    broken = tmp_path / "kubeconfig"
    broken.write_text("clusters: 7")
    with pytest.raises(ConfigError, match=r"kubeconfig: kubernetes.kubeconfig: cannot be used"):
        Kube.connect(broken, namespace="x")
    with pytest.raises(ConfigError, match="no kubeconfig is named"):
        Kube.connect(None, namespace="x")
    stranger = cluster.kubeconfig("stranger", token="a.b.c")
    with pytest.raises(Forbidden, match="does not accept this account"):
        Kube.connect(stranger, namespace=cluster_site.namespace).objects(JOBS)
    admin = Kube.connect(cluster.admin, namespace="default")
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    with pytest.raises(Exists):
        admin.create(Resource(plural="namespaces", namespaced=False), body)


def test_the_survey_sees_tees_devices_and_runtime_classes(
    cluster_site: ClusterSite, kata: str
) -> None:
    label = NFD_LABELS["tdx"]
    cluster_site.node("n", WAIT, labels={label: "true"}, extended={TDX: 2, "nvidia.com/gpu": 4})
    settings = cluster_site.settings(
        workload="confidential-containers", runtime_class=kata, devices=Devices(tee=TDX)
    )
    found = survey(cluster_site.kube(), settings)
    report = found.to_json()
    assert report["launcher"] == "kubernetes"
    assert kata in report["runtime_classes"]
    assert report["tees"] == ["tdx"]
    assert report["devices"][TDX] >= 2
    assert report["gpu"] == 4
    # After the overhead of the RuntimeClass.
    assert report["cpu"] == 31.75
    assert report["memory_mib"] == 128 * 1024 - 160
    assert report["total_gpu"] == 4
    checks = list(cluster_checks(cluster_site.kube(), settings))
    assert not [check for check in checks if check.level is Level.FAIL]
    assert any(check.name == "runtime class" and "160Mi" in check.found for check in checks)


def test_the_doctor_states_what_is_missing_and_how_to_mend_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    site = ClusterSite(cluster, tmp_path, rights=(*REQUIRED[1:], *OPTIONAL))
    try:
        site.node("n", WAIT)
        settings = site.settings(
            workload="confidential-containers",
            runtime_class="kata-qemu-snp",
            devices=Devices(tee="amd.example/snp"),
            placement=Placement(),
        )
        failed = {
            check.found: check.mend
            for check in cluster_checks(site.kube(), settings)
            if check.level is Level.FAIL
        }
        text = "\n".join(failed)
        assert "may not create, get, list, watch, delete jobs.batch" in text
        assert "kata-qemu-snp does not exist" in text
        assert "no node has the label feature.node.kubernetes.io/cpu-security.sev.snp" in text
        assert "no node has amd.example/snp" in text
        assert all(failed.values())
    finally:
        site.close()


def test_the_doctor_command_looks_at_the_cluster(cluster_site: ClusterSite, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fedlearn.cli.doctor import command

    config = tmp_path / "site.toml"
    config.write_text(
        f"""\
state = "state"

[launcher]
kind = "kubernetes"

[kubernetes]
kubeconfig = "{cluster_site.kubeconfig}"
namespace = "{cluster_site.namespace}"
workload = "insecure-pods"
image = "{IMAGE}"
"""
    )
    cluster_site.node("n", WAIT)
    reported = CliRunner().invoke(command, ["--edge", str(config), "--cluster"]).output
    assert "jobs.batch: create, get, list, watch, delete" in reported
    assert "clients run outside of any TEE" in reported
    assert "v1.20.2: it retries clients that were refused" in reported
    without = config.read_text().partition("[launcher]")[0]
    config.write_text(without)
    reported = CliRunner().invoke(command, ["--edge", str(config), "--cluster"]).output
    assert "has no table [kubernetes]" in reported
