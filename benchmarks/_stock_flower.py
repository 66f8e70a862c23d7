"""Stock Flower's deployment runtime on this machine: one SuperLink, SuperNodes, `flwr run`.

Flower runs unmodified, over plain HTTP on loopback (it has no mutual TLS), with telemetry, update
checks and dependency installation off, and with its own home directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["environment", "run"]

BIN = Path(sys.executable).parent


def run(
    app: Path, *, sites: int, config: Mapping[str, object], folder: Path, timeout: float
) -> dict[str, Any]:
    """Run ``app`` on ``sites`` SuperNodes and return the time stamps of its ServerApp.

    ``started`` is the time of day at which the first process was started, ``submitted`` that of
    `flwr run`.

    :raises RuntimeError: when there was no time stamp within ``timeout`` seconds, with the logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    stamps = folder / "stamps.json"
    begun = time.time()
    with contextlib.ExitStack() as stack:
        port = free_port()
        stack.enter_context(
            _process("superlink", _superlink(port), folder=folder, home=home, begin=port)
        )
        for number in range(sites):
            own = free_port()
            stack.enter_context(
                _process(
                    f"supernode-{number}",
                    _supernode(port, own, number, sites),
                    folder=folder,
                    home=home,
                )
            )
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "stock"\n\n[superlink.stock]\n'
            f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        submitted = time.time()
        values = {**config, "stamps": str(stamps), "min-sites": sites}
        chosen = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        command = [str(BIN / "flwr"), "run", str(app), "stock", "--run-config", chosen]
        done = subprocess.run(
            command, env=environment(home), capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"flwr run failed:\n{done.stdout}\n{done.stderr}")
        while not (stamps.exists() and stamps.stat().st_size):
            if time.time() - submitted > timeout:
                logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
                raise RuntimeError(f"no result within {timeout:.0f} s:\n{done.stdout}\n{logs}")
            time.sleep(0.1)
        time.sleep(0.1)
        result: dict[str, Any] = json.loads(stamps.read_text())
    return {**result, "started": begun, "submitted": submitted}


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower uses no network and no other home directory."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """Return a port that was free at the time of the call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _superlink(port: int) -> list[str]:
    return [
        str(BIN / "flower-superlink"),
        *("--insecure", "--host", "127.0.0.1", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    ]


def _supernode(port: int, own: int, number: int, sites: int) -> list[str]:
    return [
        str(BIN / "flower-supernode"),
        *("--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)),
        *("--node-config", f"partition-id={number} num-partitions={sites}"),
    ]


@contextlib.contextmanager
def _process(
    name: str, command: list[str], *, folder: Path, home: Path, begin: int | None = None
) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            env=environment(home),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if begin is not None:
            _await_port(begin, child, folder / f"{name}.log")
        yield
    finally:
        _end(child)


def _await_port(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    until = time.time() + 60
    while time.time() < until:
        if child.poll() is not None:
            raise RuntimeError(f"{log.stem} ended:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} does not listen:\n{log.read_text()[-2000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children: it leads its own session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
            return
