"""Clients in real pods: kubelet, containerd and runc; the project's own image; charts by helm.

Run by ``make test-pods``; needs root. RuntimeClasses of kata are runc here, so this shows that
manifests, images, accounts, volumes and networks fit together. It shows nothing about a TEE, and
NetworkPolicies are stored and not enforced.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.kube.guest_policy import COMMAND, guest_policy
from fedlearn.identity.software import software_digest
from tests.harness.cluster import ROOT
from tests.harness.envoy import LEAST
from tests.harness.federation import FederationHarness, Job
from tests.harness.pod_federation import PodFederation
from tests.harness.real_node import RealNode
from tests.harness.real_node_images import Image, built

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]

SITES = ("site-a", "site-b")
CLASS = "kata-qemu-coco-dev"
ABSENT = "kata-remote"
"""A RuntimeClass whose handler the node does not know."""
RESOURCES = {"cpu": 0.4, "memory_mib": 512}


@pytest.fixture(scope="module")
def image() -> Image:
    """The image of agents and clients, built from these sources."""
    return built("edge")["edge"]


@pytest.fixture(scope="module")
def node(image: Image) -> Iterator[RealNode]:
    """A control plane with one real node, which has the image under its digest."""
    images = {image.name("fedlearn/edge"): image}
    with RealNode(images, handlers=(CLASS,)) as running:
        for name in (CLASS, ABSENT):
            body = {"metadata": {"name": name}, "handler": name}
            running.cluster.request("/apis/node.k8s.io/v1/runtimeclasses", "POST", body)
        yield running


@pytest.fixture(scope="module")
def harness(
    node: RealNode, image: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodFederation]:
    """A coordinator on this machine, and two sites that were installed by their charts."""
    federation = PodFederation(
        tmp_path_factory.mktemp("pods"),
        node,
        SITES,
        image=image.digest,
        kubernetes={"workload": "confidential-containers", "runtime_class": CLASS},
    )
    with federation as running:
        yield running


def _job(harness: PodFederation, name: str, **more: Any) -> Job:
    return harness.job(name, resources=RESOURCES, deadline_s=120, **more)


def _until(so: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := so()):
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.1)
    return found


def _running(harness: PodFederation, site: str, job: str) -> tuple[dict[str, Any], int]:
    """Return the pod of a site's client that runs, and its process."""

    def look() -> Any:
        for pod in harness.clients(site, job):
            if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp"):
                for pid in harness.node.processes(pod, "edge.client.pod_main"):
                    return pod, pid
        return None

    found: tuple[dict[str, Any], int] = _until(look)
    return found


# --- training -----------------------------------------------------------------------------


def test_a_federated_training_runs_in_real_pods(harness: PodFederation, image: Image) -> None:
    job = _job(harness, "through", config={"wait": 1.0}).submit()
    job.wait_for("round.started", 1, seconds=90)
    for site in SITES:
        pod, _ = _running(harness, site, "through")
        assert pod["spec"]["runtimeClassName"] == CLASS
        (container,) = pod["status"]["containerStatuses"]
        assert container["imageID"] == image.name("fedlearn/edge")
        assert pod["status"]["podIP"].startswith(harness.node.host.pods.removesuffix("0/24"))
    job.finish(seconds=120)
    admitted = job.ledger("admission")
    assert sorted({entry["site"] for entry in admitted}) == list(SITES)
    assert [entry["phase"] for entry in job.ledger("round")].count("started") == 3
    verified = harness.command("fedlearn", "ledger", "verify", "--state", harness.state, "--json")
    assert json.loads(verified.stdout)["intact"] is True
    harness.command(
        "fedlearn", "model", "open", harness.sealed("through")[-1], "--key", harness.owner.file
    )
    assert harness.plaintext(harness.marker()) == []


def test_it_gives_the_same_bits_as_processes(
    harness: PodFederation, shared: FederationHarness
) -> None:
    for site in SITES:
        assert (shared.data[site][0] == harness.data[site][0]).all()
    _job(harness, "bits").submit().finish(seconds=120)
    shared.run("bits", sites=list(SITES))
    if "OPENBLAS_CORETYPE" not in os.environ:
        assert harness.digest("bits") == shared.digest("bits")
        return
    # Processes take the kernels that this machine's environment names, and images have no such
    # choice: the last bits of a product differ then, in whatever runs it.
    theirs = shared.weights("bits")
    for name, array in harness.weights("bits").items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-6)


