"""Both charts, installed by real helm into a real API server, and tried with the agent's token."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.kube.labels import client_labels
from edge.kube.permissions import NEVER, OPTIONAL, REQUIRED
from tests.harness.charts import Helm
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SERVER, EDGE = "fedlearn-server", "fedlearn-edge"
NAMESPACE, CLIENTS = "fedlearn", "fedlearn-clients"
SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1/namespaces/fedlearn/volumesnapshots"


class Site:
    """A cluster with both charts in it."""

    def __init__(self, cluster: Cluster, helm: Helm, folder: Path) -> None:
        self.cluster, self.helm, self.folder = cluster, helm, folder
        self.values = {chart: helm.values(chart, {}, folder) for chart in (SERVER, EDGE)}

    def run(self, *words: str) -> str:
        done = self.helm.run(
            *words,
            "--namespace",
            NAMESPACE,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "KUBECONFIG": str(self.cluster.admin),
            },
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def install(self, chart: str, *more: str) -> str:
        verb = ("upgrade", "--install", "--create-namespace")
        path = str(ROOT / "helm" / chart)
        return self.run(*verb, chart, path, "--values", str(self.values[chart]), *more)

    @staticmethod
    def plural(kind: str) -> str:
        name = kind.lower()
        return f"{name[:-1]}ies" if name.endswith("cy") else f"{name}s"

    def define(self, group: str, version: str, kind: str) -> None:
        """Define a kind of somebody else's, whose objects may hold anything."""
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
        plural = self.plural(kind)
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": f"{plural}.{group}",
                "annotations": {"api-approved.kubernetes.io": "https://example.org"},
            },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": plural, "kind": kind},
                "versions": [
                    {
                        "name": version,
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        }
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.cluster.request(path, "POST", definition)
        path = f"/apis/{group}/{version}/{plural}"
        self.cluster.wait(lambda: bool(self.cluster.request(path)), f"the kind {kind}", 20)

    def call(self, path: str, token: str, method: str = "GET", body: object = None) -> Any:
        """Call the API with a token of a service account."""
        request = urllib.request.Request(
            self.cluster.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=str(self.cluster.authority.path))
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return json.loads(answer.read())

    def may(self, token: str, verb: str, namespace: str = "", **attributes: str) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "namespace": namespace, **attributes}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(self.call(path, token, "POST", review)["status"]["allowed"])

    def script(self, path: Path, token: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run what a pod of a chart runs, with a service account's token."""
        account = self.folder / "account"
        account.mkdir(exist_ok=True)
        (account / "token").write_text(token)
        (account / "ca.crt").write_bytes(self.cluster.authority.path.read_bytes())
        host, _, port = self.cluster.url.removeprefix("https://").rpartition(":")
        return subprocess.run(
            [sys.executable, str(path), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "KUBERNETES_SERVICE_HOST": host,
                "KUBERNETES_SERVICE_PORT": port,
                "FEDLEARN_ACCOUNT": str(account),
            },
        )


@pytest.fixture(scope="module")
def site(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        found = Site(cluster, helm, tmp_path_factory.mktemp("helm"))
        for chart in (SERVER, EDGE):
            found.install(chart)
        yield found


@pytest.fixture
def agent(site: Site) -> str:
    """The agent's own token."""
    return str(site.cluster.token(NAMESPACE, EDGE))


def test_what_was_installed_is_there(site: Site) -> None:
    get = site.cluster.request
    stateful = get(f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{SERVER}")
    assert stateful["spec"]["replicas"] == 1
    template = stateful["spec"]["template"]["spec"]
    assert template["automountServiceAccountToken"] is False
    assert template["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    config = get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{SERVER}")["data"]
    assert 'trust_domain = "hospitals.example"' in config["server.toml"]
    ports = get(f"/api/v1/namespaces/{NAMESPACE}/services/{SERVER}")["spec"]["ports"]
    assert sorted(port["port"] for port in ports) == [9443, 9444, 9445]
    namespace = get(f"/api/v1/namespaces/{CLIENTS}")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    quota = get(f"/api/v1/namespaces/{CLIENTS}/resourcequotas/{EDGE}")
    assert quota["spec"]["hard"]["pods"] == "8"
    for namespace_name, names in (
        (NAMESPACE, {SERVER, EDGE}),
        (CLIENTS, {f"{EDGE}-deny", f"{EDGE}-clients"}),
    ):
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace_name}/networkpolicies"
        assert {one["metadata"]["name"] for one in get(path)["items"]} == names


def test_its_controllers_make_the_pods(site: Site) -> None:
    """So service accounts, quotas, claims and pod specs are accepted, not only stored."""

    def both() -> bool:
        pods = site.cluster.request(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        names = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods}
        return names == {SERVER, EDGE}

    site.cluster.wait(both, "the pods of both charts", 30)
    claims = site.cluster.request(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims")
    assert {one["metadata"]["name"] for one in claims["items"]} == {EDGE, f"state-{SERVER}-0"}


def test_an_upgrade_keeps_claims_services_and_selectors(site: Site) -> None:
    get = site.cluster.request
    paths = {
        f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{SERVER}",
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{EDGE}",
        f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{EDGE}",
        f"/api/v1/namespaces/{NAMESPACE}/services/{SERVER}",
        f"/api/v1/namespaces/{NAMESPACE}/services/{EDGE}",
    }
    before = {path: get(path)["metadata"]["uid"] for path in paths}
    newer = "sha256:" + "cd" * 32
    site.install(SERVER, "--set", f"image.digest={newer}", "--set", "config.limits.jobs=3")
    site.install(EDGE, "--set", f"image.digest={newer}", "--set", "config.caps.jobs=2")
    assert {path: get(path)["metadata"]["uid"] for path in paths} == before
    deployment = get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{EDGE}")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.endswith(newer)


# --- the agent's own token ----------------------------------------------------------------


def test_the_agent_may_do_its_work(site: Site, agent: str) -> None:
    for permission in (*REQUIRED, *OPTIONAL):
        resource = permission.resource
        for verb in permission.verbs:
            assert site.may(
                agent,
                verb,
                CLIENTS if resource.namespaced else "",
                group=resource.group,
                resource=resource.plural,
                subresource=permission.part,
            ), (verb, permission)


def test_the_agent_may_not_do_more(site: Site, agent: str) -> None:
    for permission in NEVER:
        for verb in permission.verbs:
            for namespace in (CLIENTS, NAMESPACE, "kube-system"):
                assert not site.may(
                    agent,
                    verb,
                    namespace,
                    group=permission.resource.group,
                    resource=permission.resource.plural,
                    subresource=permission.part,
                ), (verb, permission, namespace)
    for namespace in (NAMESPACE, "default", "kube-system"):
        assert not site.may(agent, "create", namespace, group="batch", resource="jobs")
        assert not site.may(agent, "list", namespace, resource="pods")
    for verb in ("patch", "update", "delete", "watch"):
        assert not site.may(agent, verb, resource="nodes")
    assert not site.may(agent, "impersonate", resource="users")
    assert not site.may(agent, "bind", group="rbac.authorization.k8s.io", resource="clusterroles")
    assert not site.may(agent, "*", group="*", resource="*")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/v1/namespaces/{CLIENTS}/secrets"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
        ("GET", "/api/v1/secrets"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{EDGE}"),
        ("GET", "/api/v1/namespaces/default/pods"),
        ("POST", f"/api/v1/namespaces/{CLIENTS}/pods"),
        ("POST", f"/api/v1/namespaces/{CLIENTS}/serviceaccounts/default/token"),
        ("POST", f"/api/v1/namespaces/{CLIENTS}/pods/any/exec?command=sh"),
        ("DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{CLIENTS}/roles/{EDGE}"),
    ],
)
def test_the_server_refuses_the_agent(site: Site, agent: str, method: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        site.call(path, agent, method, None if method == "GET" else {})
    assert refused.value.code == 403


def test_clients_have_no_rights(site: Site) -> None:
    token = site.cluster.token(CLIENTS, f"{EDGE}-client")
    for resource in ("pods", "secrets", "configmaps"):
        assert not site.may(token, "get", CLIENTS, resource=resource)
    account = site.cluster.request(f"/api/v1/namespaces/{CLIENTS}/serviceaccounts/{EDGE}-client")
    assert account["automountServiceAccountToken"] is False


# --- what hooks and cron jobs run ---------------------------------------------------------


def _job(name: str, labels: dict[str, str]) -> dict[str, Any]:
    container = {"name": "c", "image": "registry.example/c", "resources": {}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


def test_removing_a_release_ends_its_clients_and_nobody_elses(site: Site, agent: str) -> None:
    path = f"/apis/batch/v1/namespaces/{CLIENTS}/jobs"
    labels = client_labels(job="j", site="hospital-a", assignment="a1")
    other = client_labels(job="j", site="hospital-b", assignment="a2")
    for job in (_job("ours", labels), _job("theirs", other)):
        site.cluster.request(path, "POST", job)
    rendered = site.helm.template(EDGE, site.values[EDGE])
    (container,) = rendered.one("Job")["spec"]["template"]["spec"]["containers"]
    _, script, *words = container["command"]
    done = site.script(ROOT / "helm" / EDGE / "files" / Path(script).name, agent, *words)
    assert done.returncode == 0, done.stderr
    assert "removed ours" in done.stdout

    def gone() -> bool:
        found = site.cluster.request(path)["items"]
        return [one["metadata"]["name"] for one in found] == ["theirs"]

    site.cluster.wait(gone, "our job to go", 20)
    site.cluster.request(f"{path}/theirs", "DELETE", {"propagationPolicy": "Background"})


def test_a_client_cannot_remove_others(site: Site) -> None:
    token = site.cluster.token(CLIENTS, f"{EDGE}-client")
    script = ROOT / "helm" / EDGE / "files/remove_clients.py"
    done = site.script(script, token, f"/apis/batch/v1/namespaces/{CLIENTS}/jobs", "a=b")
    assert done.returncode == 1
    assert "403" in done.stderr


def test_backups_are_made_and_the_oldest_dropped(site: Site, tmp_path: Path) -> None:
    site.define("snapshot.storage.k8s.io", "v1", "VolumeSnapshot")
    values = site.helm.values(SERVER, {"backup": {"enabled": True, "keep": 2}}, tmp_path)
    rendered = site.helm.template(SERVER, values)
    groups = {"ServiceAccount": "/api/v1", "Role": "/apis/rbac.authorization.k8s.io/v1"}
    groups["RoleBinding"] = groups["Role"]
    for kind, group in groups.items():
        one = rendered.one(kind, "here-backup")
        site.cluster.request(
            f"{group}/namespaces/{NAMESPACE}/{kind.lower()}s", "POST", {**one, "metadata": {
                **one["metadata"], "namespace": NAMESPACE}}
        )  # fmt: skip
    for day in ("20240101000000", "20240102000000", "20240103000000"):
        site.cluster.request(SNAPSHOTS, "POST", _snapshot(f"state-here-0-{day}"))
    spec = rendered.one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    _, script, *words = spec["containers"][0]["command"]
    token = site.cluster.token(NAMESPACE, "here-backup")
    done = site.script(ROOT / "helm" / SERVER / "files" / Path(script).name, token, *words)
    assert done.returncode == 0, done.stderr
    kept = {one["metadata"]["name"]: one for one in site.cluster.request(SNAPSHOTS)["items"]}
    assert "state-here-0-20240101000000" not in kept
    assert {"state-here-0-20240102000000", "state-here-0-20240103000000"} < set(kept)
    (new,) = [name for name in kept if "2024010" not in name]
    source = kept[new]["spec"]["source"]
    assert source == {"persistentVolumeClaimName": "state-here-0"}
    for verb, resource in (("list", "secrets"), ("get", "persistentvolumeclaims")):
        assert not site.may(token, verb, NAMESPACE, resource=resource)


def _snapshot(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "labels": {"fedlearn.io/backup-of": "here"}},
        "spec": {"source": {"persistentVolumeClaimName": "state-here-0"}},
        "status": {"readyToUse": True},
    }


CUSTOM = (
    ("gateway.networking.k8s.io", "v1alpha3", "TLSRoute"),
    ("monitoring.coreos.com", "v1", "ServiceMonitor"),
    ("networking.istio.io", "v1", "DestinationRule"),
    ("networking.istio.io", "v1", "VirtualService"),
    ("security.istio.io", "v1", "AuthorizationPolicy"),
    ("security.istio.io", "v1", "PeerAuthentication"),
)


def test_gateway_mesh_and_monitoring_are_taken_where_they_are_known(site: Site) -> None:
    """Kinds of others, defined as far as their names go; helm asks the server which it has."""
    more = ["--set", "tlsRoute.enabled=true", "--set", "tlsRoute.gateway.name=edge"]
    more += ["--set", "metrics.enabled=true", "--set", "mesh=istio"]
    more += ["--set", "meshOptions.gateways={istio-ingress/fedlearn}"]
    for group, version, kind in CUSTOM:
        site.define(group, version, kind)
    site.install(SERVER, *more)
    for group, version, kind in CUSTOM:
        path = f"/apis/{group}/{version}/namespaces/{NAMESPACE}/{site.plural(kind)}"
        found = [one["metadata"]["name"] for one in site.cluster.request(path)["items"]]
        names = [f"{SERVER}-{port}" for port in ("control", "fleet", "gate")]
        assert sorted(found) == (names if kind == "TLSRoute" else [SERVER])
    # And away again.
    site.install(SERVER)
    path = f"/apis/security.istio.io/v1/namespaces/{NAMESPACE}/peerauthentications"
    assert site.cluster.request(path)["items"] == []


def test_a_mesh_that_is_not_there_is_an_error_and_changes_nothing(site: Site) -> None:
    """What was asked for and cannot be is never left out in silence."""
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{SERVER}"
    before = site.cluster.request(path)["metadata"]["generation"]
    unknown = "gateway.networking.k8s.io/v9"
    more = ["--set", "tlsRoute.enabled=true", "--set", "tlsRoute.gateway.name=edge"]
    more += ["--set", f"tlsRoute.apiVersion={unknown}"]
    with pytest.raises(AssertionError, match=re.escape(unknown)):
        site.install(SERVER, *more)
    assert site.cluster.request(path)["metadata"]["generation"] == before


def test_uninstalling_keeps_the_sites_key_and_data(site: Site) -> None:
    """Last: it takes the release away. Hooks need a node, so they run in their own tests."""
    site.run("uninstall", EDGE, "--no-hooks")
    get = site.cluster.request
    assert get(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{EDGE}")
    assert get(f"/api/v1/namespaces/{CLIENTS}")["status"]["phase"] == "Active"
    with pytest.raises(urllib.error.HTTPError) as gone:
        get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{EDGE}")
    assert gone.value.code == 404
