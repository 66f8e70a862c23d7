"""Nothing runs twice, a kill loses at most one cell, and what fails is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, Interrupted
from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.schedule import Progress
from tests.fedlearn.experiment.conftest import HEAD, RATES

Make = Callable[..., Experiment]
ONE_SEED = HEAD.replace("[1, 2, 3]", "[1]")


def ends(how: str) -> str:
    return f'[[grid]]\nname = "end"\nzip = {{ "config.end" = ["no", "{how}"] }}\n'


def runs(experiment: Experiment) -> list[str]:
    return (experiment.store.folder / "runs").read_text().split()


def test_every_cell_runs_once(experiment: Make) -> None:
    one = experiment(head=HEAD.replace("[1, 2, 3]", "[1, 2]"))
    seen: list[Progress] = []
    state = one.run(jobs=2, show=seen.append)
    assert state.complete
    assert state.count("finished") == 4
    assert sorted(runs(one)) == sorted(cell.name for cell in state.cells)
    assert [each.done for each in seen if each.kind == "finished"] == [1, 2, 3, 4]
    assert seen[-1].left_seconds == 0.0
    before = (one.store.folder / "rounds.parquet").read_bytes()
    assert one.run(jobs=2).complete
    assert len(runs(one)) == 4
    assert (one.store.folder / "rounds.parquet").read_bytes() == before


def test_a_change_of_what_matters_runs_again_and_of_a_name_does_not(
    experiment: Make, write: Callable[..., Path]
) -> None:
    one = experiment(head=ONE_SEED)
    one.run(jobs=2)
    assert len(runs(one)) == 2
    renamed = experiment(RATES.replace('name = "rate"', 'name = "step"'), ONE_SEED)
    renamed.run(jobs=2)
    assert len(runs(one)) == 2
    app = one.spec.job.parent / "app" / "tiny_app.py"
    path = write(head=ONE_SEED)
    app.write_text("one = 2\n")
    Experiment.load(path).run(jobs=2)
    assert len(runs(one)) == 4


def test_only_some_cells_run(experiment: Make) -> None:
    one = experiment()
    state = one.run(jobs=1, only="0.1/seed-[2]")
    assert runs(one) == ["0.1/seed-2"]
    assert state.count("waiting") == 5
    with pytest.raises(ConfigError, match=r"'nothing' matches no cell; the first are 0.1/seed-1"):
        one.run(jobs=1, only="nothing")


@pytest.mark.parametrize(("how", "error"), [("fail", "no such data"), ("kill", "signal 9")])
def test_a_failed_cell_is_recorded_and_runs_again_on_request_only(
    experiment: Make, how: str, error: str
) -> None:
    one = experiment(ends(how), ONE_SEED)
    state = one.run(jobs=2)
    assert (state.count("finished"), state.count("failed")) == (1, 1)
    (failed,) = [cell for cell in state.cells if cell.failure]
    assert failed.failure is not None
    assert error in failed.failure.error
    one.run(jobs=2)
    assert len(runs(one)) == 2
    assert one.run(jobs=2, retry_failed=True).complete
    assert len(runs(one)) == 3


def test_a_result_that_was_cut_short_is_named_and_only_its_cell_runs_again(
    experiment: Make,
) -> None:
    one = experiment(head=ONE_SEED)
    whole, cut = one.run(jobs=2).cells
    path = one.store.cell_folder(cut.key) / "result.json"
    path.write_bytes(path.read_bytes()[:-40])
    state = one.status()
    assert [cell.state for cell in state.cells] == ["finished", "interrupted"]
    (fault,) = state.faults
    assert f"{cut.key}/result.json: was cut short or changed" in fault
    results, missing, faults = one.results()
    assert [each.cell.name for each in results] == [whole.name]
    assert (missing, faults) == ([cut.name], [fault])
    assert one.run(jobs=1).complete
    assert runs(one)[2:] == [cut.name]


def test_a_parquet_file_that_was_cut_short_is_named_and_made_again(experiment: Make) -> None:
    one = experiment(head=ONE_SEED)
    one.run(jobs=2)
    path = one.store.folder / "rounds.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (fault,) = one.status().faults
    assert "rounds.parquet: was cut short or changed" in fault
    one.run(jobs=2)
    assert path.read_bytes() == whole
    assert one.status().faults == ()
    assert len(runs(one)) == 2


def test_ctrl_c_keeps_what_has_finished(experiment: Make) -> None:
    one = experiment(ends("wait"), ONE_SEED)

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (one.store.folder / "waits").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="1 of 2 cells ended"):
        one.run(jobs=1)
    state = one.status()
    assert [cell.state for cell in state.cells] == ["finished", "interrupted"]
    assert (one.store.folder / "cells.parquet").exists()
    assert one.run(jobs=1).complete
    assert runs(one) == ["no/seed-1", "wait/seed-1", "wait/seed-1"]


def test_sigkill_of_the_command_loses_one_cell_at_most(experiment: Make, tmp_path: Path) -> None:
    one = experiment(ends("wait"), ONE_SEED)
    program = Path(__file__).with_name("synthetic_cell.py")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedlearn.experiment import schedule\n"
        "from fedlearn.experiment.experiment import Experiment\n"
        f"schedule.COMMAND = (sys.executable, {str(program)!r})\n"
        f"Experiment.load(Path({str(tmp_path / 'experiment.toml')!r})).run(jobs=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (one.store.folder / "waits").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ConfigError, match="another process runs this experiment"):
        one.run(jobs=1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [cell.state for cell in one.status().cells] == ["finished", "interrupted"]
    assert one.run(jobs=1).complete
    assert runs(one) == ["no/seed-1", "wait/seed-1", "wait/seed-1"]


def test_a_cell_that_makes_no_job_is_refused_before_any_runs(experiment: Make) -> None:
    one = experiment('[[grid]]\nzip = { "strategy.name" = ["fedavg", "fedmean"] }\n')
    with pytest.raises(ConfigError, match=r"the cell fedmean/seed-1: .*strategy.name"):
        one.run()
    assert not list((one.store.folder / "cells").iterdir())


def test_a_key_that_is_no_table_is_refused(experiment: Make) -> None:
    one = experiment('[[grid]]\nzip = { "rounds.many" = [1, 2] }\n')
    with pytest.raises(ConfigError, match=r"rounds.many: rounds is not a table"):
        one.run()


def test_jobs_are_at_least_one(experiment: Make) -> None:
    with pytest.raises(ConfigError, match="--jobs: must be at least 1, not 0"):
        experiment().run(jobs=0)


SEARCH = """
[search]
trials = 3
batch = 2
seed = 3
[search.variables."config.rate"]
low = 0.01
high = 1.0
log = true
"""


def test_a_search_draws_the_same_again_and_finds_better_values(experiment: Make) -> None:
    one = experiment(SEARCH, ONE_SEED)
    state = one.run(jobs=2)
    assert state.complete
    assert len(state.cells) == 3
    before = {cell.key for cell in state.cells}
    again = one.run(jobs=2)
    assert {cell.key for cell in again.cells} == before
    assert len(runs(one)) == 3
    with pytest.raises(ConfigError, match="a search has no cells before it draws them"):
        one.run(only="trial-0/*")
    longer = experiment(SEARCH.replace("trials = 3", "trials = 4"), ONE_SEED)
    assert before < {cell.key for cell in longer.run(jobs=2).cells}
    assert len(runs(one)) == 4
