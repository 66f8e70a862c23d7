"""Clients in a real cluster: the API server, scheduler and controllers are Kubernetes' own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.config.kubernetes import NFD_LABELS, Devices, Placement
from edge.kube.api import (
    JOBS,
    PODS,
    Exists,
    Follower,
    Forbidden,
    Kube,
    Missing,
    Resource,
    Unavailable,
)
from edge.kube.capabilities import cluster_checks, survey
from edge.kube.permissions import MACHINES_REQUIRED, NEVER, OPTIONAL, REQUIRED
from fedlearn.checks import Level
from fedlearn.errors import ConfigError, LaunchError
from fedlearn.job.phase import Phase
from tests.harness.cluster import Cluster
from tests.harness.cluster_site import IMAGE, ClusterSite, workload

pytestmark = pytest.mark.e2e

TDX = "tdx.intel.com/tdx-guest"
WORK = ["/bin/sh", "-c", 'echo "three rounds" > $FEDLEARN_LAST_WORDS']
WAIT = ["/bin/sleep", "60"]


@pytest.fixture(scope="session")
def kata(cluster: Cluster) -> str:
    """A RuntimeClass as Confidential Containers has it."""
    cluster.request(
        "/apis/node.k8s.io/v1/runtimeclasses",
        "POST",
        {
            "metadata": {"name": "kata-qemu-tdx"},
            "handler": "kata-qemu-tdx",
            "overhead": {"podFixed": {"cpu": "250m", "memory": "160Mi"}},
        },
    )
    return "kata-qemu-tdx"


def _until(reached: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


# --- a client's life ----------------------------------------------------------------------


def test_a_client_runs_once_and_reports_its_end(
    cluster_site: ClusterSite,
) -> None:
    node = cluster_site.node("n", WORK)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    assert cluster_site.reports.wait("a", Phase.SUCCEEDED) == "three rounds"
    launcher.launch(workload("a"))
    assert len(node.started()) == 1
    assert launcher.running() == ()
    phases = [phase for phase, _ in cluster_site.reports.of("a")]
    assert phases[0] is Phase.STARTING
    assert Phase.FAILED not in phases


def test_the_pod_is_guaranteed_and_counts_the_overhead_of_kata(
    cluster_site: ClusterSite, kata: str
) -> None:
    label = {NFD_LABELS["tdx"]: "true"}
    cluster_site.node("plain", WAIT)
    tee = cluster_site.node("tee", WAIT, handlers=[kata], labels=label, extended={TDX: 1})
    launcher = cluster_site.launcher(
        workload="confidential-containers", runtime_class=kata, devices=Devices(tee=TDX)
    )
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING, tee.name)
    (pod,) = cluster_site.pods()
    assert pod["status"]["qosClass"] == "Guaranteed"
    assert pod["spec"]["overhead"] == {"cpu": "250m", "memory": "160Mi"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not any("secret" in volume or "projected" in volume for volume in pod["spec"]["volumes"])


def test_a_stopped_client_is_informed_and_nothing_of_it_stays(cluster_site: ClusterSite) -> None:
    node = cluster_site.node(
        "n", ["/bin/sh", "-c", "trap 'echo reported; exit 0' TERM; echo up; sleep 60 & wait"]
    )
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    (pod,) = node.pods()
    _until(lambda: "up" in node.output(pod), "the process to be up")
    launcher.stop("a", "the operator cancelled the job")
    words = cluster_site.reports.wait("a", Phase.STOPPED)
    assert words == "the operator cancelled the job"
    _until(lambda: not cluster_site.jobs() and not cluster_site.pods(), "nothing to be left")
    assert "reported" in node.output(pod)
    launcher.stop("a", "again")
    launcher.stop("never-started", "at all")


def test_a_refused_client_is_not_started_again(cluster_site: ClusterSite) -> None:
    node = cluster_site.node(
        "n", ["/bin/sh", "-c", 'echo "job is not measured" > $FEDLEARN_LAST_WORDS; exit 3']
    )
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    assert cluster_site.reports.wait("a", Phase.REFUSED) == "job is not measured"
    _until(lambda: not cluster_site.jobs(), "its Job to be removed")
    # Before 1.31 the Job's failure policy is not there, and a second pod may be quicker.
    assert len(node.started()) <= 2


def test_a_client_that_crashes_has_failed(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", ["/bin/sh", "-c", "exit 7"])
    launcher = cluster_site.launcher(retries=0)
    launcher.launch(workload("a"))
    words = cluster_site.reports.wait("a", Phase.FAILED)
    assert words == "it ended with status 7 and without a termination message"
    assert len(node.started()) == 1


# --- agents come and go -------------------------------------------------------------------


def test_a_restarted_agent_adopts_what_it_left(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WAIT)
    first = cluster_site.launcher()
    first.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    first.close()
    cluster_site.reports.reported.clear()
    second = cluster_site.launcher()
    assert second.running() == ("a",)
    second.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    assert len(node.started()) == 1
    second.stop("a", "enough")
    cluster_site.reports.wait("a", Phase.STOPPED)


def test_what_ended_while_the_agent_was_away_is_reported(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WORK)
    first = cluster_site.launcher()
    first.launch(workload("a"))
    first.close()
    _until(lambda: cluster_site.jobs()["a"].get("status", {}).get("succeeded"), "the client to end")
    cluster_site.reports.reported.clear()
    second = cluster_site.launcher()
    assert second.running() == ()
    second.launch(workload("a"))
    assert cluster_site.reports.wait("a", Phase.SUCCEEDED) == "three rounds"
    assert len(node.started()) == 1


def test_an_assignment_whose_job_is_gone_is_not_run_again(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WORK)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.SUCCEEDED)
    launcher.stop("a", "cleaning up")
    cluster_site.kube().delete(JOBS, "a")
    _until(lambda: not cluster_site.jobs(), "the Job to be gone")
    launcher.close()
    again = cluster_site.launcher()
    with pytest.raises(LaunchError, match="was started before, and its client was removed"):
        again.launch(workload("a"))
    assert len(node.started()) == 1
    assert cluster_site.jobs() == {}


def test_a_job_that_somebody_removes_is_a_failure(cluster_site: ClusterSite) -> None:
    cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    cluster_site.kube().delete(JOBS, "a")
    assert "by somebody else" in cluster_site.reports.wait("a", Phase.FAILED)


def test_something_else_of_that_name_is_not_adopted(cluster_site: ClusterSite) -> None:
    kube = cluster_site.kube()
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}
    kube.create(
        JOBS,
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "a"},
            "spec": {"parallelism": 0, "template": {"spec": pod}},
        },
    )
    with pytest.raises(LaunchError, match="another workload under the name a"):
        cluster_site.launcher().launch(workload("a"))
    assert list(cluster_site.jobs()) == ["a"]


# --- what a cluster lacks -----------------------------------------------------------------


def test_a_missing_runtime_class_is_named_and_nothing_is_created(cluster_site: ClusterSite) -> None:
    launcher = cluster_site.launcher(
        workload="confidential-containers", runtime_class="kata-qemu-snp"
    )
    with pytest.raises(LaunchError, match="no RuntimeClass `kata-qemu-snp`") as caught:
        launcher.launch(workload("a"))
    assert "Confidential Containers" in caught.value.hint
    assert cluster_site.jobs() == {}
    assert launcher.running() == ()


def test_without_the_right_to_look_an_event_names_the_missing_runtime_class(
    cluster: Cluster, tmp_path: Path
) -> None:
    site = ClusterSite(cluster, tmp_path, rights=(*REQUIRED, OPTIONAL[0]))
    try:
        launcher = site.launcher(
            start_s=3.0, workload="confidential-containers", runtime_class="kata-qemu-snp"
        )
        launcher.launch(workload("a"))
        site.reports.wait("a", Phase.STARTING, "no RuntimeClass `kata-qemu-snp`")
        assert "did not start in 3 s" in site.reports.wait("a", Phase.FAILED)
        _until(lambda: not site.jobs(), "the Job to be removed")
        assert launcher.capabilities()["unseen"] == ["runtimeclasses", "nodes"]
    finally:
        site.close()


def test_a_node_without_the_runtime_is_named(cluster_site: ClusterSite, kata: str) -> None:
    cluster_site.node("n", WAIT, labels={NFD_LABELS["tdx"]: "true"})
    launcher = cluster_site.launcher(workload="confidential-containers", runtime_class=kata)
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.STARTING, "the node has no runtime `kata-qemu-tdx`")


def test_a_client_waits_for_a_tee_device_and_gets_it(cluster_site: ClusterSite) -> None:
    cluster_site.node("n", WAIT, extended={TDX: 1})
    launcher = cluster_site.launcher(devices=Devices(tee=TDX))
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    launcher.launch(workload("b"))
    cluster_site.reports.wait("b", Phase.STARTING, f"no node has a free `{TDX}`")
    launcher.stop("a", "enough")
    cluster_site.reports.wait("b", Phase.RUNNING)


def test_a_client_that_never_fits_is_given_up(cluster_site: ClusterSite) -> None:
    cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher(start_s=2.0)
    launcher.launch(workload("a", gpu=2))
    words = cluster_site.reports.wait("a", Phase.FAILED)
    assert words.startswith("did not start in 2 s: no node has a free `nvidia.com/gpu`")
    _until(lambda: not cluster_site.jobs() and not cluster_site.pods(), "nothing to be left")


def test_data_that_does_not_exist_is_named(cluster_site: ClusterSite) -> None:
    cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a", data="medpar"))
    cluster_site.reports.wait("a", Phase.STARTING, "the data's claim `medpar` does not exist")


def test_a_cordoned_tee_node_is_named(cluster_site: ClusterSite) -> None:
    cluster_site.node(
        "n", WAIT, taints=[{"key": "fedlearn.io/tee", "value": "yes", "effect": "NoSchedule"}]
    )
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.STARTING, "by the taint `fedlearn.io/tee`")


# --- disruptions --------------------------------------------------------------------------


def test_an_evicted_client_starts_again(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    (first,) = node.pods()
    cluster_site.evict(first)
    cluster_site.reports.wait("a", Phase.STARTING, "it starts again")
    _until(lambda: [pod for pod in node.pods() if pod != first], "another pod")
    cluster_site.reports.wait("a", Phase.RUNNING)
    assert len(node.started()) == 2


def test_a_node_under_pressure_is_named(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher(retries=0)
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    node.evict(node.pods()[0])
    words = cluster_site.reports.wait("a", Phase.FAILED)
    assert words == "the node evicted it: The node was low on resource: memory."


def test_a_killed_client_is_named(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher(retries=0)
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    node.kill(node.pods()[0])
    assert cluster_site.reports.wait("a", Phase.FAILED) == "it was killed"


def test_a_client_moves_when_its_node_is_lost(cluster_site: ClusterSite) -> None:
    nodes = [cluster_site.node(name, WAIT) for name in ("one", "two")]
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    _until(lambda: any(node.pods() for node in nodes), "the client to run")
    lost = next(node for node in nodes if node.pods())
    other = next(node for node in nodes if node is not lost)
    cluster_site.reports.wait("a", Phase.RUNNING, lost.name)
    lost.lose()
    cluster_site.reports.wait("a", Phase.RUNNING, other.name, seconds=60)
    words = [reason for phase, reason in cluster_site.reports.of("a") if phase is Phase.STARTING]
    assert any("its node was lost; it starts again" in reason for reason in words)


# --- the API server -----------------------------------------------------------------------


def test_nothing_is_asked_while_nothing_happens(
    cluster_site: ClusterSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    asked: list[str] = []
    send = Kube._send

    def counted(self: Kube, method: str, path: str, *rest: Any, **more: Any) -> Any:
        asked.append(path)
        return send(self, method, path, *rest, **more)

    monkeypatch.setattr(Kube, "_send", counted)
    time.sleep(2.0)
    assert asked == []


def test_the_api_server_may_restart(cluster_site: ClusterSite, cluster: Cluster) -> None:
    node = cluster_site.node("n", ["/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.1; done"])
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    cluster.kill_api_server()
    failure: list[BaseException] = []

    def launch() -> None:
        try:
            launcher.launch(workload("b"))
        except LaunchError as error:
            failure.append(error)

    meanwhile = threading.Thread(target=launch)
    meanwhile.start()
    with pytest.raises(Unavailable, match="cannot be reached"):
        cluster_site.kube().objects(JOBS)
    cluster.restart_api_server()
    meanwhile.join(60)
    assert not failure
    (pod,) = [name for name in node.started() if name.startswith("a-")]
    (node.folder / pod / "go").touch()
    cluster_site.reports.wait("a", Phase.SUCCEEDED, seconds=60)
    cluster_site.reports.wait("b", Phase.RUNNING, seconds=60)

    # A server that was restarted remembers no versions of before.
    kube = cluster_site.kube()
    versions = ["1"]
    snapshot = kube.snapshot
    lists: list[list[Any]] = []

    def stale(resource: Resource, selector: Mapping[str, str]) -> Any:
        return ([], versions.pop()) if versions else snapshot(resource, selector)

    kube.snapshot = stale  # type: ignore[method-assign]
    follower = Follower(kube, JOBS, listed=lists.append, changed=lambda found, gone: None)
    try:
        _until(lambda: len(lists) == 2, "the watch to list again")
        assert {found["metadata"]["name"] for found in lists[1]} == {"a", "b"}
    finally:
        follower.stop()


# --- rights -------------------------------------------------------------------------------


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
    _until(lambda: not cluster_site.jobs(), "the client to go with its agent", 30)


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


# --- what is reported ---------------------------------------------------------------------


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


# --- virtual machines ---------------------------------------------------------------------


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


# --- in a cluster -------------------------------------------------------------------------

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
