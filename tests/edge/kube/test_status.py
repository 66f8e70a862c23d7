"""The status of a cluster, in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.kube.status import of_job, of_machine, scheduling, warning
from edge.protocol.workload import REFUSED_EXIT
from fedlearn.job.phase import Phase


def pod(phase: str = "Pending", **details: object) -> dict[str, Any]:
    deleted = details.pop("deleted", None)
    return {
        "metadata": {
            "uid": details.pop("uid", "p"),
            "creationTimestamp": details.pop("at", "2026-01-01T00:00:00Z"),
            **({"deletionTimestamp": deleted} if deleted else {}),
        },
        "spec": {"nodeName": details.pop("node", "")},
        "status": {"phase": phase, **details},
    }


def ended(code: int, **details: object) -> list[dict[str, Any]]:
    return [{"state": {"terminated": {"exitCode": code, **details}}}]


def job(*conditions: tuple[str, str], **spec: object) -> dict[str, Any]:
    return {
        "metadata": {"uid": "j"},
        "spec": spec,
        "status": {
            "conditions": [
                {"type": kind, "status": "True", "message": message} for kind, message in conditions
            ]
        },
    }


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            "no node has a free `nvidia.com/gpu`",
        ),
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient memory. preemption: "
            "0/3 nodes are available: 3 No preemption victims found for incoming pod.",
            "no node has enough free CPU and enough free memory",
        ),
        (
            "0/3 nodes are available: 1 Insufficient tdx.intel.com/tdx-guest, "
            "2 node(s) didn't match Pod's node affinity/selector.",
            "no node has a free `tdx.intel.com/tdx-guest`; "
            "no other node has the labels that it needs",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {team: ml}.",
            "nodes are kept for others by the taint `team`",
        ),
        (
            "0/1 nodes are available: 1 node(s) had taint {node.example/x: }, that the pod "
            "didn't tolerate.",
            "nodes are kept for others by the taint `node.example/x`",
        ),
        (
            'persistentvolumeclaim "medpar" not found',
            "the data's claim `medpar` does not exist",
        ),
        ("no nodes available to schedule pods", "no nodes available to schedule pods"),
        ("0/0 nodes are available: .", "the cluster has no node"),
    ],
)
def test_the_scheduler(message: str, words: str) -> None:
    assert scheduling(message) == words


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        (
            "FailedCreate",
            'Error creating: pods "a-" is forbidden: pod rejected: RuntimeClass "kata" not found',
            "the cluster has no RuntimeClass `kata`",
        ),
        (
            "FailedCreatePodSandBox",
            'Failed to create pod sandbox: rpc error: no runtime for "kata-qemu-tdx" is configured',
            "the node has no runtime `kata-qemu-tdx`",
        ),
        (
            "FailedCreate",
            'Error creating: pods "a-x" is forbidden: exceeded quota: clients, requested: cpu=2',
            "the namespace's quota is used up: clients, requested: cpu=2",
        ),
        (
            "FailedCreate",
            'Error creating: pods "a" is forbidden: violates PodSecurity "restricted:latest": x',
            'the namespace\'s pod security forbids it: "restricted:latest": x',
        ),
        (
            "FailedCreate",
            'pods "a" is forbidden: no PriorityClass with name training was found',
            "the cluster has no PriorityClass `training`",
        ),
        (
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: rpc error: code = Unknown desc = "
            "failed to setup network",
            "the node cannot make the pod's sandbox: failed to setup network",
        ),
        ("Failed", "Error: ErrImagePull", "the image cannot be pulled"),
        (
            "Failed",
            "Error: ErrImageNeverPull",
            "the image is not on the node, and its pull policy forbids to pull it",
        ),
        (
            "Failed",
            "Error: failed to create containerd container: no such snapshot",
            "the container cannot be started: failed to create containerd container: "
            "no such snapshot",
        ),
        ("FailedMount", "timed out", "a volume cannot be mounted: timed out"),
        ("Unheard", "of\x1b[31m", "Unheard: of [31m"),
    ],
)
def test_warnings(reason: str, message: str, words: str) -> None:
    assert warning({"reason": reason, "message": message}) == words


def test_the_phases_of_a_job() -> None:
    assert of_job(job(), []).phase is Phase.STARTING
    assert of_job(job(), [pod("Running", node="n")]).reason == "runs on node n"
    assert of_job(job(), [pod("Running", node="n")], reported="admitted").reason == "admitted"
    done = of_job(job(("Complete", "")), [pod("Succeeded", containerStatuses=ended(0))])
    assert done.phase is Phase.SUCCEEDED
    refused = of_job(
        job(), [pod("Failed", containerStatuses=ended(REFUSED_EXIT, message="not measured"))]
    )
    assert (refused.phase, refused.reason) == (Phase.REFUSED, "not measured")
    failed = of_job(
        job(("Failed", "Job has reached the specified backoff limit")),
        [pod("Failed", containerStatuses=ended(137, reason="OOMKilled"))],
    )
    assert failed.phase is Phase.FAILED
    assert "more memory than the job asked for" in failed.reason


def test_who_waits_for_quota_has_no_deadline() -> None:
    assert of_job(job(suspend=True), []).waits
    gated = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]
    assert of_job(job(), [pod(conditions=gated)]).waits
    assert not of_job(job(), [pod()]).waits


def test_the_newest_pod_that_stays_counts() -> None:
    pods = [
        pod(
            "Running",
            uid="1",
            at="2026-01-01T00:00:00Z",
            node="old",
            deleted="2026-01-01T00:01:00Z",
        ),
        pod("Running", uid="2", at="2026-01-01T00:00:30Z", node="new"),
    ]
    assert of_job(job(), pods).reason == "runs on node new"
    moved = of_job(job(), pods[:1])
    assert (moved.phase, "its node was lost" in moved.reason) == (Phase.STARTING, True)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("PreemptionByScheduler", "higher priority"),
        ("EvictionByEvictionAPI", "was evicted"),
        ("DeletionByTaintManager", "its node was lost or drained"),
        ("DeletionByPodGC", "its node is gone"),
    ],
)
def test_disruptions(reason: str, words: str) -> None:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": reason}]
    assert words in of_job(job(), [pod("Failed", conditions=conditions)]).reason


def test_images_that_cannot_be_pulled() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "denied"}
    found = of_job(job(), [pod(containerStatuses=[{"state": {"waiting": waiting}}], node="n")])
    assert found.reason == "the image cannot be pulled: denied"


# The events of a real kubelet (1.20) with a real containerd (1.6), in this order.
_IMAGE = f'"registry.example/fedlearn/client@sha256:{"ab" * 32}"'
_UNKNOWN = "dial tcp: lookup registry.example on 10.96.0.10:53: no such host"
_PULL_EVENTS = (
    ("12:00:01", f"Failed to pull image {_IMAGE}: rpc error: code = Unknown desc = {_UNKNOWN}"),
    ("12:00:01", "Error: ErrImagePull"),
    ("12:00:02", "Error: ImagePullBackOff"),
)


@pytest.mark.parametrize("seen", [1, 2, 3])
@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
def test_why_an_image_cannot_be_pulled_is_reported_once_and_stays(seen: int, reason: str) -> None:
    waiting = {"reason": reason, "message": f"Back-off pulling image {_IMAGE}"}
    waits = pod(containerStatuses=[{"state": {"waiting": waiting}}], node="n")
    events = [
        {
            "reason": "Failed",
            "message": message,
            "lastTimestamp": f"2026-01-01T{at}Z",
            "involvedObject": {"uid": "p"},
        }
        for at, message in _PULL_EVENTS[:seen]
    ]
    assert of_job(job(), [waits], events).reason == f"the image cannot be pulled: {_UNKNOWN}"


def test_a_container_that_waits_for_nothing_special_leaves_the_word_to_warnings() -> None:
    waiting = [{"state": {"waiting": {"reason": "ContainerCreating"}}}]
    about = {"reason": "FailedMount", "message": "m", "involvedObject": {"uid": "p"}}
    found = of_job(job(), [pod(containerStatuses=waiting, node="n")], [about])
    assert found.reason == "a volume cannot be mounted: m"


def test_warnings_about_something_else_do_not_count() -> None:
    about = {"reason": "FailedMount", "message": "m", "involvedObject": {"uid": "p"}}
    assert "cannot be mounted" in of_job(job(), [pod(node="n")], [about]).reason
    other = {**about, "involvedObject": {"uid": "before"}}
    assert of_job(job(), [pod(node="n")], [other]).reason == "its pod is being started on node n"


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("Running", Phase.RUNNING),
        ("Succeeded", Phase.SUCCEEDED),
        ("Failed", Phase.FAILED),
        ("Scheduling", Phase.STARTING),
        ("", Phase.STARTING),
    ],
)
def test_the_phases_of_a_machine(phase: str, expected: Phase) -> None:
    assert of_machine({"metadata": {}, "status": {"phase": phase}}).phase is expected


@given(st.text(max_size=3000))
def test_words_are_short_and_printable(message: str) -> None:
    for words in (scheduling(message), warning({"reason": "x", "message": message})):
        assert len(words) < 1000
        assert words.isprintable()
