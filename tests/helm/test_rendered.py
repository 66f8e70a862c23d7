"""What the charts render, for a matrix of values: valid for every Kubernetes, restricted, and
safe to upgrade."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.harness.charts import Helm, Render, Rendered

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ("fedlearn-server", "fedlearn-edge")
VERSIONS = tuple(
    f"1.{minor}" for minor in range(30, int(kubernetes_validate.latest_version().split(".")[1]) + 1)
)
CUSTOM = {
    "AuthorizationPolicy",
    "DestinationRule",
    "PeerAuthentication",
    "ServiceMonitor",
    "TLSRoute",
    "VirtualService",
}
EXAMPLES = sorted(ROOT.glob("helm/*/examples/*.yaml"))
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")

MATRIX: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "server": ("fedlearn-server", {}, ()),
    "server-everything": (
        "fedlearn-server",
        {
            "runtimeClassName": "kata-qemu-snp",
            "config": {
                "keys": {"protect": ["tpm-policy", "recovery-key", "passphrase"], "pcrs": [0, 7]},
                "limits": {"requests_per_second": 100000, "update_mib": 1024},
                "jobs": {"resume": False},
            },
            "keys": {"recoveryKey": "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"},
            "image": {"pullSecrets": ["mirror"]},
            "nodeSelector": {"tee": "snp"},
            "tolerations": [{"key": "tee", "operator": "Exists"}],
            "priorityClassName": "high",
            "supplementalGroups": [107],
            "podAnnotations": {"io.katacontainers.config.hypervisor.cc_init_data": "H4sI"},
            "resources": {"extended": {"tdx.intel.com/tdx-guest": "1"}},
            "persistence": {"storageClassName": "fast", "accessMode": "ReadWriteOncePod"},
            "service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]},
            "tlsRoute": {"enabled": True, "gateway": {"name": "edge"}},
            "podDisruptionBudget": {"enabled": True},
            "backup": {"enabled": True, "volumeSnapshotClassName": "csi"},
            "metrics": {"enabled": True},
        },
        MONITORING,
    ),
    "server-istio": (
        "fedlearn-server",
        {
            "mesh": "istio",
            "meshOptions": {"gateways": ["istio-ingress/fedlearn"], "principals": ["cluster/x"]},
        },
        (),
    ),
    "server-istio-aside": (
        "fedlearn-server",
        {"mesh": "istio", "meshOptions": {"intercept": False}},
        (),
    ),
    "server-front": (
        "fedlearn-server",
        {
            "front": {
                "enabled": True,
                "image": {"digest": "sha256:" + "ef" * 32},
                "nodeSelector": {"zone": "edge"},
                "tolerations": [{"key": "edge", "operator": "Exists"}],
                "priorityClassName": "high",
            },
            "image": {"pullSecrets": ["mirror"]},
            "service": {"type": "LoadBalancer"},
            "metrics": {"enabled": True},
        },
        MONITORING,
    ),
    "server-linkerd": ("fedlearn-server", {"mesh": "linkerd"}, ()),
    "server-linkerd-aside": (
        "fedlearn-server",
        {"mesh": "linkerd", "meshOptions": {"intercept": False}},
        (),
    ),
    "edge": ("fedlearn-edge", {}, ()),
    "edge-one-namespace": (
        "fedlearn-edge",
        {"workloads": {"namespace": ""}, "rbac": {"readNodes": False}},
        (),
    ),
    "edge-kubevirt": (
        "fedlearn-edge",
        {
            "config": {"kubernetes": {"workload": "kubevirt", "tee": "tdx"}},
            "mesh": "linkerd",
        },
        (),
    ),
    "edge-cluster": (
        "fedlearn-edge",
        {
            "config": {
                "kubernetes": {"workload": "confidential-cluster"},
                "attester": {"kind": "ccnp"},
            },
            "ccnp": {"enabled": True, "image": {"digest": "sha256:" + "cd" * 32}},
        },
        (),
    ),
    "edge-istio-token": (
        "fedlearn-edge",
        {
            "mesh": "istio",
            "enrollment": {"existingSecret": "", "token": "fedlearn-join-AAAA\n"},
            "workloads": {"quota": {"enabled": False}, "limits": {"enabled": False}},
        },
        (),
    ),
}


@pytest.fixture(autouse=True, scope="module")
def schemas_once() -> Iterator[None]:
    """kubernetes-validate reads a megabyte of schemas for each object; read each file once."""
    patch = pytest.MonkeyPatch()
    utils = kubernetes_validate.utils
    patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
    yield
    patch.undo()


@functools.cache
def _fault(document: str, version: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


def _core(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from (one for one in objects if one["kind"] not in CUSTOM)


@pytest.fixture(scope="module", params=sorted(MATRIX))
def rendered(
    request: pytest.FixtureRequest, helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    chart, values, more = MATRIX[request.param]
    file = helm.values(chart, values, tmp_path_factory.mktemp("values"))
    return helm.template(chart, file, more=more)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_examples_are_clean(helm: Helm, path: Path) -> None:
    chart = path.parents[1]
    done = helm.run("lint", str(chart), "--strict", "--values", str(path), "--kube-version", "1.34")
    assert done.returncode == 0, done.stdout + done.stderr
    for one in _core(helm.template(chart.name, path).objects):
        assert not _fault(json.dumps(one, sort_keys=True), VERSIONS[-1])


def test_objects_are_valid_from_1_30_to_the_newest(rendered: Rendered) -> None:
    assert rendered.objects
    for one in _core(rendered.objects):
        document = json.dumps(one, sort_keys=True)
        for version in VERSIONS:
            fault = _fault(document, version)
            assert not fault, f"{one['kind']} {one['metadata']['name']} in {version}: {fault}"


def test_a_field_that_does_not_exist_would_be_found(render: Render) -> None:
    one = render("fedlearn-edge").one("Deployment")
    one["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    assert "readOnly" in _fault(json.dumps(one), VERSIONS[0])


def test_pods_meet_the_restricted_profile(rendered: Rendered) -> None:
    """Pod Security Standards, restricted; and what we ask for beyond it."""
    for name, template in rendered.pods():
        pod = template["spec"]
        if name.endswith("-ccnp"):
            continue  # it mounts a folder of the node; the docs state this
        own = pod["securityContext"]
        assert own["runAsNonRoot"] is True, name
        assert own["runAsUser"] > 0, name
        assert own["fsGroupChangePolicy"] == "OnRootMismatch", name
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not pod.get(key), name
        for volume in pod.get("volumes", []):
            kinds = set(volume) - {"name"}
            assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, name
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert not security.get("privileged"), name
            assert container["resources"]["requests"] == container["resources"]["limits"], name
            assert "@sha256:" in container["image"], name


def test_only_those_who_speak_to_the_api_have_a_token(rendered: Rendered) -> None:
    speaking = {
        name.rpartition("-")[2] if "-" in name else name
        for name, template in rendered.pods()
        if template["spec"]["automountServiceAccountToken"]
    }
    assert speaking <= {"Deployment/here", "remove", "backup"}
    for account in rendered.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_no_secret_is_made_but_the_join_token(rendered: Rendered) -> None:
    for secret in rendered.all("Secret"):
        assert secret["stringData"] == {"token": "fedlearn-join-AAAA"}
    assert "PRIVATE" not in json.dumps(rendered.objects)


def test_selectors_find_their_pods_and_nobody_elses(rendered: Rendered) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in rendered.pods()}
    for service in rendered.all("Service"):
        wanted = service["spec"]["selector"].items()
        found = [name for name, own in labels.items() if wanted <= own.items()]
        assert len(found) == 1, (service["metadata"]["name"], found)


def test_upgrades_change_nothing_that_cannot_change(helm: Helm, tmp_path: Path) -> None:
    """Whatever the values, selectors, claims and names stay; so a release can be upgraded."""
    fixed: dict[tuple[str, str], set[str]] = {}
    for chart, values, more in MATRIX.values():
        file = helm.values(chart, values, tmp_path)
        found = helm.template(chart, file, more=more)
        for kind in ("StatefulSet", "Deployment"):
            for one in found.all(kind):
                spec = one["spec"]
                kept = {
                    "selector": spec["selector"],
                    "serviceName": spec.get("serviceName"),
                    "claims": [claim["metadata"] for claim in spec.get("volumeClaimTemplates", [])],
                }
                name = f"{kind}/{one['metadata']['name']}"
                fixed.setdefault((chart, name), set()).add(json.dumps(kept, sort_keys=True))
    assert {name: len(kept) for name, kept in fixed.items()} == {
        ("fedlearn-server", "StatefulSet/here"): 1,
        ("fedlearn-server", "Deployment/here-front"): 1,
        ("fedlearn-edge", "Deployment/here"): 1,
    }
    for (only,) in fixed.values():
        assert "helm.sh/chart" not in only, "a label that changes with the version"


def test_the_whole_is_yaml_that_ends_in_notes(helm: Helm, tmp_path: Path) -> None:
    for chart in CHARTS:
        file = helm.values(chart, {}, tmp_path)
        done = helm.run(
            "install", "here", str(ROOT / "helm" / chart), "--dry-run=client", "--values", str(file)
        )
        assert done.returncode == 0, done.stderr
        _, _, notes = done.stdout.partition("NOTES:")
        assert "fedlearn site " in notes
        assert "{{" not in notes


def test_examples_name_no_key_twice() -> None:
    """YAML readers differ in which of two equal keys counts."""

    class Once(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return loader.construct_mapping(node, deep=True)

    Once.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in [*EXAMPLES, *ROOT.glob("helm/*/values.yaml")]:
        assert yaml.load(path.read_text(), Loader=Once)
