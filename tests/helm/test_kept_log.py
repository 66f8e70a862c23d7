"""tools/kept-log.sh distinguishes a log that a guest hides from one that is empty or missing.

kubectl and the API server are real. The test serves the node's port for logs, with the answers of a
kubelet whose guest hides its output.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.harness.charts import Helm
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
NODE = "logs"
TRACE = b"Traceback (most recent call last):\n  TimeoutError: timed out\n"


class Kubelet:
    """A node's port that answers for logs: by pod, a status and a body."""

    def __init__(self, cluster: Cluster) -> None:
        self.logs: dict[str, tuple[int, bytes]] = {}
        kubelet = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                # /containerLogs/NAMESPACE/POD/CONTAINER
                pod = self.path.partition("?")[0].split("/")[3]
                status, body = kubelet.logs[pod]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        certificate, key = cluster.authority.issue(
            "kubelet-logs", f"system:node:{NODE}", addresses=("127.0.0.1",)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Setup:
    """A namespace with two pods on that node: a client, and nobody's."""

    def __init__(self, cluster: Cluster, kubelet: Kubelet) -> None:
        self.cluster, self.logs = cluster, kubelet.logs

    def pod(self, name: str, *, started: bool = True) -> None:
        path = "/api/v1/namespaces/default/pods"
        spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "x"}]}
        self.cluster.request(path, "POST", {"metadata": {"name": name}, "spec": spec})
        if not started:
            return
        state = {"running": {"startedAt": "2030-01-01T00:00:00Z"}}
        status = {
            "phase": "Running",
            "containerStatuses": [
                {
                    "name": "c",
                    "image": "x",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        self.cluster.request(f"{path}/{name}/status", "PATCH", {"status": status})

    def judged(self, pod: str = "client", *, kubeconfig: Path | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [str(ROOT / "tools/kept-log.sh"), "default", pod, "nobody"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.cluster.folder),
                "KUBECONFIG": str(kubeconfig or self.cluster.admin),
            },
        )
        return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with Cluster(tmp_path_factory.mktemp("logs")) as cluster:
        kubelet = Kubelet(cluster)
        cluster.request("/api/v1/nodes", "POST", {"metadata": {"name": NODE}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
        }
        cluster.request(f"/api/v1/nodes/{NODE}/status", "PATCH", {"status": status})
        made = Setup(cluster, kubelet)
        made.pod("client")
        made.pod("nobody")
        made.pod("waiting", started=False)
        yield made
        kubelet.close()


@pytest.fixture(autouse=True)
def as_it_should_be(place: Setup) -> None:
    place.logs |= {"client": (200, b""), "nobody": (200, TRACE), "waiting": (200, b"")}


def test_an_empty_log_beside_one_that_is_not_is_kept(place: Setup) -> None:
    assert place.judged() == (0, "its log is empty, that of nobody is not")


def test_an_error_of_the_kubelet_is_a_kept_log(place: Setup) -> None:
    place.logs["client"] = (500, b"failed to read the stream: ReadStreamRequest is blocked")
    status, printed = place.judged()
    assert status == 0
    assert printed.startswith("the kubelet has none: ")
    assert "ReadStreamRequest is blocked" in printed


def test_a_log_that_can_be_read_is_not_kept(place: Setup) -> None:
    place.logs["client"] = (200, b"fedlearn client: started\n")
    assert place.judged() == (1, "it can be read: fedlearn client: started")


def test_an_empty_log_among_empty_ones_states_nothing(place: Setup) -> None:
    place.logs["nobody"] = (200, b"")
    status, printed = place.judged()
    assert status == 2
    assert "so an empty log proves nothing" in printed


def test_a_cluster_that_shows_nobodys_log_states_nothing(place: Setup) -> None:
    place.logs["nobody"] = (500, b"no logs today")
    status, printed = place.judged()
    assert status == 2
    assert "nobody cannot be read either" in printed
    assert "no logs today" in printed


def test_a_container_that_has_not_started_has_written_nothing(place: Setup) -> None:
    status, printed = place.judged("waiting")
    assert status == 2
    assert "has not started" in printed


def test_what_is_not_the_guests_doing_states_nothing(place: Setup, tmp_path: Path) -> None:
    status, printed = place.judged("missing")
    assert status == 2
    assert "not found" in printed
    # The tester may not read logs at all.
    stranger = place.cluster.kubeconfig("stranger")
    status, printed = place.judged(kubeconfig=stranger)
    assert status == 2
    assert "forbidden" in printed.lower()
    # The node is away while its pod is asked.
    place.logs["client"] = (404, b"not found")
    status, printed = place.judged()
    assert status == 2
    assert "the guest is not the cause" in printed


def test_the_script_for_clusters_stops_at_values_that_helm_refuses(
    place: Setup, helm: Helm, tmp_path: Path
) -> None:
    """Against the real API server, as far as it comes without a TEE: nothing is half-installed."""
    for name in ("server.yaml", "edge.yaml", "job.toml"):
        (tmp_path / name).write_text("")
    done = subprocess.run(
        [str(ROOT / "tools/e2e-coco.sh")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": f"{Path(sys.executable).parent}:{helm.program.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "KUBECONFIG": str(place.cluster.admin),
            "SERVER_VALUES": str(tmp_path / "server.yaml"),
            "EDGE_VALUES": str(tmp_path / "edge.yaml"),
            "JOB": str(tmp_path / "job.toml"),
        },
    )
    assert done.returncode != 0
    assert "config" in done.stderr
    assert "ok  " not in done.stdout
    secrets = place.cluster.request("/api/v1/secrets?labelSelector=owner%3Dhelm")
    assert secrets["items"] == []
