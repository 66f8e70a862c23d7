"""The notebook is executed from top to bottom, and an interrupted cell leaves its job running."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

import fedlearn
from fedlearn.cli.job import template
from fedlearn.job import events
from tests.fakes.lone_coordinator import LoneCoordinator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples/notebook/federated-training.ipynb"


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notebook", "quickstart"):
        shutil.copytree(
            ROOT / "examples" / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("runs", "__pycache__"),
        )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    notebook = nbformat.read(tmp_path / "notebook" / NOTEBOOK.name, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "notebook")}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    checked, tried, metrics, plot, model, ledger = outputs
    assert "tumours: 5 rounds on 2 sites" in checked[0].text
    assert "insecure: " in tried[0].text
    (shown,) = [each.data for each in tried if each.output_type == "display_data"]
    assert "tumours  finished  round 5/5" in shown["text/plain"]
    assert "<script" not in shown["text/html"]
    assert tried[-1].data["text/plain"] == "Result('tumours-1', 'finished', round 5/5)"
    assert "accuracy" in metrics[0].data["text/html"]
    assert len(plot[0].data["image/png"]) > 10_000
    assert "right on 9" in model[0].text
    assert "entries, intact: " in ledger[0].text
    assert (tmp_path / "notebook/runs/tumours-1/report.html").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


class Kernel:
    """A real kernel, with the messages of what it runs."""

    def __init__(self, manager: KernelManager) -> None:
        self._manager = manager
        self._client = manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def run(self, code: str, *, interrupt_at: str = "") -> list[dict[str, Any]]:
        """Run a cell; interrupt it once it has displayed ``interrupt_at``."""
        request = self._client.execute(code)
        found: list[dict[str, Any]] = []
        while True:
            message = self._client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return found
            found.append(message["content"])
            if interrupt_at and interrupt_at in str(message["content"].get("data", "")):
                interrupt_at = ""
                self._manager.interrupt_kernel()

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    running = Kernel(manager)
    yield running
    running.close()


def test_an_interrupted_cell_leaves_the_job_running_and_states_so(
    kernel: Kernel, tmp_path: Path
) -> None:
    template.write(tmp_path / "heart", "heart")
    with LoneCoordinator.started(tmp_path) as there:
        sites = ("site-a", "site-b")
        there.coordinator.goes_on = True
        there.coordinator.story = [
            events.JobStarted(job="heart", rounds=2, sites=sites),
            events.RoundStarted(round=1, rounds=2, sites=sites),
        ]
        kernel.run(
            "import fedlearn\n"
            f"coordinator = fedlearn.connect({str(there.login)!r})\n"
            f"run = coordinator.submit(fedlearn.Job.load({str(tmp_path / 'heart')!r}))"
        )
        stopped = kernel.run("run.follow()", interrupt_at="round 1/2")
        (error,) = [each for each in stopped if "ename" in each]
        assert error["ename"] == "Interrupted"
        assert error["evalue"].startswith("job heart goes on at the coordinator; `run.follow()`")
        status = kernel.run("print(run.status, len(run.result().history.rounds))")
        assert status[-1]["text"] == "running 1\n"
        assert fedlearn.connect(there.login).job("heart").state.status == "running"