# --- what the pods may do -----------------------------------------------------------------


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(re.split(r":\s*", line, maxsplit=1) for line in lines)


def _mounts(pid: int) -> dict[str, str]:
    """Return the options of what is mounted where, as the process sees it."""
    lines = (line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return {words[4]: words[5] for words in lines}


def _assert_restricted(pid: int) -> None:
    """The kernel's own word for the restricted profile, about a process that runs."""
    status = _status(pid)
    for numbers in (status["Uid"], status["Gid"]):
        assert set(numbers.split()) == {"65532"}
    for sort in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[sort], 16) == 0, sort
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "ro" in _mounts(pid)["/"].split(",")
    for kind in ("pid", "net", "mnt", "ipc", "uts"):
        ours, theirs = (Path(f"/proc/{who}/ns/{kind}").readlink() for who in ("self", pid))
        assert ours != theirs, kind


def test_a_client_is_restricted_and_holds_no_secret(harness: PodFederation) -> None:
    job = _job(harness, "posture", rounds=2, config={"wait": 3.0}).submit()
    job.wait_for("round.started", 1, seconds=90)
    pod, pid = _running(harness, "site-a", "posture")
    _assert_restricted(pid)
    mounts = _mounts(pid)
    assert not [path for path in mounts if "secrets" in path]
    assert "ro" in mounts["/data"].split(",")
    assert not [volume for volume in pod["spec"]["volumes"] if "secret" in volume]

    # What of its environment is not the image's or the cluster's is in the documents.
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    environment = dict(item.split("=", 1) for item in text.split("\0") if item)
    private = (harness.federation.machines["site-a"].state / "insecure-development.key").read_text()
    for value in environment.values():
        assert "PRIVATE" not in value
        assert private.splitlines()[1] not in value
    assert not [name for name in environment if re.search("KEY|TOKEN|PASS|SECRET", name)]

    # The guest's policy of a real kata would let exactly this through.
    received = harness.node.container(pod)
    policy = guest_policy(pod["spec"]["containers"][0]["image"])
    assert received["process"]["args"] == list(COMMAND)
    allowed = set(re.findall(r'^  "(/[^"]*)",$', policy, re.MULTILINE))
    assert {mount["destination"] for mount in received["mounts"]} <= allowed
    patterns = re.findall(r"^  `(.*)`,$", policy, re.MULTILINE)
    for item in received["process"]["env"]:
        assert any(re.search(pattern, item) for pattern in patterns), item

    limits = received["linux"]["resources"]
    assert limits["memory"]["limit"] == (RESOURCES["memory_mib"] + 16) * 2**20
    assert limits["cpu"]["quota"] == RESOURCES["cpu"] * limits["cpu"]["period"]
    assert pod["status"]["qosClass"] == "Guaranteed"
    job.finish(seconds=120)


def test_an_agent_is_restricted_and_has_a_token_that_expires(harness: PodFederation) -> None:
    (pod,) = harness.pods("site-a")
    for pid in harness.node.processes(pod, "fedlearn-edge"):
        _assert_restricted(pid)
    (pid, *_) = harness.node.processes(pod, "fedlearn-edge")
    root = Path(f"/proc/{pid}") / "root"
    account = root / "run/secrets/kubernetes.io/serviceaccount"
    token = (account / "token").read_text()
    claims = json.loads(_unpadded(token.split(".")[1]))
    assert claims["sub"] == "system:serviceaccount:site-a:fedlearn-edge"
    assert claims["kubernetes.io"]["pod"]["name"] == pod["metadata"]["name"]
    assert claims["exp"] > time.time()
    # Its key is its own, also with the group that the kubelet gives to volumes.
    identity = harness.folder / "sites" / "site-a" / "identity" / "state"
    for path in identity.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_helms_own_test_passes_in_a_pod(harness: PodFederation) -> None:
    reported = harness.helm("site-a", "test", "fedlearn-edge", "--timeout", "90s")
    assert "Succeeded" in reported


