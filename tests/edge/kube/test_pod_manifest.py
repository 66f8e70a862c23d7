"""Manifests: golden files, properties, and the schemas of Kubernetes from 1.30 on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config.kubernetes import Devices, Hints, KubernetesSettings, Placement, Toleration
from edge.kube import labels
from edge.kube.client_object import Launch, Owner, cores
from edge.kube.initdata import (
    ANNOTATION,
    annotation_value,
    initdata_document,
    initdata_values,
    opened,
)
from edge.kube.pod_manifest import CCNP_PATH, batch_job, manifest, manifest_work
from edge.protocol.workload import Workload
from fedlearn.errors import ConfigError, LaunchError
from tests.harness.cluster_site import workload as make_workload

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/fedlearn-client@sha256:" + "ab" * 32
TDX = "tdx.intel.com/tdx-guest"
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
OWNER = Owner(
    api_version="v1",
    kind="ServiceAccount",
    name="fedlearn-edge",
    uid="11111111-2222-3333-4444-555555555555",
)
LAUNCH = Launch(
    agent_address="fedlearn-edge.fedlearn.svc:8453",
    pin=b"\x01" * 32,
    ticket=b"\x02" * 32,
    owner=OWNER,
)
PLACEMENT = Placement(
    node_selector={"zone": "b"},
    tolerations=(
        Toleration(key="fedlearn.io/tee", effect="NoSchedule"),
        Toleration(key="team", value="ml"),
    ),
    priority_class="training",
    queue="federated",
)
HINTS = Hints(rdt="training", blockio="throttled", annotations={"nri.example/cores": "isolated"})

KINDS: dict[str, KubernetesSettings] = {
    "confidential-containers": KubernetesSettings(
        image=IMAGE,
        runtime_class="kata-qemu-tdx",
        devices=Devices(tee=TDX),
        placement=PLACEMENT,
        hints=HINTS,
    ),
    "kubevirt": KubernetesSettings(image=IMAGE, workload="kubevirt", tee="snp"),
    "confidential-cluster": KubernetesSettings(
        image=IMAGE,
        workload="confidential-cluster",
        devices=Devices(gpu_claim="one-gpu", scratch_class="nvmeof"),
    ),
    "insecure-pods": KubernetesSettings(
        image=IMAGE, workload="insecure-pods", pull_secrets=("registry",)
    ),
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return make_workload("a1b2", gpu=2, data="medpar")


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]
    return found


def shown(document: dict[str, Any]) -> str:
    """The manifest for a golden file: compressed text as text."""
    copy = json.loads(json.dumps(document))
    annotations = copy["spec"].get("template", {}).get("metadata", {}).get("annotations", {})
    if ANNOTATION in annotations:
        annotations[ANNOTATION] = opened(annotations[ANNOTATION]).decode().splitlines()
    return json.dumps(copy, indent=2, sort_keys=True) + "\n"


# --- golden files -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_golden(kind: str, workload: Workload, request: pytest.FixtureRequest) -> None:
    """To accept a change: delete the file, run this twice, and read the difference."""
    path = GOLDEN / f"{kind}.json"
    found = shown(manifest(workload, KINDS[kind], LAUNCH))
    if not path.exists():
        path.write_text(found)
        pytest.fail(f"{path.name} was missing and has been written: read it and run again")
    assert found == path.read_text()


# --- schemas ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kubevirt"}))
def test_every_release_accepts_it(kind: str, version: str, workload: Workload) -> None:
    if KINDS[kind].devices.gpu_claim and version == "1.30":
        # Claims have another form there; they are for 1.31 and later.
        workload = make_workload("a1b2", data="medpar")
    kubernetes_validate.validate(manifest(workload, KINDS[kind], LAUNCH), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_are_strict(version: str, workload: Workload) -> None:
    document = batch_job(workload, KINDS["insecure-pods"], LAUNCH)
    pod_of(document)["hostIPS"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_newest_schemas_are_tested() -> None:
    assert kubernetes_validate.latest_version().startswith(VERSIONS[-1])


# --- the restricted profile ---------------------------------------------------------------


def assert_restricted(pod: dict[str, Any], *, host_paths: bool = False) -> None:
    """Pod Security Standards, restricted, item by item."""
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"emptyDir", "persistentVolumeClaim", "ephemeral"} | (
        {"hostPath"} if host_paths else set()
    )
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= allowed
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", ()))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kubevirt"}))
def test_pods_are_restricted(kind: str, workload: Workload) -> None:
    pod = pod_of(batch_job(workload, KINDS[kind], LAUNCH))
    assert_restricted(pod, host_paths=kind == "confidential-cluster")
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert not any("valueFrom" in item for item in container["env"])
    assert "envFrom" not in container


def test_the_socket_of_ccnp_is_read_only(workload: Workload) -> None:
    pod = pod_of(batch_job(workload, KINDS["confidential-cluster"], LAUNCH))
    (mount,) = [item for item in pod["containers"][0]["volumeMounts"] if item["name"] == "ccnp"]
    assert mount == {"name": "ccnp", "mountPath": CCNP_PATH, "readOnly": True}
    others = [batch_job(workload, KINDS[kind], LAUNCH) for kind in KINDS if kind != "kubevirt"]
    assert sum("hostPath" in json.dumps(document) for document in others) == 1


def test_data_is_read_only_everywhere(workload: Workload) -> None:
    for kind, chosen in KINDS.items():
        document = manifest(workload, chosen, LAUNCH)
        spec = document["spec"] if kind == "kubevirt" else pod_of(document)
        (volume,) = [item for item in spec["volumes"] if item["name"] == "data"]
        assert volume["persistentVolumeClaim"] == {"claimName": "medpar", "readOnly": True}


# --- initdata -----------------------------------------------------------------------------


def test_initdata_is_what_the_policy_expects(workload: Workload) -> None:
    document = batch_job(workload, KINDS["confidential-containers"], LAUNCH)
    carried = opened(document["spec"]["template"]["metadata"]["annotations"][ANNOTATION])
    snp, tdx = initdata_values(
        image=IMAGE, bundle=workload.assignment.bundle, tee="tdx", name="client"
    )
    assert carried == initdata_document(image=IMAGE, bundle=workload.assignment.bundle, tee="tdx")
    assert (tdx.claim, len(tdx.value), tdx.name) == ("mrconfigid", 48, "client")
    assert (snp.claim, len(snp.value)) == ("host_data", 32)


def test_other_initdata_has_another_digest() -> None:
    bundle, other = bytes(32), b"\x01" + bytes(31)
    base = initdata_values(image=IMAGE, bundle=bundle)
    assert base == initdata_values(image=IMAGE, bundle=bundle)
    assert base != initdata_values(image=IMAGE, bundle=other)
    assert base != initdata_values(image=IMAGE.replace("ab", "cd"), bundle=bundle)


@given(st.binary(max_size=5000))
def test_the_annotation_carries_every_document(document: bytes) -> None:
    assert opened(annotation_value(document)) == document
    assert annotation_value(document) == annotation_value(document)


@pytest.mark.parametrize("value", ["", "AAAA", "%%", annotation_value(b"a" * 2_000_000)])
def test_an_annotation_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        opened(value)


def test_an_annotation_with_something_after_it_is_refused() -> None:
    import base64

    value = base64.b64encode(base64.b64decode(annotation_value(b"x")) + b"y").decode()
    with pytest.raises(ConfigError, match="followed by other data"):
        opened(value)


# --- devices and placement ----------------------------------------------------------------


def test_gpus_are_extended_resources_or_claims(workload: Workload) -> None:
    plain = pod_of(batch_job(workload, KINDS["insecure-pods"], LAUNCH))
    assert plain["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "resourceClaims" not in plain
    claimed = pod_of(batch_job(workload, KINDS["confidential-cluster"], LAUNCH))
    assert claimed["resourceClaims"] == [
        {"name": f"gpu-{index}", "resourceClaimTemplateName": "one-gpu"} for index in range(2)
    ]
    assert "nvidia.com/gpu" not in claimed["containers"][0]["resources"]["limits"]


def test_one_resource_cannot_be_tee_and_gpu(workload: Workload) -> None:
    confused = dataclasses.replace(KINDS["insecure-pods"], devices=Devices(tee="nvidia.com/gpu"))
    with pytest.raises(LaunchError, match="the same resource"):
        batch_job(workload, confused, LAUNCH)


def test_a_machine_gets_no_claims(workload: Workload) -> None:
    confused = dataclasses.replace(KINDS["kubevirt"], devices=Devices(gpu_claim="one-gpu"))
    with pytest.raises(LaunchError, match="not through claims"):
        manifest(workload, confused, LAUNCH)


def test_a_queued_job_is_suspended(workload: Workload) -> None:
    document = batch_job(workload, KINDS["confidential-containers"], LAUNCH)
    assert document["spec"]["suspend"] is True
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "federated"
    assert "suspend" not in batch_job(workload, KINDS["insecure-pods"], LAUNCH)["spec"]


def test_a_hub_gets_the_job_wrapped(workload: Workload) -> None:
    document = batch_job(workload, KINDS["insecure-pods"], LAUNCH)
    work = manifest_work([document], name="a", cluster="edge-1")
    assert work["metadata"]["namespace"] == "edge-1"
    assert work["spec"]["workload"]["manifests"] == [document]


def test_tee_nodes_are_required_where_the_tee_is_known(workload: Workload) -> None:
    def required(chosen: KubernetesSettings) -> str:
        return json.dumps(pod_of(batch_job(workload, chosen, LAUNCH)).get("affinity", {}))

    chosen = KINDS["confidential-containers"]
    assert "cpu-security.tdx.enabled" in required(chosen)
    none = dataclasses.replace(chosen, placement=Placement(tee_label="-"))
    assert required(none) == "{}"
    own = dataclasses.replace(chosen, placement=Placement(tee_label="example/tdx"))
    assert "example/tdx" in required(own)


# --- properties ---------------------------------------------------------------------------


@given(st.floats(0.1, 1024))
def test_cores_are_never_less_than_asked(cpu: float) -> None:
    text = cores(cpu)
    value = int(text[:-1]) / 1000 if text.endswith("m") else float(text)
    assert cpu - 1e-3 <= value < cpu + 2e-3


@settings(max_examples=50, deadline=None)
@given(
    identity=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    cpu=st.floats(0.1, 1024),
    memory=st.integers(64, 16 * 1024 * 1024),
    gpu=st.integers(0, 64),
    disk=st.integers(0, 1024 * 1024),
    kind=st.sampled_from(sorted(KINDS)),
    data=st.sampled_from(["", "medpar"]),
)
def test_every_job_gives_a_manifest(
    workload: Workload,
    identity: str,
    cpu: float,
    memory: int,
    gpu: int,
    disk: int,
    kind: str,
    data: str,
) -> None:
    resources = dataclasses.replace(
        workload.spec.resources, cpu=cpu, memory_mib=memory, gpu=gpu, disk_mib=disk
    )
    item = dataclasses.replace(
        workload,
        assignment=dataclasses.replace(workload.assignment, id=identity),
        spec=dataclasses.replace(workload.spec, resources=resources),
        data=data,
    )
    document = manifest(item, KINDS[kind], LAUNCH)
    assert document == manifest(item, KINDS[kind], LAUNCH)
    assert document["metadata"]["name"] == identity
    assert document["metadata"]["labels"][labels.ASSIGNMENT] == identity
    assert json.loads(json.dumps(document)) == document
    if kind != "kubevirt":
        pod = pod_of(document)
        assert_restricted(pod, host_paths=kind == "confidential-cluster")
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == names
        assert (
            document["spec"]["template"]["metadata"]["labels"].items()
            >= labels.clients_of(item.assignment.site).items()
        )
