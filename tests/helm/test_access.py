"""Who may do what: RBAC, network and mesh, as the charts render them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.kube.labels import clients_of
from edge.kube.permissions import MACHINES_REQUIRED, NEVER, OPTIONAL, REQUIRED, Permission
from fedlearn.identity.spiffe import COORDINATOR_DNS
from server.config import ServerConfig
from tests.harness.charts import Render

SERVER, EDGE = "fedlearn-server", "fedlearn-edge"
NET = "10.0.0.0/8"
LIFE = {"create", "get", "list", "watch", "delete"}
READ = {"get", "list", "watch"}


def _granted(*roles: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for role in roles:
        for rule in role["rules"]:
            assert "resourceNames" not in rule
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def _wanted(*permissions: Permission) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for item in permissions:
        name = f"{item.resource.plural}/{item.part}" if item.part else item.resource.plural
        found.setdefault((item.resource.group, name), set()).update(item.verbs)
    return found


def test_the_agent_has_exactly_these_rights(render: Render) -> None:
    rendered = render(EDGE)
    role = rendered.one("Role")
    assert role["metadata"]["namespace"] == "fedlearn-clients"
    assert _granted(role) == {
        ("batch", "jobs"): LIFE,
        ("", "pods"): READ,
        ("", "pods/log"): READ,
        ("", "events"): READ,
    }
    assert _granted(rendered.one("ClusterRole")) == {
        ("", "nodes"): {"get", "list"},
        ("node.k8s.io", "runtimeclasses"): {"get", "list"},
    }
    assert _granted(role, rendered.one("ClusterRole")) == _wanted(*REQUIRED, *OPTIONAL)


def test_an_agent_of_virtual_machines_makes_no_jobs(render: Render) -> None:
    kubernetes = {"workload": "kubevirt", "tee": "snp"}
    granted = _granted(render(EDGE, {"config": {"kubernetes": kubernetes}}).one("Role"))
    assert granted[("kubevirt.io", "virtualmachineinstances")] == LIFE
    assert ("batch", "jobs") not in granted
    for key, verbs in _wanted(*MACHINES_REQUIRED).items():
        assert granted[key] == verbs


@pytest.mark.parametrize("permission", NEVER, ids=str)
def test_no_role_grants_what_an_agent_must_never_have(
    render: Render, permission: Permission
) -> None:
    rendered = render(EDGE)
    granted = _granted(*rendered.all("Role"), *rendered.all("ClusterRole"))
    for (group, name), verbs in granted.items():
        assert "*" not in (group, name)
        assert "*" not in verbs
    for key, verbs in _wanted(permission).items():
        assert not verbs & granted.get(key, set())


def test_nodes_can_be_hidden_from_the_agent(render: Render) -> None:
    rendered = render(EDGE, {"rbac": {"readNodes": False}})
    assert not rendered.all("ClusterRole")
    assert not rendered.all("ClusterRoleBinding")


def test_roles_are_bound_to_the_agent_only(render: Render) -> None:
    rendered = render(EDGE)
    agent = {"kind": "ServiceAccount", "name": "here", "namespace": "fedlearn"}
    for binding in [*rendered.all("RoleBinding"), *rendered.all("ClusterRoleBinding")]:
        assert binding["subjects"] == [agent]


def test_the_coordinator_has_no_rights(render: Render) -> None:
    rendered = render(SERVER)
    assert not rendered.all("Role")
    assert not rendered.all("ClusterRole")
    with_backup = render(SERVER, {"backup": {"enabled": True}})
    assert _granted(with_backup.one("Role")) == {
        ("snapshot.storage.k8s.io", "volumesnapshots"): {"create", "list", "delete"}
    }
    (subject,) = with_backup.one("RoleBinding")["subjects"]
    assert subject["name"] == "here-backup"


# --- the network --------------------------------------------------------------------------


def _ports(rules: list[dict[str, Any]]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_only_three_ports_are_open_at_the_coordinator(render: Render) -> None:
    policy = render(SERVER).one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert _ports(policy["ingress"]) == {9443, 9444, 9445}
    assert _ports(policy["egress"]) == {53}


def test_counts_are_for_the_monitoring_only(render: Render) -> None:
    rendered = render(
        SERVER,
        {"metrics": {"enabled": True, "labels": {"release": "prometheus"}}},
        more=("--api-versions", "monitoring.coreos.com/v1"),
    )
    assert 'listen = "0.0.0.0:9446"' in rendered.one("ConfigMap", "here")["data"]["server.toml"]
    ports = {port["name"] for port in rendered.one("Service", "here")["spec"]["ports"]}
    assert ports == {"gate", "control", "fleet"}
    service = rendered.one("Service", "here-metrics")
    monitor = rendered.one("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert not wanted <= rendered.one("Service", "here")["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "30s"}
    rule = rendered.one("NetworkPolicy")["spec"]["ingress"][1]
    assert rule["ports"][0]["port"] == 9446
    labels = rule["from"][0]["namespaceSelector"]["matchLabels"]
    assert labels == {"kubernetes.io/metadata.name": "monitoring"}


def test_clients_reach_coordinator_agent_and_dns(render: Render) -> None:
    rendered = render(EDGE)
    closed = rendered.one("NetworkPolicy", "here-deny")
    assert closed["metadata"]["namespace"] == "fedlearn-clients"
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    spec = rendered.one("NetworkPolicy", "here-clients")["spec"]
    assert spec["podSelector"]["matchLabels"] == dict(clients_of("hospital-a"))
    assert "ingress" not in spec
    assert "Ingress" in spec["policyTypes"]
    assert _ports(spec["egress"]) == {9443, 9444, 9445, 8453, 53, 443}
    client_service = next(rule for rule in spec["egress"] if rule["ports"][0]["port"] == 8453)
    assert (
        client_service["to"][0]["podSelector"]["matchLabels"]
        == (rendered.one("Deployment")["spec"]["selector"]["matchLabels"])
    )
    agent = rendered.one("NetworkPolicy", "here")["spec"]
    assert _ports(agent["ingress"]) == {8453}
    assert agent["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == dict(
        clients_of("hospital-a")
    )


def _peers(rules: list[dict[str, Any]]) -> list[Any]:
    return [peer for rule in rules for peer in rule.get("to", ["any address"])]


def test_clients_reach_no_other_address(render: Render) -> None:
    """Whatever listens at one of these ports elsewhere gets nothing of an app."""
    rendered = render(EDGE)
    egress = rendered.one("NetworkPolicy", "here-clients")["spec"]["egress"]
    agent = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert _peers(egress) == [
        {"ipBlock": {"cidr": "192.0.2.7/32"}},
        {
            "podSelector": {"matchLabels": agent},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "fedlearn"}},
        },
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
        {"ipBlock": {"cidr": "192.0.2.9/32"}},
    ]
    by_port = {port["port"]: rule["to"] for rule in egress for port in rule["ports"]}
    assert by_port[9443] == by_port[9445] == [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
    assert by_port[443] == [{"ipBlock": {"cidr": "192.0.2.9/32"}}]


@pytest.mark.parametrize("missing", ["coordinator", "registry"])
def test_an_address_that_is_not_named_is_refused_unless_asked_for_by_name(
    render: Render, refusal: Callable[..., str], missing: str
) -> None:
    values: dict[str, Any] = {"networkPolicy": {missing: {"to": []}}}
    assert f"networkPolicy.{missing}.to: is empty" in refusal(EDGE, values)
    values["networkPolicy"]["insecureAnyAddress"] = True
    egress = render(EDGE, values).one("NetworkPolicy", "here-clients")["spec"]["egress"]
    assert "any address" in _peers(egress)


def test_plain_pods_need_no_registry(render: Render) -> None:
    kubernetes = {"workload": "insecure-pods"}
    values = {"config": {"kubernetes": kubernetes, "attester": {"kind": "insecure-software-tpm"}}}
    spec = render(EDGE, values).one("NetworkPolicy", "here-clients")["spec"]
    assert _ports(spec["egress"]) == {9443, 9444, 9445, 8453, 53}


@pytest.mark.parametrize(
    ("workload", "level"),
    [
        ("confidential-containers", "restricted"),
        ("insecure-pods", "restricted"),
        ("confidential-cluster", "privileged"),
    ],
)
def test_the_namespace_enforces_pod_security(render: Render, workload: str, level: str) -> None:
    namespace = render(EDGE, {"config": {"kubernetes": {"workload": workload}}}).one("Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == level
    assert labels["pod-security.kubernetes.io/audit"] == "restricted"
    assert namespace["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


# --- mesh and gateways --------------------------------------------------------------------


def test_istio_is_strict_and_lets_tls_through(render: Render) -> None:
    values = {
        "mesh": "istio",
        "meshOptions": {"gateways": ["istio-ingress/fedlearn"], "principals": ["a/b"]},
    }
    rendered = render(SERVER, values)
    selector = rendered.one("StatefulSet")["spec"]["selector"]
    peers = rendered.one("PeerAuthentication")["spec"]
    assert peers == {"selector": selector, "mtls": {"mode": "STRICT"}}
    policy = rendered.one("AuthorizationPolicy")["spec"]
    assert policy["action"] == "ALLOW"
    assert policy["selector"] == selector
    (rule,) = policy["rules"]
    assert sorted(rule["to"][0]["operation"]["ports"]) == ["9443", "9444", "9445"]
    assert rule["from"] == [{"source": {"principals": ["a/b"]}}]
    rule = rendered.one("DestinationRule")["spec"]
    assert rule["trafficPolicy"]["tls"]["mode"] == "ISTIO_MUTUAL"
    route = rendered.one("VirtualService")["spec"]
    assert route["hosts"] == [COORDINATOR_DNS]
    assert "http" not in route
    for item in route["tls"]:
        assert item["match"][0]["sniHosts"] == [COORDINATOR_DNS]
        number = item["route"][0]["destination"]["port"]["number"]
        assert item["match"][0]["port"] == number


def test_a_sidecar_can_be_kept_away_from_our_ports(render: Render) -> None:
    for mesh, annotation in (
        ("istio", "traffic.sidecar.istio.io/excludeInboundPorts"),
        ("linkerd", "config.linkerd.io/skip-inbound-ports"),
    ):
        rendered = render(SERVER, {"mesh": mesh, "meshOptions": {"intercept": False}})
        template = rendered.one("StatefulSet")["spec"]["template"]
        assert template["metadata"]["annotations"][annotation] == "9443,9444,9445"


def test_linkerd_treats_our_ports_as_bytes(render: Render) -> None:
    rendered = render(SERVER, {"mesh": "linkerd"})
    for one in (rendered.one("Service"), rendered.one("StatefulSet")["spec"]["template"]):
        annotations = one["metadata"]["annotations"]
        assert annotations["config.linkerd.io/opaque-ports"] == "9443,9444,9445"


def test_without_a_mesh_there_is_nothing_of_it(render: Render) -> None:
    rendered = render(SERVER)
    kinds = {one["kind"] for one in rendered.objects}
    assert not kinds & {"PeerAuthentication", "AuthorizationPolicy", "VirtualService"}


def test_a_gateway_passes_tls_through(render: Render) -> None:
    values = {"tlsRoute": {"enabled": True, "gateway": {"name": "edge", "namespace": "gw"}}}
    rendered = render(SERVER, values)
    routes = rendered.all("TLSRoute")
    assert {route["metadata"]["name"] for route in routes} == {
        "here-gate",
        "here-control",
        "here-fleet",
    }
    ports = {port["name"]: port["port"] for port in rendered.one("Service")["spec"]["ports"]}
    for route in routes:
        name = route["metadata"]["name"].removeprefix("here-")
        spec = route["spec"]
        assert route["apiVersion"] == "gateway.networking.k8s.io/v1alpha2"
        assert spec["hostnames"] == [COORDINATOR_DNS]
        assert spec["parentRefs"] == [{"name": "edge", "namespace": "gw", "sectionName": name}]
        assert spec["rules"] == [{"backendRefs": [{"name": "here", "port": ports[name]}]}]
    newer = render(SERVER, values, more=("--api-versions", "gateway.networking.k8s.io/v1/TLSRoute"))
    assert newer.all("TLSRoute")[0]["apiVersion"] == "gateway.networking.k8s.io/v1"


# --- what only some clusters know ---------------------------------------------------------


def test_what_an_old_cluster_lacks_is_left_out(render: Render) -> None:
    values = {"backup": {"enabled": True}, "metrics": {"enabled": True}}
    old = render(SERVER, values, version="1.20.2")
    assert not old.all("CronJob")
    assert not old.all("ServiceMonitor")
    assert render(SERVER, values, version="1.30.0").all("CronJob")


def test_there_is_one_coordinator(render: Render) -> None:
    rendered = render(SERVER, {"podDisruptionBudget": {"enabled": True}})
    assert rendered.one("StatefulSet")["spec"]["replicas"] == 1
    assert not rendered.all("HorizontalPodAutoscaler")
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 0


# --- the front ----------------------------------------------------------------------------

FRONT = {"front": {"enabled": True, "image": {"digest": "sha256:" + "ef" * 32}}}
PODS_OF_THE_FRONT = {
    "app.kubernetes.io/name": "fedlearn-server-front",
    "app.kubernetes.io/instance": "here",
}


def test_only_the_front_is_scaled(render: Render) -> None:
    rendered = render(SERVER, FRONT)
    scaler = rendered.one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["kind"] == "Deployment"
    assert scaler["scaleTargetRef"]["name"] == "here-front"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6)
    deployment = rendered.one("Deployment", "here-front")["spec"]
    assert "replicas" not in deployment
    assert deployment["selector"]["matchLabels"] == PODS_OF_THE_FRONT
    assert rendered.one("StatefulSet")["spec"]["replicas"] == 1
    budget = rendered.one("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == PODS_OF_THE_FRONT
    # Utilization is of what is requested, so there has to be a request.
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "500m"


def test_a_front_of_fixed_size_or_on_an_old_cluster_has_no_autoscaler(
    render: Render,
) -> None:
    fixed = render(SERVER, {"front": {**FRONT["front"], "replicas": {"min": 3, "max": 3}}})
    assert not fixed.all("HorizontalPodAutoscaler")
    assert fixed.one("Deployment", "here-front")["spec"]["replicas"] == 3


def test_sites_reach_the_front_and_only_the_front_reaches_the_coordinator(
    render: Render,
) -> None:
    rendered = render(SERVER, {**FRONT, "networkPolicy": {"from": [{"ipBlock": {"cidr": NET}}]}})
    assert rendered.one("Service", "here")["spec"]["selector"] == PODS_OF_THE_FRONT
    behind = rendered.one("Service", "here-behind")["spec"]
    labels = rendered.one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert behind["selector"].items() <= labels.items()
    ingress = rendered.one("NetworkPolicy", "here")["spec"]["ingress"]
    assert [rule["from"] for rule in ingress] == [
        [{"podSelector": {"matchLabels": PODS_OF_THE_FRONT}}]
    ]
    front = rendered.one("NetworkPolicy", "here-front")["spec"]
    assert front["podSelector"]["matchLabels"] == PODS_OF_THE_FRONT
    assert [rule["from"] for rule in front["ingress"]] == [[{"ipBlock": {"cidr": NET}}]]
    assert front["egress"][0]["to"] == [{"podSelector": {"matchLabels": behind["selector"]}}]


def test_envoy_learns_where_the_coordinator_is(render: Render) -> None:
    text = render(SERVER, FRONT).one("ConfigMap", "here-front")["data"]["envoy.yaml"]
    resources = yaml.safe_load(text)["static_resources"]
    assert {
        cluster["name"]: cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"][
            "address"
        ]["socket_address"]
        for cluster in resources["clusters"]
    } == {
        name: {"address": "here-behind.fedlearn.svc", "port_value": port}
        for name, port in (("gate", 9443), ("control", 9444), ("fleet", 9445))
    }


def test_behind_the_front_an_address_stands_for_everybody(render: Render, tmp_path: Path) -> None:
    for limits, expected in (
        ({}, (400.0, 4096, 1024)),
        ({"requests_per_second": 50, "challenges": 99, "connections": 64}, (50.0, 99, 64)),
        (
            {"requests_per_second": 100_000, "challenges": 1_000_000, "connections": 100_000},
            (10_000.0, 100_000, 100_000),
        ),
        (
            {
                "requests_per_second_per_peer": 7,
                "challenges_per_peer": 3,
                "connections_per_peer": 5,
            },
            (7.0, 3, 5),
        ),
    ):
        rendered = render(SERVER, {**FRONT, "config": {"limits": limits}})
        file = tmp_path / "server.toml"
        file.write_text(rendered.one("ConfigMap", "here")["data"]["server.toml"])
        found = ServerConfig.load(file).limits
        assert (
            found.requests_per_second_per_peer,
            found.challenges_per_peer,
            found.connections_per_peer,
        ) == expected