def test_network_policies_are_accepted(harness: PodFederation) -> None:
    """Stored and shown again; no network plug-in here enforces them."""
    get = harness.node.cluster.request
    for site in SITES:
        names = set()
        for namespace in (site, f"{site}-clients"):
            path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
            names |= {one["metadata"]["name"] for one in get(path)["items"]}
        assert names == {"fedlearn-edge", "fedlearn-edge-clients", "fedlearn-edge-deny"}


ANY = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
MESH = (
    ("security.istio.io", "peerauthentications", "PeerAuthentication"),
    ("security.istio.io", "authorizationpolicies", "AuthorizationPolicy"),
    ("networking.istio.io", "destinationrules", "DestinationRule"),
    ("networking.istio.io", "virtualservices", "VirtualService"),
)
"""Istio's kinds that the server's chart has, with the plurals of their paths."""


def test_the_manifests_of_a_mesh_are_accepted(harness: PodFederation) -> None:
    """By an API server that knows the names of Istio's kinds; no mesh runs here."""
    cluster = harness.node.cluster
    for group, plural, kind in MESH:
        cluster.request(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "POST",
            {
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"plural": plural, "kind": kind},
                    "versions": [{"name": "v1", "served": True, "storage": True, "schema": ANY}],
                },
            },
        )
        path = f"/apis/{group}/v1/{plural}"
        harness.node.wait(functools.partial(cluster.request, path), f"the kind {kind}", 20)
    values = {**LEAST, "mesh": "istio"}
    values["meshOptions"] = {"gateways": ["istio-ingress/fedlearn"]}
    file = harness.folder / "mesh.json"
    file.write_text(json.dumps(values))
    chart = str(ROOT / "helm/fedlearn-server")
    words = ("install", "mesh", chart, "--create-namespace", "--values", str(file))
    harness.helm("meshed", *words)
    for group, plural, _ in MESH:
        found = cluster.request(f"/apis/{group}/v1/namespaces/meshed/{plural}")["items"]
        assert [one["metadata"]["name"] for one in found] == ["mesh"]
    harness.helm("meshed", "uninstall", "mesh")


# --- what goes wrong ----------------------------------------------------------------------


def test_a_client_that_is_killed_in_a_round_comes_back(harness: PodFederation) -> None:
    job = _job(harness, "killed", rounds=4, config={"wait": 1.0}).submit()
    job.wait_for("round.started", 2, seconds=90)
    _, pid = _running(harness, "site-a", "killed")
    os.kill(pid, signal.SIGKILL)
    job.finish(seconds=180)
    sites = [entry["site"] for entry in job.ledger("admission")]
    assert sites.count("site-a") >= 2
    reported = [event.detail for event in job.of("client.starting") if event.site == "site-a"]
    assert any("it was killed; it starts again" in text for text in reported), reported


def test_a_client_whose_pod_is_deleted_in_a_round_comes_back(harness: PodFederation) -> None:
    job = _job(harness, "deleted", rounds=4, config={"wait": 1.0}).submit()
    job.wait_for("round.started", 2, seconds=90)
    pod, _ = _running(harness, "site-b", "deleted")
    harness.node.cluster.request(
        f"/api/v1/namespaces/site-b-clients/pods/{pod['metadata']['name']}", "DELETE"
    )
    job.finish(seconds=180)
    assert [entry["site"] for entry in job.ledger("admission")].count("site-b") >= 2


def _only(pods: list[dict[str, Any]], client: dict[str, Any]) -> None:
    """Check that no other pod was made; once the job has ended, the agent may have removed it."""
    assert {pod["metadata"]["uid"] for pod in pods} <= {client["metadata"]["uid"]}


