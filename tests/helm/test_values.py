"""Values: what the schema refuses, and what the others become in server.toml and site.toml."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config.site import SiteConfig
from server.config import ServerConfig
from tests.harness.charts import DIGEST, Helm, Render, Rendered

ROOT = Path(__file__).resolve().parents[2]
SERVER, EDGE = "fedlearn-server", "fedlearn-edge"


def _schema(chart: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / f"helm/{chart}/values.schema.json").read_text())
    return document


# --- refusals -----------------------------------------------------------------------------


HEX = "ab" * 32
CASES: list[tuple[str, dict[str, Any], str]] = [
    (SERVER, {"imagee": {}}, "'imagee' not allowed"),
    (SERVER, {"image": {"tag": "v1"}}, "'tag' not allowed"),
    (SERVER, {"config": {"trust_domain": "Hospitals"}}, "at '/config/trust_domain'"),
    (SERVER, {"operator": {"key": "x"}}, "'key' not allowed"),
    (SERVER, {"config": {"keys": {"protect": ["plain"]}}}, "'insecure-plain-key-file'"),
    (SERVER, {"config": {"keys": {"protect": ["passphrase"] * 2}}}, "equal"),
    (SERVER, {"config": {"keys": {"pcrs": [24]}}}, "maximum: got 24, want 23"),
    (SERVER, {"config": {"limits": {"update_mb": 5}}}, "'update_mb' not allowed"),
    (SERVER, {"config": {"limits": {"jobs": "many"}}}, "got string, want integer"),
    (SERVER, {"config": {"limits": {"jobs": 0}}}, "minimum: got 0, want 1"),
    (SERVER, {"config": {"limits": {"requests_per_second": 0.5}}}, "want 1"),
    (SERVER, {"config": {"certificates": {"client_s": 99999}}}, "want 1,800"),
    (SERVER, {"config": {"advertise": {"gate": "a.example"}}}, "at '/config/advertise/gate'"),
    (SERVER, {"config": {"trust": {"tpm_aks": ["x"]}}}, "at '/config/trust/tpm_aks/0'"),
    (SERVER, {"config": {"trust": {"policy_keys": "x"}}}, "got string, want array"),
    (SERVER, {"config": {"attester": {"kind": "sgx"}}}, "'insecure-software-tpm'"),
    (SERVER, {"config": {"jobs": {"sandbox": "none"}}}, "'full', 'best-effort'"),
    (SERVER, {"config": {"jobs": {"app_host": "/x"}}}, "'app_host' not allowed"),
    (SERVER, {"apps": {"container": "yes"}}, "at '/apps/container'"),
    (SERVER, {"apps": {"resources": {"extended": {}}}}, "'extended' not allowed"),
    (SERVER, {"config": {"listen": {"gate": "0.0.0.0:1"}}}, "'listen' not allowed"),
    (SERVER, {"replicas": 2}, "'replicas' not allowed"),
    (SERVER, {"resources": {"memory": "8 gigs"}}, "at '/resources/memory'"),
    (SERVER, {"front": {"replicas": {"min": 0}}}, "at '/front/replicas/min'"),
    (SERVER, {"front": {"limits": {"rate": 5}}}, "'rate' not allowed"),
    (SERVER, {"mesh": "consul"}, "'none', 'istio', 'linkerd'"),
    (SERVER, {"backup": {"schedule": "daily"}}, "at '/backup/schedule'"),
    (SERVER, {"podDisruptionBudget": {"maxUnavailable": 2}}, "maximum"),
    (EDGE, {"client": {"image": {"digest": "", "insecureTag": "dev"}}}, "not allowed"),
    (EDGE, {"config": {"kubernetes": {"workload": "pods"}}}, "'insecure-pods'"),
    (EDGE, {"config": {"kubernetes": {"image": "x"}}}, "'image' not allowed"),
    (EDGE, {"config": {"kubernetes": {"retries": 11}}}, "maximum: got 11, want 10"),
    (EDGE, {"config": {"kubernetes": {"runtime_class": "K"}}}, "kubernetes/runtime_class'"),
    (EDGE, {"config": {"kubernetes": {"placement": {"queue": "A"}}}}, "placement/queue'"),
    (
        EDGE,
        {"config": {"kubernetes": {"placement": {"tolerations": [{"value": "x"}]}}}},
        "missing property 'key'",
    ),
    (EDGE, {"config": {"kubernetes": {"devices": {"gpu": "gpu"}}}}, "devices/gpu'"),
    (EDGE, {"config": {"data": {"x": {"claims": "x"}}}}, "'claims' not allowed"),
    (EDGE, {"config": {"data": {"medpar": {"path": "/srv"}}}}, "'path' not allowed"),
    (EDGE, {"config": {"data": {"medpar": {}}}}, "missing property 'claim'"),
    (EDGE, {"config": {"data": {"Medpar": {"claim": "x"}}}}, "invalid propertyName 'Medpar'"),
    (
        EDGE,
        {"config": {"data": {"x": {"claim": "x", "epsilon": 1}}}},
        "properties 'delta' required, if 'epsilon' exists",
    ),
    (EDGE, {"config": {"accept": {"bundles": ["x"]}}}, "at '/config/accept/bundles/0'"),
    (EDGE, {"config": {"accept": {"bundles": [HEX, HEX]}}}, "equal"),
    (EDGE, {"config": {"accept": {"hours": "always"}}}, "at '/config/accept/hours'"),
    (EDGE, {"config": {"accept": {"other_bundles": "yes"}}}, "'refuse', 'ask'"),
    (EDGE, {"config": {"accept": {"approval": True}}}, "'automatic', 'manual'"),
    (EDGE, {"config": {"privacy": {"max_epsilon": -1}}}, "minimum"),
    (EDGE, {"config": {"caps": {"memory_mib": 1.5}}}, "got number, want integer"),
    (EDGE, {"workloads": {"podSecurity": "lax"}}, "'restricted', 'baseline', 'privileged'"),
]


@pytest.mark.parametrize(("chart", "values", "reported"), CASES)
def test_wrong_values_are_refused_by_name(
    refusal: Callable[..., str], chart: str, values: dict[str, Any], reported: str
) -> None:
    assert reported in refusal(chart, values)


def test_a_tag_is_taken_where_it_is_called_insecure(render: Render) -> None:
    rendered = render(SERVER, {"image": {"digest": "", "insecureTag": "dev"}})
    containers = rendered.one("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert {one["image"] for one in containers} == {"registry.example/fedlearn/server:dev"}


IN_WORDS: list[tuple[str, dict[str, Any], str]] = [
    (SERVER, {"image": {"digest": ""}}, 'image.digest: is required, "sha256:" and 64 hex'),
    (SERVER, {"image": {"digest": "latest"}}, 'and 64 hexadecimal digits, not "latest"'),
    (SERVER, {"front": {"enabled": True}}, "front.image.digest: is required"),
    (SERVER, {"config": {"trust_domain": ""}}, "config.trust_domain: is required"),
    (SERVER, {"config": {"keys": {"protect": []}}}, "config.keys.protect: is required"),
    (
        SERVER,
        {"config": {"keys": {"protect": ["passphrase", "insecure-plain-key-file"]}}},
        "must be the only protector",
    ),
    (SERVER, {"config": {"keys": {"protect": ["recovery-key"]}}}, "keys.recoveryKey: config"),
    (SERVER, {"keys": {"passphrase": {"existingSecret": ""}}}, "existingSecret: config"),
    (SERVER, {"operator": {"csr": ""}}, "operator.csr: the first operator's request is missing"),
    (
        SERVER,
        {"config": {"certificates": {"renew_after_s": 200, "renew_by_s": 200}}},
        "renew_after_s: must be below config.certificates.renew_by_s, which is 200, not 200",
    ),
    (
        SERVER,
        {"config": {"certificates": {"renew_by_s": 600, "client_s": 300}}},
        "renew_by_s: must be at most config.certificates.client_s, which is 300, not 600",
    ),
    (SERVER, {"tlsRoute": {"enabled": True}}, "tlsRoute.gateway.name: is required"),
    (
        SERVER,
        {"mesh": "istio", "front": {"enabled": True, "image": {"digest": DIGEST}}},
        "front.enabled: a mesh brings its own gateway",
    ),
    (EDGE, {"site": {"name": ""}}, "site.name: is required"),
    (EDGE, {"site": {"name": "Hospital_A"}}, 'it is "Hospital_A"'),
    (EDGE, {"image": {"digest": ""}}, "image.digest: is required"),
    (EDGE, {"client": {"image": {"digest": ""}}}, "client.image.digest: is required"),
    (EDGE, {"ccnp": {"enabled": True}}, "ccnp.image.digest: is required"),
    (
        EDGE,
        {
            "config": {"kubernetes": {"workload": "confidential-cluster"}},
            "workloads": {"podSecurity": "restricted"},
        },
        'workloads.podSecurity: "restricted" does not admit clients of the workload',
    ),
    (
        EDGE,
        {"config": {"kubernetes": {"workload": "kubevirt"}}},
        "config.kubernetes.tee: is required",
    ),
    (
        EDGE,
        {"config": {"kubernetes": {"workload": "kubevirt", "tee": "tdx", "runtime_class": "k"}}},
        "config.kubernetes.runtime_class: must be empty",
    ),
    (
        EDGE,
        {"config": {"kubernetes": {"tee": "snp", "runtime_class": "kata-qemu-tdx"}}},
        'is "snp", but config.kubernetes.runtime_class is for "tdx"',
    ),
]


@pytest.mark.parametrize(("chart", "values", "reported"), IN_WORDS)
def test_what_is_required_or_contradicts_is_named_in_words(
    refusal: Callable[..., str], chart: str, values: dict[str, Any], reported: str
) -> None:
    found = refusal(chart, values)
    assert reported in found
    assert "pattern" not in found
    assert "^" not in found


SECRET = "s3cr3t+in/PEM=="
PRIVATE = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("chart", "values", "reported"),
    [
        (EDGE, {"enrollment": {"token": SECRET}}, "enrollment.token: is not a join token"),
        (EDGE, {"enrollment": {"token": f"fedlearn-join-{SECRET}"}}, "enrollment.token: is not"),
        (EDGE, {"enrollment": {"existingSecret": SECRET}}, "enrollment.existingSecret: must be"),
        (SERVER, {"keys": {"recoveryKey": PRIVATE}}, "keys.recoveryKey: must be one public key"),
        (SERVER, {"operator": {"csr": PRIVATE}}, "operator.csr: must be one certification request"),
        (
            SERVER,
            {"keys": {"passphrase": {"existingSecret": SECRET}}},
            "keys.passphrase.existingSecret: must be the name of a Secret",
        ),
        (SERVER, {"keys": {"passphrase": {"passphrase": SECRET}}}, "'passphrase' not allowed"),
        (SERVER, {"operator": {"key": PRIVATE}}, "'key' not allowed"),
    ],
)
def test_a_secret_is_refused_without_being_shown(
    refusal: Callable[..., str], chart: str, values: dict[str, Any], reported: str
) -> None:
    found = refusal(chart, values)
    assert reported in found
    assert "s3cr3t" not in found


@pytest.mark.parametrize(
    ("chart", "required"),
    [
        (SERVER, ("image.digest", "config.trust_domain", "config.keys.protect", "operator.csr")),
        (EDGE, ("site.name", "image.digest", "client.image.digest", "networkPolicy.coordinator")),
    ],
)
def test_a_chart_without_values_names_all_that_it_requires(
    helm: Helm, chart: str, required: tuple[str, ...]
) -> None:
    for words in (("template", "here"), ("install", "here", "--dry-run=client")):
        done = helm.run(*words, str(ROOT / "helm" / chart))
        assert done.returncode != 0
        for name in required:
            assert f"{name}" in done.stderr, done.stderr
        assert "pattern" not in done.stderr


@pytest.mark.parametrize("chart", [SERVER, EDGE])
def test_lint_takes_the_least_values_and_refuses_others(
    helm: Helm, chart: str, tmp_path: Path
) -> None:
    folder = str(ROOT / "helm" / chart)
    good = helm.run("lint", folder, "--values", str(helm.values(chart, {}, tmp_path)))
    assert good.returncode == 0, good.stdout
    bad = helm.values(chart, {"image": {"tag": "latest"}}, tmp_path)
    done = helm.run("lint", folder, "--values", str(bad))
    assert done.returncode != 0
    assert "'tag' not allowed" in done.stdout + done.stderr


def test_edge_asks_for_claims_of_data_and_not_for_paths(render: Render, tmp_path: Path) -> None:
    rendered = render(EDGE, {"config": {"data": {"medpar": {"claim": "medpar"}}}})
    config = _site(rendered, tmp_path)
    assert config.data["medpar"].claim == "medpar"


# --- what becomes of them -----------------------------------------------------------------


def _server(rendered: Rendered, folder: Path, file: str = "server.toml") -> ServerConfig:
    (folder / file).write_text(rendered.one("ConfigMap", "here")["data"][file])
    return ServerConfig.load(folder / file)


def _site(rendered: Rendered, folder: Path) -> SiteConfig:
    (folder / "site.toml").write_text(rendered.one("ConfigMap", "here")["data"]["site.toml"])
    return SiteConfig.load(folder / "site.toml")


def test_server_toml_is_what_the_values_state(render: Render, tmp_path: Path) -> None:
    values = {
        "config": {
            "trust_domain": "a.example",
            "advertise": {"gate": "coordinator.a.example:443"},
            "keys": {"protect": ["tpm-policy", "passphrase"], "pcrs": [0, 7]},
            "limits": {"requests_per_second": 100000, "update_mib": 1048576, "jobs": 3},
            "certificates": {"site_days": 7},
            "jobs": {"resume": False},
            "trust": {"collateral": ["/etc/trust/a.json"], "tpm_aks": ["ab" * 32]},
        }
    }
    rendered = render(SERVER, values)
    config = _server(rendered, tmp_path)
    assert config.state == Path("/var/lib/fedlearn/state")
    assert config.listen.gate == "0.0.0.0:9443"
    assert config.advertise.gate == "coordinator.a.example:443"
    assert config.advertise.fleet == "here.fedlearn.svc:9445"
    assert config.keys.passphrase_file == Path("/run/secrets/fedlearn/passphrase")
    assert config.keys.pcrs == (0, 7)
    assert config.limits.requests_per_second == 100_000
    assert config.limits.update_mib == 1_048_576
    assert config.jobs.resume is False
    assert config.trust.tpm_aks == (bytes.fromhex("ab" * 32),)
    first = _server(rendered, tmp_path, "init.toml")
    assert first.state == Path("/run/fedlearn/new")
    assert dataclasses.replace(first, state=config.state) == config


def test_site_toml_is_what_the_values_state(render: Render, tmp_path: Path) -> None:
    values = {
        "config": {
            "kubernetes": {
                "placement": {
                    "node_selector": {"example.com/tee": "tdx"},
                    "tolerations": [{"key": "tee"}, {"key": "gpu", "effect": "NoSchedule"}],
                },
                "devices": {"gpu": "nvidia.com/gpu"},
            },
            "data": {"medpar": {"claim": "medpar", "jobs": ["mortality-*"]}},
            "accept": {"bundles": ["ab" * 32], "hours": "20:00-06:00"},
            "privacy": {"required": True, "max_epsilon": 8},
            "caps": {"cpu": 2.5, "memory_mib": 16777216},
        },
        "client": {"pullSecrets": ["mirror"]},
        "sponsor": {"port": 9000},
    }
    config = _site(render(EDGE, values), tmp_path)
    kubernetes = config.kubernetes
    assert kubernetes is not None
    assert config.launcher.kind == "kubernetes"
    assert kubernetes.namespace == "fedlearn-clients"
    assert kubernetes.sponsor_address == "here.fedlearn.svc:9000"
    assert kubernetes.image.startswith("registry.example/fedlearn/client@sha256:")
    assert kubernetes.service_account == "here-client"
    assert kubernetes.pull_secrets == ("mirror",)
    assert dict(kubernetes.placement.node_selector) == {"example.com/tee": "tdx"}
    assert [item.key for item in kubernetes.placement.tolerations] == ["tee", "gpu"]
    assert str(config.accept.hours) == "20:00-06:00 UTC"
    assert config.caps.cpu == 2.5
    assert config.privacy.max_epsilon == 8


def test_strings_cannot_write_more_toml(render: Render, tmp_path: Path) -> None:
    path = '/a"\n[keys]\nprotect = ["insecure-plain-key-file"]\n\\é<&>'
    config = _server(render(SERVER, {"config": {"trust": {"collateral": [path]}}}), tmp_path)
    assert config.keys.protect == ("passphrase",)
    assert config.trust.collateral == (Path(path),)


def test_the_first_operators_request_reaches_the_pod_and_is_asked_for_once(
    render: Render, tmp_path: Path
) -> None:
    data = render(SERVER).one("ConfigMap", "here")["data"]
    assert data["operator.csr"].startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    none = {"operator": {"csr": ""}}
    assert (
        "operator.csr"
        not in render(SERVER, none, more=["--is-upgrade"]).one("ConfigMap", "here")["data"]
    )
    here = {"operator": {"csr": "", "insecureKeyInPod": True}}
    assert "operator.csr" not in render(SERVER, here).one("ConfigMap", "here")["data"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("helm/*/examples/*.yaml")), ids=lambda p: p.stem)
def test_examples_make_configurations_that_load(helm: Helm, path: Path, tmp_path: Path) -> None:
    chart = path.parents[1].name
    rendered = helm.template(chart, path)
    if chart == SERVER:
        assert _server(rendered, tmp_path).trust_domain
    else:
        assert _site(rendered, tmp_path).launcher.kind == "kubernetes"


# --- the schema knows every key -----------------------------------------------------------


def test_schemas_and_tables_are_those_of_the_code() -> None:
    for tool in ("chart_schema.py", "chart_readme.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / tool), "--check"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("chart", "written"),
    [
        (SERVER, ("state", "listen", "keys.recovery_key", "keys.passphrase_file")),
        (EDGE, ("state", "launcher.kind", "kubernetes.image", "kubernetes.namespace")),
    ],
)
def test_what_the_chart_writes_is_no_value(chart: str, written: tuple[str, ...]) -> None:
    for path in written:
        at = _schema(chart)["properties"]["config"]
        *above, last = path.split(".")
        for name in above:
            at = at["properties"][name]
        assert at["additionalProperties"] is False
        assert last not in at["properties"]


@pytest.mark.parametrize("chart", [SERVER, EDGE])
def test_every_object_of_the_schema_is_closed(chart: str) -> None:
    """What is misspelt is refused at every depth; what belongs to Kubernetes is Kubernetes'."""
    theirs = {"affinity", "global", "items"}

    def walk(schema: dict[str, Any], name: str) -> None:
        if schema.get("type") == "object" and name not in theirs:
            assert schema.get("additionalProperties") is not None, name
        for key, value in schema.get("properties", {}).items():
            walk(value, key)

    walk(_schema(chart), chart)
