"""trackio needs another pillow than the other packages here, so that it has an environment."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """\
import importlib.metadata, json, sys
from fedlearn.job import events
from fedlearn.tracking.record import record

story = [events.JobStarted(job="heart", rounds=3, sites=("north",))]
for number in (1, 2, 3):
    story.append(events.RoundStarted(round=number, rounds=3, sites=("north",)))
    story.append(events.RoundFinished(
        round=number, rounds=3, seconds=0.5, sites=1, bytes=9, metrics={"loss": 1 / number}))
story.append(events.JobFinished())

def go(count):
    record([(event, 1000) for event in story[:count]], to="trackio", name="heart", project="p",
           at="db", parameters={"rounds": "3"}, page=lambda history: "<html>")

for count in map(int, sys.argv[1:]):
    go(count)

from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("p")
print(json.dumps({
    "run": run,
    "loss": [(row["step"], row["loss"]) for row in SQLiteStorage.get_logs("p", run)],
    "rounds": SQLiteStorage.get_run_config("p", run)["rounds"],
    "distributions": importlib.metadata.packages_distributions()["trackio"],
    "artifacts": [str(item) for item in SQLiteStorage.get_artifacts("p")],
}))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_is_recorded_in_its_database_and_never_twice(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "trackio>=0.30"], check=True)

    def run(*counts: str) -> dict[str, object]:
        done = subprocess.run(
            [python, "-c", CODE, *counts], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)  # nothing else is on stdout
        return found

    run("4")
    found = run("8", "8")
    assert str(found["run"]).startswith("heart-")
    assert found["loss"] == [[1, 1.0], [2, 0.5], [3, 1 / 3]]
    assert found["rounds"] == "3"
    assert found["distributions"] == ["trackio"]
    assert len(list(found["artifacts"])) >= 1  # type: ignore[call-overload]
    assert (tmp_path / "db/p.db").is_file()
