"""Clients in a real control plane: started, adopted, stopped and reported."""

from __future__ import annotations

import pytest

from edge.config.kubernetes import NFD_LABELS, Devices
from edge.kube.api import (
    JOBS,
)
from fedlearn.errors import LaunchError
from fedlearn.job.phase import Phase
from tests.harness.cluster_site import ClusterSite, workload
from tests.harness.kube_clients import TDX, WAIT, until

pytestmark = pytest.mark.e2e

WORK = ["/bin/sh", "-c", 'echo "three rounds" > $FEDLEARN_LAST_WORDS']


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
    until(lambda: "up" in node.output(pod), "the process to be up")
    launcher.stop("a", "the operator cancelled the job")
    words = cluster_site.reports.wait("a", Phase.STOPPED)
    assert words == "the operator cancelled the job"
    until(lambda: not cluster_site.jobs() and not cluster_site.pods(), "nothing to be left")
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
    until(lambda: not cluster_site.jobs(), "its Job to be removed")
    # Before 1.31 the Job's failure policy is not there, and a second pod may be quicker.
    assert len(node.started()) <= 2


def test_a_client_that_crashes_has_failed(cluster_site: ClusterSite) -> None:
    node = cluster_site.node("n", ["/bin/sh", "-c", "exit 7"])
    launcher = cluster_site.launcher(retries=0)
    launcher.launch(workload("a"))
    words = cluster_site.reports.wait("a", Phase.FAILED)
    assert words == "it ended with status 7 and without a termination message"
    assert len(node.started()) == 1


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
    until(lambda: cluster_site.jobs()["a"].get("status", {}).get("succeeded"), "the client to end")
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
    until(lambda: not cluster_site.jobs(), "the Job to be gone")
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