def test_an_agent_whose_pod_is_deleted_adopts_its_client(harness: PodFederation) -> None:
    job = _job(harness, "adopted", rounds=8, config={"wait": 1.5}).submit()
    job.wait_for("round.started", 2, seconds=90)
    client, _ = _running(harness, "site-a", "adopted")
    (agent,) = harness.pods("site-a")
    name = agent["metadata"]["name"]
    harness.node.cluster.request(f"/api/v1/namespaces/site-a/pods/{name}", "DELETE")
    job.finish(seconds=180)
    _only(harness.clients("site-a", "adopted"), client)
    assert [entry["site"] for entry in job.ledger("admission")].count("site-a") == 1
    harness.federation.await_connected(["site-a"])


def test_an_upgrade_in_a_round_loses_no_job(harness: PodFederation) -> None:
    """The chart's new revision replaces the agent's pod; its client goes on in its own."""
    job = _job(harness, "upgraded", rounds=8, config={"wait": 1.5}).submit()
    job.wait_for("round.started", 2, seconds=90)
    client, _ = _running(harness, "site-b", "upgraded")
    (before,) = harness.pods("site-b")
    values = {**harness.values("site-b"), "logLevel": "DEBUG"}
    harness.install("site-b", values, "--wait", "--timeout", "120s")
    job.finish(seconds=180)
    _only(harness.clients("site-b", "upgraded"), client)
    assert before["metadata"]["uid"] not in [
        one["metadata"]["uid"] for one in harness.pods("site-b")
    ]
    assert [entry["site"] for entry in job.ledger("admission")].count("site-b") == 1
    harness.federation.await_connected(["site-b"])


def test_other_code_is_refused_and_not_started_again(harness: PodFederation) -> None:
    right = software_digest().hex()
    policy = harness.policy("other").replace(right, "12" * 32, 1)
    job = _job(harness, "other", policy=policy).submit()
    state = job.finish("failed", seconds=120)
    assert f"software is {right}" in state.detail
    assert job.ledger("admission") == []


def test_a_site_states_what_its_node_cannot_run(harness: PodFederation) -> None:
    """One site names an image that is nowhere, the other a runtime that the node lacks."""
    broken = {site: harness.values(site) for site in SITES}
    broken["site-a"]["client"]["image"]["digest"] = "sha256:" + "ab" * 32
    broken["site-b"]["config"]["kubernetes"]["runtime_class"] = ABSENT
    wanted = {
        "site-a": "the image cannot be pulled: ",
        "site-b": f"the node has no runtime `{ABSENT}`",
    }
    wait = ("--wait", "--timeout", "120s")
    try:
        for site in SITES:
            broken[site]["config"]["launcher"]["start_s"] = 20
            harness.install(site, broken[site], *wait)
        harness.federation.await_connected(SITES)
        job = _job(harness, "broken").submit()
        for site, words in wanted.items():

            def reported(site: str = site) -> list[str]:
                return [event.detail for event in job.of("client.starting") if event.site == site]

            _until(lambda reported=reported, words=words: any(words in text for text in reported()))  # type: ignore[misc]
            # Once, not anew with each attempt of the kubelet.
            assert sum(words in text for text in reported()) == 1
        for site, words in wanted.items():
            (lost, *_) = job.wait_for("client.lost", 1, seconds=90, site=site)
            assert f"did not start in 20 s: {words}" in lost.reason
        harness.operator.cancel_job("broken")
    finally:
        for site in SITES:
            harness.install(site, harness.values(site), *wait)
    harness.federation.await_connected(SITES)
    _job(harness, "mended").submit().finish(seconds=120)


# --- last: it takes the sites away --------------------------------------------------------


def test_removing_a_release_ends_its_clients(harness: PodFederation) -> None:
    """The chart's hook runs in a pod of its own, with the agent's rights."""
    job = _job(harness, "removed", rounds=30, config={"wait": 1.0}).submit()
    job.wait_for("round.started", 1, seconds=90)
    _running(harness, "site-b", "removed")
    harness.helm("site-b", "uninstall", "fedlearn-edge", "--timeout", "120s")
    _until(lambda: not harness.clients("site-b", "removed"))
    job.finish("failed", seconds=90)
    lost = [event.reason for event in job.of("client.lost") if event.site == "site-b"]
    assert lost == ["its client failed: its object was removed from the cluster by somebody else"]
