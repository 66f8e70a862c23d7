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
from tests.harness.charts import Helm, Render, Rendered

ROOT = Path(__file__).resolve().parents[2]
SERVER, EDGE = "fedlearn-server", "fedlearn-edge"


def _schema(chart: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / f"helm/{chart}/values.schema.json").read_text())
    return document


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chart", "values", "reported"),
    [
        (SERVER, {"imagee": {}}, "'imagee' not allowed"),
        (SERVER, {"image": {"digest": ""}}, "at '/image/digest'"),
        (SERVER, {"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match"),
        (SERVER, {"image": {"tag": "v1"}}, "'tag' not allowed"),
        (SERVER, {"config": {"trust_domain": "Hospitals"}}, "at '/config/trust_domain'"),
        (
            SERVER,
            {"operator": {"csr": ""}},
            "operator.csr: the first operator's request is missing",
        ),
        (SERVER, {"operator": {"csr": "-----BEGIN PRIVATE KEY-----"}}, "at '/operator/csr'"),
        (SERVER, {"operator": {"key": "x"}}, "'key' not allowed"),
        (SERVER, {"config": {"keys": {"protect": []}}}, "at '/config/keys/protect'"),
        (SERVER, {"config": {"keys": {"protect": ["plain"]}}}, "'insecure-plain-key-file'"),
        (SERVER, {"config": {"limits": {"update_mb": 5}}}, "'update_mb' not allowed"),
        (SERVER, {"config": {"limits": {"jobs": "many"}}}, "got string, want integer"),
        (SERVER, {"config": {"jobs": {"app_host": "/x"}}}, "'app_host' not allowed"),
        (SERVER, {"apps": {"container": "yes"}}, "at '/apps/container'"),
        (SERVER, {"apps": {"resources": {"extended": {}}}}, "'extended' not allowed"),
        (SERVER, {"config": {"listen": {"gate": "0.0.0.0:1"}}}, "'listen' not allowed"),
        (SERVER, {"keys": {"recoveryKey": "-----BEGIN PRIVATE KEY-----"}}, "/keys/recoveryKey"),
        (SERVER, {"replicas": 2}, "'replicas' not allowed"),
        (SERVER, {"resources": {"memory": "8 gigs"}}, "at '/resources/memory'"),
        (SERVER, {"front": {"enabled": True}}, "at '/front/image/digest'"),
        (SERVER, {"front": {"replicas": {"min": 0}}}, "at '/front/replicas/min'"),
        (SERVER, {"front": {"limits": {"rate": 5}}}, "'rate' not allowed"),
        (SERVER, {"mesh": "consul"}, "'none', 'istio', 'linkerd'"),
        (SERVER, {"tlsRoute": {"enabled": True}}, "/tlsRoute/gateway/name"),
        (SERVER, {"backup": {"schedule": "daily"}}, "at '/backup/schedule'"),
        (SERVER, {"podDisruptionBudget": {"maxUnavailable": 2}}, "maximum"),
        (EDGE, {"site": {"name": ""}}, "at '/site/name'"),
        (EDGE, {"site": {"name": "Hospital_A"}}, "at '/site/name'"),
        (EDGE, {"client": {"image": {"digest": "", "insecureTag": "dev"}}}, "not allowed"),
        (EDGE, {"enrollment": {"token": "hunter2"}}, "at '/enrollment/token'"),
        (EDGE, {"config": {"kubernetes": {"workload": "pods"}}}, "'insecure-pods'"),
        (EDGE, {"config": {"kubernetes": {"image": "x"}}}, "'image' not allowed"),
        (EDGE, {"config": {"data": {"x": {"claims": "x"}}}}, "'claims' not allowed"),
        (EDGE, {"workloads": {"podSecurity": "lax"}}, "'restricted', 'baseline', 'privileged'"),
        (EDGE, {"ccnp": {"enabled": True}}, "at '/ccnp/image/digest'"),
    ],
)
def test_wrong_values_are_refused_by_name(
    refusal: Callable[..., str], chart: str, values: dict[str, Any], reported: str
) -> None:
    assert reported in refusal(chart, values)


def test_a_tag_is_taken_where_it_is_called_insecure(render: Render) -> None:
    rendered = render(SERVER, {"image": {"digest": "", "insecureTag": "dev"}})
    containers = rendered.one("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert {one["image"] for one in containers} == {"registry.example/fedlearn/server:dev"}


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ({"config": {"keys": {"protect": ["recovery-key"]}}}, "keys.recoveryKey"),
        ({"keys": {"passphrase": {"existingSecret": ""}}}, "keys.passphrase.existingSecret"),
        (
            {
                "mesh": "istio",
                "front": {"enabled": True, "image": {"digest": "sha256:" + 64 * "a"}},
            },
            "front.enabled: a mesh brings its own gateway",
        ),
    ],
)
def test_what_belongs_together_is_asked_for_together(
    refusal: Callable[..., str], values: dict[str, Any], reported: str
) -> None:
    assert reported in refusal(SERVER, values)


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
