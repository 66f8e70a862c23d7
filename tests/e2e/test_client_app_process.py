"""Whole runs with apps that start processes of their own, end badly, or cannot be loaded."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import JobError
from tests.harness.federation import FederationHarness, eventually

pytestmark = pytest.mark.e2e

MARKER = "marker-of-an-app-that-leaves-processes"

CLIENT = f"""
import multiprocessing, os, subprocess, sys, time
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

app = ClientApp()

def leave():
    if os.fork() == 0:
        os.setsid()
        command = [sys.executable, "-c", "import time; time.sleep(600)", {MARKER!r}]
        subprocess.Popen(command, start_new_session=True).wait()
        os._exit(0)

@app.train()
def train(message, context):
    leave()
    time.sleep(context.run_config["slow"])
    loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2, num_workers=2)
    total = sum(float(batch.sum()) for (batch,) in loader)
    with multiprocessing.Manager() as manager:
        total += sum(manager.list([1, 2]))
    arrays = message.content["arrays"]
    content = RecordDict()
    content["arrays"] = ArrayRecord({{n: Array(arrays[n].numpy() + np.float32(1)) for n in arrays}})
    threads = torch.get_num_threads()
    content["metrics"] = MetricRecord({{"num-examples": 5, "total": total, "threads": threads}})
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({{"num-examples": 5, "error": 0.0}})
    return Message(RecordDict({{"metrics": metrics}}), reply_to=message)
"""


def alive() -> set[str]:
    """The processes that the app started and that are there."""
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if MARKER.encode() in words:
                found.add(path.name)
    return found


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    # A long name: sockets of multiprocessing need a temporary folder with a short one.
    folder = tmp_path_factory.mktemp("a-folder-with-a-name-that-is-as-long-as-names-may-be" * 2)
    with FederationHarness(folder / "harness", ("site-a",), client_app=CLIENT) as made:
        yield made


def test_workers_and_managers_work_and_nothing_outlives_the_job(
    harness: FederationHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.run("workers", rounds=2, resources={"cpu": 2.0})
    metrics = [event.metrics for event in job.of("update.received")]
    assert [(each["total"], each["threads"]) for each in metrics] == [(31.0, 2)] * 2
    with eventually() as wait:
        wait(lambda: not alive())


@pytest.mark.parametrize("who", ["client", "agent"])
def test_nothing_outlives_a_client_or_an_agent_that_is_killed(
    harness: FederationHarness, who: str
) -> None:
    job = harness.job(f"kill-{who}", config={"slow": 60.0}, deadline_s=120).submit()
    with eventually(90) as wait:
        wait(lambda: len(alive()) == 1)
    left = alive()
    pid = harness.client_pid("site-a", job.name)
    if who == "agent":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(pid, signal.SIGKILL)
    # The agent starts the client again, whose app starts another one.
    with eventually(15) as wait:
        wait(lambda: not left & alive())
    with contextlib.suppress(JobError):  # with its only client gone, it may have failed already
        harness.operator.cancel_job(job.name)
    with eventually(20) as wait:
        wait(lambda: not alive())


def test_why_an_app_cannot_be_loaded_reaches_whoever_follows_the_job(tmp_path: Path) -> None:
    text = "import not_installed_package\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
    with FederationHarness(tmp_path / "harness", ("site-a",), client_app=text) as harness:
        job = harness.job("badimport", deadline_s=30).submit()
        lost = job.wait_for("client.lost", seconds=30)[0]
        assert lost.reason == (
            "its client failed: the app cannot be loaded: small/client_app.py:1: "
            "ModuleNotFoundError: No module named 'not_installed_package'"
        )
