"""What a cluster lacks or loses is named, and clients start again where they can."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.config.kubernetes import NFD_LABELS, Devices
from edge.kube.api import (
    JOBS,
    Follower,
    Kube,
    Resource,
    Unavailable,
)
from edge.kube.permissions import OPTIONAL, REQUIRED
from fedlearn.errors import LaunchError
from fedlearn.job.phase import Phase
from tests.harness.cluster import Cluster
from tests.harness.cluster_site import ClusterSite, workload
from tests.harness.kube_clients import TDX, WAIT, until

pytestmark = pytest.mark.e2e


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
        until(lambda: not site.jobs(), "the Job to be removed")
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
    until(lambda: not cluster_site.jobs() and not cluster_site.pods(), "nothing to be left")


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


def test_an_evicted_client_starts_again(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", WAIT)
    launcher = cluster_site.launcher()
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    (first,) = node.pods()
    cluster_site.evict(first)
    cluster_site.reports.wait("a", Phase.STARTING, "it starts again")
    until(lambda: [pod for pod in node.pods() if pod != first], "another pod")
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
    until(lambda: any(node.pods() for node in nodes), "the client to run")
    lost = next(node for node in nodes if node.pods())
    other = next(node for node in nodes if node is not lost)
    cluster_site.reports.wait("a", Phase.RUNNING, lost.name)
    lost.lose()
    cluster_site.reports.wait("a", Phase.RUNNING, other.name, seconds=60)
    words = [reason for phase, reason in cluster_site.reports.of("a") if phase is Phase.STARTING]
    assert any("its node was lost; it starts again" in reason for reason in words)


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
        until(lambda: len(lists) == 2, "the watch to list again")
        assert {found["metadata"]["name"] for found in lists[1]} == {"a", "b"}
    finally:
        follower.stop()
