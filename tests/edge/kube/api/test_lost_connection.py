"""410 Gone: an API server that no longer knows the version from which an agent goes on.

The server, its etcd and the compaction of its history are real. Between them and the agent is a
TCP relay that the test cuts, as a network would be.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.kube.api import JOBS, Follower, Kube
from edge.kube.api.errors import Gone, Unavailable
from edge.kube.api.resources import Resource
from fedlearn.job.phase import Phase
from tests.harness.cluster import Cluster
from tests.harness.cluster_site import ClusterSite, workload

pytestmark = pytest.mark.e2e

MAPS = Resource(plural="configmaps")


class Relay:
    """Passes TCP connections on to ``port``, until it is cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._whole.is_set():
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break what is open, and take nothing new."""
        self._whole.clear()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        """Pass connections on again."""
        self._whole.set()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def relay(cluster: Cluster) -> Iterator[Relay]:
    made = Relay(int(cluster.url.rpartition(":")[2]))
    yield made
    made.close()


@pytest.fixture
def kube(
    cluster: Cluster, cluster_site: ClusterSite, relay: Relay, tmp_path: Path
) -> Iterator[Kube]:
    """An administrator's connection to the site's namespace, through the relay."""
    document = json.loads(cluster.admin.read_text())
    document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
    path = tmp_path / "relayed.kubeconfig"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    made = Kube.connect(path, namespace=cluster_site.namespace)
    yield made
    made.close()


def compact(cluster: Cluster) -> None:
    """Have etcd forget every version but the present ones."""
    base = f"http://127.0.0.1:{cluster._etcd}/v3/kv"

    def call(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{base}/{path}", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    revision = call("range", {"key": "AA=="})["header"]["revision"]
    call("compaction", {"revision": revision, "physical": True})


def configmap(cluster: Cluster, namespace: str, name: str, method: str = "POST") -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    if method == "POST":
        cluster.request(path, method, {"metadata": {"name": name, "labels": {"of": "test"}}})
    else:
        cluster.request(f"{path}/{name}", method)


def until(reached: Callable[[], Any], what: str, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def forget(cluster: Cluster) -> None:
    """Lose all history: compacted in etcd, and gone from the API server's memory."""
    compact(cluster)
    cluster.kill_api_server()
    cluster.restart_api_server()


def test_410_gone_makes_a_watch_begin_again_with_a_list(
    cluster: Cluster, cluster_site: ClusterSite, kube: Kube, relay: Relay
) -> None:
    namespace = cluster_site.namespace
    configmap(cluster, namespace, "kept")
    configmap(cluster, namespace, "deleted")
    lists: list[set[str]] = []
    changes: list[tuple[str, bool]] = []
    follower = Follower(
        kube,
        MAPS,
        listed=lambda found: lists.append({one["metadata"]["name"] for one in found}),
        changed=lambda one, gone: changes.append((one["metadata"]["name"], gone)),
        selector={"of": "test"},
    )
    try:
        until(lambda: lists, "the first list")
        configmap(cluster, namespace, "seen")
        until(lambda: ("seen", False) in changes, "a change to be seen")
        stale = follower._version
        relay.cut()
        # What happens now is seen by nobody, and then forgotten.
        configmap(cluster, namespace, "deleted", "DELETE")
        configmap(cluster, namespace, "missed")
        forget(cluster)
        answered = _answer_to(cluster_site.cluster, kube, relay, stale)
        assert answered == 410
        until(lambda: len(lists) >= 2, "the watch to begin again")
        assert lists[-1] == {"kept", "seen", "missed"}
        # And it goes on from there.
        configmap(cluster, namespace, "after")
        until(lambda: ("after", False) in changes, "the watch to go on")
    finally:
        follower.stop()
    assert ("missed", False) not in changes


def _answer_to(cluster: Cluster, kube: Kube, relay: Relay, version: str) -> int:
    """Mend the relay; return the status with which the server answers a watch from ``version``."""
    relay.mend()
    try:
        answer = kube.stream(MAPS, {"of": "test"}, version=version, seconds=5)
    except Gone as error:
        return error.status
    with contextlib.closing(answer):
        event = json.loads(next(iter(answer.stream(65_536))).split(b"\n")[0])
    assert event["type"] == "ERROR", event
    return int(event["object"]["code"])


def test_410_gone_between_two_pages_of_a_list_begins_the_list_again(
    cluster: Cluster, cluster_site: ClusterSite, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.kube.api.connection._PAGE", 2)
    names = {f"map-{number}" for number in range(5)}
    for name in names:
        configmap(cluster, cluster_site.namespace, name)
    asked: list[str] = []
    ask = kube._json

    def spoiled(method: str, path: str, *rest: Any, **more: Any) -> Any:
        page = ask(method, path, *rest, **more)
        asked.append(path)
        if len(asked) == 1:
            configmap(cluster, cluster_site.namespace, "another")
            compact(cluster)
        return page

    monkeypatch.setattr(kube, "_json", spoiled)
    with pytest.raises(Gone):
        kube.snapshot(MAPS, {"of": "test"})
    asked.clear()
    configmap(cluster, cluster_site.namespace, "another", "DELETE")
    lists: list[set[str]] = []
    follower = Follower(
        kube,
        MAPS,
        listed=lambda found: lists.append({one["metadata"]["name"] for one in found}),
        changed=lambda one, gone: None,
        selector={"of": "test"},
    )
    try:
        until(lambda: lists, "the list")
    finally:
        follower.stop()
    # The first attempt reported nobody half a list.
    assert lists == [{*names, "another"}]
    assert len(asked) > 3


def test_410_gone_loses_no_client(
    cluster: Cluster, cluster_site: ClusterSite, relay: Relay, tmp_path: Path
) -> None:
    """A client ends while its agent is cut off and the server forgets: the agent learns of it."""
    document = json.loads(cluster_site.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
    relayed = tmp_path / "agent.kubeconfig"
    relayed.write_text(json.dumps(document))
    relayed.chmod(0o600)
    work = ["/bin/sh", "-c", "while ! [ -e go ]; do sleep 0.1; done"]
    node = cluster_site.node("n", work)
    direct, cluster_site.kubeconfig = cluster_site.kubeconfig, relayed
    launcher = cluster_site.launcher()
    cluster_site.kubeconfig = direct
    launcher.launch(workload("a"))
    cluster_site.reports.wait("a", Phase.RUNNING)
    relay.cut()
    (pod,) = node.started()
    (node.folder / pod / "go").touch()

    until(lambda: cluster_site.jobs()["a"]["status"].get("succeeded"), "the Job to succeed unseen")
    forget(cluster)
    with pytest.raises(Unavailable):
        Kube.connect(relayed, namespace=cluster_site.namespace).objects(JOBS)
    relay.mend()
    cluster_site.reports.wait("a", Phase.SUCCEEDED, seconds=60)
    assert len(node.started()) == 1
