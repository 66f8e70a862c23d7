"""The status of a client in a cluster, with a reason for people. Pure.

The functions take a Job or a VirtualMachineInstance, its pods and the warnings about them, as the
API server sends them, and return a phase and a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge.protocol.workload import REFUSED_EXIT
from fedlearn.job.phase import Phase

__all__ = ["ClientStatus", "of_job", "of_machine", "scheduling", "warning"]

Object = Mapping[str, Any]

_KILLED: Final = 137
_TERMINATED: Final = 143
_MOST: Final = 500

_INSUFFICIENT: Final = re.compile(r"Insufficient ([A-Za-z0-9./_-]*[A-Za-z0-9])")
_NODES: Final = re.compile(r"^(\d+)/(\d+) nodes are available")
_TAINT: Final = re.compile(r"taints? \{([^}]*?)(?:: ?[^}]*)?\}")
_CLAIM: Final = re.compile(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted)')
_CLASS: Final = re.compile(
    r'[Rr]untime[Cc]lass(?:es)?(?:\.node\.k8s\.io)? "?([a-z0-9.-]+)"? not found'
)
_HANDLER: Final = re.compile(r'no runtime for "?\'?([A-Za-z0-9._-]+)"?\'? is configured')
_PRIORITY: Final = re.compile(r"no PriorityClass with name ([a-z0-9.-]+)")
_PULL: Final = re.compile(r'Failed to pull image "[^"]*": ')
_RPC: Final = re.compile(r"rpc error: code = [A-Za-z]+ desc = ")
"""The prefix of an error that a kubelet passes on from its container runtime."""

_WAITING: Final = {
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "the image's name is malformed",
    "ErrImageNeverPull": "the image is not on the node, and its pull policy forbids to pull it",
    "CreateContainerConfigError": "the container cannot be created",
    "CreateContainerError": "the container cannot be created",
    "RunContainerError": "the container cannot be started",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatus:
    """A phase and its reason. ``waits``: it waits for a decision, without a deadline."""

    phase: Phase
    reason: str
    waits: bool = False


def of_job(
    job: Object, pods: Sequence[Object], warnings: Iterable[Object] = (), *, reported: str = ""
) -> ClientStatus:
    """Return the status of the client of a Job.

    ``reported`` is the reason that the client itself reported last; only the text depends on it.
    """
    status = job.get("status") or {}
    newest = _newest(pods)
    for condition in status.get("conditions") or ():
        if condition.get("status") != "True":
            continue
        if condition.get("type") == "Complete":
            return ClientStatus(
                phase=Phase.SUCCEEDED, reason=_ending(newest) or reported or "it succeeded"
            )
        if condition.get("type") == "Failed":
            return _failed(condition, newest, reported)
    if job.get("metadata", {}).get("deletionTimestamp"):
        return ClientStatus(phase=Phase.STOPPED, reason="its Job is being removed from the cluster")
    if (job.get("spec") or {}).get("suspend"):
        return ClientStatus(phase=Phase.STARTING, reason="waits in its queue for quota", waits=True)
    about = (newest or job).get("metadata", {}).get("uid")
    warnings = [item for item in warnings if (item.get("involvedObject") or {}).get("uid") == about]
    if newest is None:
        words = _latest(warnings)
        return ClientStatus(phase=Phase.STARTING, reason=words or "its pod is being created")
    if _exit(newest) == REFUSED_EXIT:
        reason = _ending(newest) or reported or "the coordinator did not admit it"
        return ClientStatus(phase=Phase.REFUSED, reason=reason)
    return _of_pod(newest, warnings, reported)


def of_machine(
    machine: Object, warnings: Iterable[Object] = (), *, reported: str = ""
) -> ClientStatus:
    """Return the status of the client in a KubeVirt virtual machine."""
    if machine.get("metadata", {}).get("deletionTimestamp"):
        return ClientStatus(phase=Phase.STOPPED, reason="its machine is being removed")
    status = machine.get("status") or {}
    match status.get("phase"):
        case "Running":
            return ClientStatus(phase=Phase.RUNNING, reason=reported or "its machine runs")
        case "Succeeded":
            return ClientStatus(
                phase=Phase.SUCCEEDED, reason=reported or "its machine was shut down"
            )
        case "Failed":
            return ClientStatus(
                phase=Phase.FAILED, reason=reported or "its machine ended with a failure"
            )
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("message"):
            return ClientStatus(phase=Phase.STARTING, reason=scheduling(condition["message"]))
    return ClientStatus(
        phase=Phase.STARTING, reason=_latest(warnings) or "its machine is being started"
    )


def scheduling(message: str) -> str:
    """Turn the scheduler's message into a sentence.

    ``0/2 nodes are available: 2 Insufficient nvidia.com/gpu.`` becomes
    ``no node has a free `nvidia.com/gpu```.
    """
    if found := _CLAIM.search(message):
        what = "does not exist" if found[2] == "not found" else found[2]
        return f"the data's claim `{found[1]}` {what}"
    lacking = sorted(set(_INSUFFICIENT.findall(message)))
    reasons = []
    if lacking:
        names = " and ".join(_resource(item) for item in lacking)
        reasons.append(f"no node has {names}")
    if "affinity" in message or "node selector" in message or "node(s) didn't match" in message:
        reasons.append(
            "no other node has the labels that it needs" if lacking else _labels(message)
        )
    if found := _TAINT.search(message):
        reasons.append(f"nodes are kept for others by the taint `{found[1].strip()}`")
    elif "untolerated taint" in message:
        reasons.append("nodes are kept for others by a taint")
    if "unbound immediate PersistentVolumeClaims" in message:
        reasons.append("the data's claim is not bound to a volume")
    if "volume node affinity conflict" in message:
        reasons.append("the data's volume is on another node")
    if "were unschedulable" in message:
        reasons.append("nodes are cordoned")
    if (found := _NODES.match(message)) and found[2] == "0":
        reasons.append("the cluster has no node")
    return "; ".join(reasons) or _plain(message)


def warning(event: Object) -> str:
    """Turn a warning (an Event) into a sentence."""
    message, reason = str(event.get("message") or ""), str(event.get("reason") or "")
    if reason == "FailedScheduling":
        return scheduling(message)
    if found := _CLASS.search(message):
        return f"the cluster has no RuntimeClass `{found[1]}`"
    if found := _HANDLER.search(message):
        return f"the node has no runtime `{found[1]}`"
    if found := _PRIORITY.search(message):
        return f"the cluster has no PriorityClass `{found[1]}`"
    if found := _CLAIM.search(message):
        return scheduling(message)
    if "exceeded quota" in message:
        return f"the namespace's quota is used up: {_after(message, 'exceeded quota: ')}"
    if "violates PodSecurity" in message:
        return (
            f"the namespace's pod security forbids it: {_after(message, 'violates PodSecurity ')}"
        )
    match reason:
        case "Failed":
            return _failing(message)
        case "FailedMount" | "FailedAttachVolume":
            return f"a volume cannot be mounted: {_plain(message)}"
        case "FailedCreatePodSandBox":
            why = _after(message, "Failed to create pod sandbox: ")
            return f"the node cannot make the pod's sandbox: {why}"
        case "Preempting" | "Preempted":
            return "it was displaced by a pod of higher priority"
    return f"{reason}: {_plain(message)}" if reason else _plain(message)


# --- pods ---------------------------------------------------------------------------------


def _of_pod(pod: Object, warnings: Iterable[Object], reported: str) -> ClientStatus:
    status = pod.get("status") or {}
    node = (pod.get("spec") or {}).get("nodeName", "")
    if pod.get("metadata", {}).get("deletionTimestamp"):
        why = _disruption(status) or "it was evicted, or its node was lost"
        return ClientStatus(phase=Phase.STARTING, reason=f"{why}; it starts again")
    match status.get("phase"):
        case "Running":
            return ClientStatus(phase=Phase.RUNNING, reason=reported or f"runs on node {node}")
        case "Succeeded":
            return ClientStatus(phase=Phase.RUNNING, reason=reported or "has succeeded")
        case "Failed":
            why = _ending(pod) or reported or "it failed"
            return ClientStatus(phase=Phase.STARTING, reason=f"{why}; it starts again")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            if condition.get("reason") == "SchedulingGated":
                return ClientStatus(
                    phase=Phase.STARTING, reason="waits in its queue for quota", waits=True
                )
            return ClientStatus(
                phase=Phase.STARTING, reason=scheduling(condition.get("message") or "")
            )
    placed = [item for item in warnings if item.get("reason") != "FailedScheduling"]
    if words := _waiting(status, placed) or _latest(placed):
        return ClientStatus(phase=Phase.STARTING, reason=words)
    where = f" on node {node}" if node else ""
    return ClientStatus(phase=Phase.STARTING, reason=f"its pod is being started{where}")


def _waiting(status: Object, warnings: Sequence[Object]) -> str:
    """Return what keeps a container from starting; empty when its status does not state it.

    While a kubelet waits before it pulls an image again, the container's status states only
    that; a warning states why the last attempt failed.
    """
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        problem = _WAITING.get(waiting.get("reason", ""))
        if not problem:
            continue
        if waiting["reason"] in ("ErrImagePull", "ImagePullBackOff"):
            pulls = (item for item in warnings if _PULL.search(str(item.get("message") or "")))
            if words := _latest(pulls):
                return words
        details = _plain(waiting.get("message") or "")
        return f"{problem}: {details}" if details else problem
    return ""


def _failing(message: str) -> str:
    """Turn a warning that a container has ``Failed`` into a sentence."""
    if found := _PULL.search(message):
        return f"{_WAITING['ErrImagePull']}: {_plain(message[found.end() :])}"
    what = message.removeprefix("Error: ")
    return _WAITING.get(what) or f"the container cannot be started: {_plain(what)}"


def _failed(condition: Object, newest: Object | None, reported: str) -> ClientStatus:
    if newest is not None and _exit(newest) == REFUSED_EXIT:
        reason = _ending(newest) or reported or "the coordinator did not admit it"
        return ClientStatus(phase=Phase.REFUSED, reason=reason)
    why = (_ending(newest) if newest is not None else "") or reported
    if not why:
        why = _plain(condition.get("message") or condition.get("reason") or "its Job failed")
    return ClientStatus(phase=Phase.FAILED, reason=why)


def _ending(pod: Object | None) -> str:
    """Return how a pod ended; empty when it did not."""
    if pod is None:
        return ""
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted":
        return (
            f"the node evicted it: {_plain(status.get('message') or 'it was short of something')}"
        )
    if why := _disruption(status):
        return why
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if not ended:
            continue
        if ended.get("message"):
            return _plain(ended["message"])
        if ended.get("reason") == "OOMKilled":
            return "it used more memory than the job asked for, and was killed"
        code = ended.get("exitCode", 0)
        if code == _KILLED:
            return "it was killed"
        if code == _TERMINATED:
            return "it was asked to stop"
        if code:
            return f"it ended with status {code} and without a termination message"
    return ""


def _exit(pod: Object) -> int:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            return int(ended.get("exitCode", 0))
    return -1


def _disruption(status: Object) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return {
                "PreemptionByScheduler": "it was displaced by a pod of higher priority",
                "EvictionByEvictionAPI": "it was evicted",
                "DeletionByTaintManager": "its node was lost or drained",
                "DeletionByPodGC": "its node is gone",
                "TerminationByKubelet": "its node stopped it",
            }.get(condition.get("reason", ""), "it was evicted")
    return ""


def _newest(pods: Sequence[Object]) -> Object | None:
    """Return the newest pod that is not being removed, or else the newest."""

    def rank(pod: Object) -> tuple[bool, str, str]:
        metadata = pod.get("metadata") or {}
        gone = bool(metadata.get("deletionTimestamp"))
        return (not gone, metadata.get("creationTimestamp") or "", metadata.get("uid") or "")

    return max(pods, key=rank, default=None)


def _latest(warnings: Iterable[Object]) -> str:
    def when(event: Object) -> str:
        for key in ("lastTimestamp", "eventTime"):
            if event.get(key):
                return str(event[key])
        return str((event.get("metadata") or {}).get("creationTimestamp") or "")

    newest = max(warnings, key=when, default=None)
    return warning(newest) if newest is not None else ""


def _resource(name: str) -> str:
    if name in ("cpu", "memory", "ephemeral-storage", "pods"):
        what = {"cpu": "CPU", "ephemeral-storage": "disk", "pods": "room for pods"}
        return f"enough free {what.get(name, name)}"
    return f"a free `{name}`"


def _labels(message: str) -> str:
    if "anti-affinity" in message:
        return "every node has a pod that an anti-affinity rule keeps it away from"
    return "no node has the labels that it needs (is Node Feature Discovery installed?)"


def _after(message: str, words: str) -> str:
    return _plain(message.partition(words)[2] or message)


def _plain(text: str) -> str:
    text = _RPC.sub("", text[: 2 * _MOST])
    shown = "".join(c if c.isprintable() else " " for c in text[: _MOST + 1]).strip()
    return shown if len(shown) <= _MOST else shown[: _MOST - 3] + "..."
