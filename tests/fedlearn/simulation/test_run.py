"""A simulated job: the same bits in every way of running it, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedlearn.api.job import Job
from fedlearn.api.result import Result
from fedlearn.cli import main
from fedlearn.errors import (
    ConfigError,
    FedlearnError,
    Interrupted,
    JobError,
    PrivacyError,
    QuorumNotReached,
)
from fedlearn.job import events
from fedlearn.results.run_folder import RunFolder
from fedlearn.simulation import Call, Hook, SimulatedRun, simulate
from fedlearn.simulation.clients.workers import WorkerLost, Workers
from fedlearn.update.arrays import Update
from tests.fedlearn.simulation.jobs import CLIENT, JOB, write_job


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path)


def bits(run: SimulatedRun) -> dict[str, bytes]:
    assert run.model
    return {name: array.tobytes() for name, array in run.model.items()}


def refusal(job: Path, kind: type[FedlearnError], **more: Any) -> str:
    with pytest.raises(kind) as caught:
        simulate(job, **more)
    return f"{caught.value} | {caught.value.hint}"


def test_a_run_returns_model_and_history_and_states_what_was_left_out(
    job: Path, tmp_path: Path
) -> None:
    run = simulate(job, folder=tmp_path / "run")
    assert [each.number for each in run.history] == [1, 2, 3]
    last = run.history[-1]
    assert last.train["calls"] == 3.0
    assert last.evaluate["score"] > 0
    assert (last.sites, last.virtual_seconds) == (3, None)
    assert min(last.bytes_sent, last.bytes_received, last.seconds) > 0
    assert "attestation, TLS and sealing were left out" in run.insecure
    kept = Result.load(run.folder)
    assert "attestation, TLS and sealing were left out" in kept.insecure
    assert [each.number for each in kept.history.finished] == [1, 2, 3]
    kept_model = Update.from_bytes((run.folder / "model.safetensors").read_bytes())
    assert bits(run) == {name: array.tobytes() for name, array in kept_model.items()}
    assert not (run.folder / "simulation").exists()
    with pytest.raises(JobError, match="simulated, so that it has no ledger"):
        kept.verify_ledger()


def test_a_temporary_run_is_gone_with_its_result(job: Path) -> None:
    run = simulate(job)
    folder = run.folder
    assert RunFolder.is_one(folder)
    del run
    assert not folder.exists()


def test_the_number_of_workers_changes_no_bit(job: Path) -> None:
    here = simulate(job, clients=7)
    assert bits(simulate(job, clients=7)) == bits(here)
    assert bits(simulate(job, clients=7, workers=2)) == bits(here)
    assert bits(simulate(job, clients=7, seed=8)) != bits(here)


class Kill(Hook):
    """Kills the workers once, in the second round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed: list[int] = []
        self._pools: list[Workers] = []
        begin = Workers.__init__

        def begun(pool: Workers, *args: Any, **more: Any) -> None:
            begin(pool, *args, **more)
            self._pools.append(pool)

        monkeypatch.setattr(Workers, "__init__", begun)

    def answered(self, call: Call, asked: Any, arrays: Any, metrics: Any) -> Any:
        if call.round == 2 and not self.killed:
            self.killed = self._pools[0].pids
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)
        return arrays


def test_calls_of_killed_workers_are_made_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = Kill(monkeypatch)
    run = simulate(job, clients=5, workers=2, hooks=[kill])
    assert kill.killed
    assert bits(run) == bits(simulate(job, clients=5))


def test_a_client_whose_worker_ends_each_time_is_named(tmp_path: Path) -> None:
    dies = CLIENT.replace("    arrays = message", "    os._exit(9)\n    arrays = message", 1)
    job = write_job(tmp_path, client=dies)
    text = refusal(job, JobError, workers=1)
    assert "each of 3 attempts at the call of north" in text
    assert "status 9" in text
    assert issubclass(WorkerLost, JobError)


KILLED = """
import os, signal, sys
from pathlib import Path
from fedlearn.simulation import Hook, simulate

class Kill(Hook):
    calls = 0
    def answered(self, call, asked, arrays, metrics):
        self.calls += 1
        if call.round == 2 and call.kind == sys.argv[2] and call.site == "south":
            os.kill(os.getpid(), signal.SIGKILL)
        return arrays

simulate(sys.argv[1], folder=Path(sys.argv[3]), hooks=[Kill()])
"""


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    job: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    arguments = [sys.executable, "-c", KILLED, str(job), kind, str(folder)]
    ended = subprocess.run(arguments, cwd=Path.cwd(), check=False)
    assert ended.returncode == -signal.SIGKILL
    resumed = simulate(job, folder=folder, resume=True)
    assert bits(resumed) == bits(simulate(job))
    assert [each.number for each in resumed.history] == [1, 2, 3]
    # The app counts its calls in its state.
    assert resumed.history[-1].train["calls"] == 3.0
    # One that has finished is returned as it is.
    again = simulate(job, folder=folder, resume=True)
    assert bits(again) == bits(resumed)
    assert again.history == resumed.history


def test_ctrl_c_keeps_the_run_and_states_how_it_goes_on(job: Path, tmp_path: Path) -> None:
    class Stop(Hook):
        def answered(self, call: Call, asked: Any, arrays: Any, metrics: Any) -> Any:
            if call.round == 2:
                raise KeyboardInterrupt
            return arrays

    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="the run is kept in") as caught:
        simulate(job, folder=folder, hooks=[Stop()])
    assert "resume=True" in caught.value.hint
    assert bits(simulate(job, folder=folder, resume=True)) == bits(simulate(job))


def test_what_cannot_be_resumed_is_refused(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(job, folder=folder)
    assert "exists" in refusal(job, ConfigError, folder=folder)
    text = refusal(job, ConfigError, folder=folder, resume=True, seed=9)
    assert "the job was changed since this run began" in text
    assert "not the folder of a run" in refusal(job, ConfigError, folder=tmp_path, resume=True)
    assert "folder: is needed" in refusal(job, ConfigError, resume=True)


def test_the_generators_and_modules_of_the_caller_stay(job: Path) -> None:
    before = dict(sys.modules)
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    simulate(job)
    assert (random.random(), np.random.rand()) == expected
    assert "tiny" not in sys.modules
    assert sys.modules.keys() >= before.keys()


class Watch(Hook):
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.rounds: dict[int, list[str]] = {}

    def asked(self, call: Call, arrays: Any) -> Any:
        self.calls.append(call)
        return arrays

    def round_answered(self, round: int, answers: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: A002
        self.rounds[round] = sorted(answers)
        return answers


class Zero(Hook):
    """Replaces the update of one site."""

    def answered(self, call: Call, asked: Any, arrays: Any, metrics: Mapping[str, Any]) -> Any:
        if call.site != "south" or call.kind != "train":
            return arrays
        assert metrics["num-examples"] == 11
        return {name: np.zeros_like(array) for name, array in arrays.items()}


class ZeroTogether(Hook):
    def round_answered(self, round: int, answers: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: A002
        zero = {name: np.zeros_like(array) for name, array in answers["south"].items()}
        return {**answers, "south": zero}


def test_hooks_see_every_call_and_change_what_they_return(job: Path) -> None:
    watch = Watch()
    plain = simulate(job)
    assert bits(simulate(job, hooks=[watch])) == bits(plain)
    assert {(each.site, each.round) for each in watch.calls if each.kind == "train"} == {
        (site, number) for site in ("north", "south", "west") for number in (1, 2, 3)
    }
    assert watch.rounds == {n: ["north", "south", "west"] for n in (1, 2, 3)}
    changed = simulate(job, hooks=[Zero()])
    assert bits(changed) != bits(plain)
    assert bits(simulate(job, hooks=[ZeroTogether()])) == bits(changed)


class Shift(Hook):
    def asked(self, call: Call, arrays: Any) -> Any:
        return {name: array + np.ones((), array.dtype) for name, array in arrays.items()}


def test_a_hook_changes_the_model_that_is_sent(job: Path) -> None:
    assert bits(simulate(job, hooks=[Shift()])) != bits(simulate(job))
    assert bits(simulate(job, hooks=[Shift()], workers=1)) == bits(simulate(job, hooks=[Shift()]))


def test_a_hook_may_not_change_the_shape_of_an_update(job: Path) -> None:
    class Longer(Hook):
        def answered(self, call: Call, asked: Any, arrays: Any, metrics: Any) -> Any:
            return {name: np.append(array, array) for name, array in arrays.items()}

    assert "0 of the 3 updates" in refusal(job, QuorumNotReached, hooks=[Longer()])


def test_not_a_number_of_a_client_is_refused_and_named(tmp_path: Path) -> None:
    job = write_job(
        tmp_path,
        client=CLIENT.replace(
            "    new[1] =",
            '    if context.node_config["site"] == "south": new[0][3] = np.nan\n    new[1] =',
        ),
        more="quorum = 2\n",
    )
    run = simulate(job, folder=tmp_path / "run")
    found = [event for event, _ in RunFolder.load(run.folder).events()]
    rejected = [event for event in found if isinstance(event, events.UpdateRejected)]
    assert [each.site for each in rejected] == ["south"] * 3
    assert "NaN" in rejected[0].reason
    assert "2 of the 3 updates" in refusal(job, QuorumNotReached, overrides={"quorum": 3})


def test_more_clients_than_the_data_has_are_refused(job: Path, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
    text = refusal(job, ConfigError, clients=4)
    assert "4 clients were asked for, and the data of 3 is there" in text
    assert "at most 3" in text
    assert "no data of this site" in refusal(job, ConfigError)
    assert "no such folder" in refusal(job, ConfigError, data=tmp_path / "other")
    run = simulate(job, clients=2)  # the folders in the order of their names
    assert run.history[-1].sites == 2


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ({"rounds": 0}, "rounds: must be"),
        ({"strategy.name": "fedmagic"}, "strategy.name"),
        ({"rounds.more": 1}, "rounds is not a table"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_a_wrong_value_is_named(job: Path, overrides: dict[str, Any], found: str) -> None:
    assert found in refusal(job, ConfigError, overrides=overrides)


def test_more_clients_in_a_round_than_can_be_added_are_refused_before_it(job: Path) -> None:
    text = refusal(job, ConfigError, clients=9000, overrides={"strategy.name": "fedavg"})
    assert "fraction_train: each round asks 9000 clients, and the mean adds at most 8191" in text
    assert "must be 1 to 10000, not 10001" in refusal(job, ConfigError, clients=10_001)


def test_values_take_the_place_of_those_of_the_job(job: Path) -> None:
    run = simulate(job, overrides={"rounds": 1, "config.size": 5, "strategy.name": "fedavg"})
    assert len(run.history) == 1
    assert run.model["0"].shape == (5,)


def test_a_quorum_stays_the_same_share(tmp_path: Path) -> None:
    job = write_job(tmp_path, more="quorum = 2\n")
    run = simulate(job, clients=10, folder=tmp_path / "run")
    assert "quorum = 7\n" in (run.folder / "job.toml").read_text()


def test_an_app_that_fails_is_named_with_its_place(tmp_path: Path) -> None:
    broken = CLIENT.replace("import os, time", "import os, time, not_there_at_all")
    text = refusal(write_job(tmp_path / "a", client=broken), JobError)
    assert "the app cannot be loaded: tiny/client_app.py:2: ModuleNotFoundError" in text
    server = "from flwr.serverapp import ServerApp\napp = ServerApp()\n@app.main()\n"
    server += "def main(grid, context):\n    raise KeyError('planted')\n"
    text = refusal(write_job(tmp_path / "b", server=server), JobError)
    assert "tiny/server_app.py:5: KeyError: 'planted'" in text


def test_a_strategy_that_wants_more_clients_than_there_are_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flwr.serverapp.strategy.strategy_utils as flowers

    monkeypatch.setattr(flowers, "sleep", lambda seconds: None)
    job = write_job(tmp_path)
    server = tmp_path / "app" / "tiny" / "server_app.py"
    server.write_text(server.read_text().replace("min_available_nodes=1", "min_available_nodes=9"))
    assert "needs more than the 3 nodes" in refusal(job, QuorumNotReached)


def test_noise_is_of_the_seed_and_the_budget_is_charged(tmp_path: Path) -> None:
    table = "\n[privacy]\nmechanism = 'central-gaussian'\nepsilon = {}\ndelta = 1e-5\nclip = 1.0\n"
    more = 'strategy = {name = "fedavg"}\n' + table.format("1e6") + "noise_multiplier = 1.0\n"
    job = write_job(tmp_path / "a", more=more)
    run = simulate(job, folder=tmp_path / "run")
    assert bits(run) == bits(simulate(job))
    assert "is not secret" in run.insecure
    assert "not secret" in Result.load(run.folder).insecure
    spent = [
        event
        for event, _ in RunFolder.load(run.folder).events()
        if isinstance(event, events.PrivacySpent)
    ]
    assert [each.round for each in spent] == [1, 2, 3]
    poor = write_job(tmp_path / "b", more=more.replace("1e6", "0.1"))
    assert "exceed the privacy budget" in refusal(poor, PrivacyError)


# The command and the public API


def test_the_command_runs_a_job_and_goes_on(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["simulate", str(job), "--clients", "30"])
    assert done.exit_code == 0, done.output
    assert "insecure: simulated: attestation, TLS, sealing" in done.output
    assert "round 3/3: 30 sites" in done.output
    assert "client-0000" not in done.output
    assert "the run is kept in runs/tiny-1" in done.output
    done = CliRunner().invoke(main, ["simulate", str(job), "--clients", "30", "--resume", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert "simulated" in found["insecure"]
    assert (found["rounds"], found["run"]) == (3, "runs/tiny-1")
    assert "This run was simulated" in Path("runs/tiny-1/report.html").read_text()
    shown = CliRunner().invoke(main, ["job", "metrics", "runs/tiny-1"])
    assert "attestation, TLS and sealing were left out" in shown.output
    CliRunner().invoke(main, ["simulate", str(job)])
    compared = CliRunner().invoke(main, ["job", "compare", "runs/tiny-1", "runs/tiny-2"])
    assert "tiny-1 (simulated)" in compared.output


def test_the_command_refuses_more_clients_than_there_is_data(job: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    done = CliRunner().invoke(main, ["simulate", str(job), "--clients", "2"])
    assert done.exit_code == 1
    assert "2 clients were asked for" in done.output


def test_the_public_api_simulates(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["job", "init", str(tmp_path / "made"), "--sites", "a,b"])
    assert done.exit_code == 0, done.output
    file = write_job(tmp_path / "tiny")
    file.write_text(JOB.replace("there-is-none.toml", "../made/policy.toml"))
    result = Job.load(file).simulate(folder=tmp_path / "run", overrides={"rounds": 1})
    assert len(result.history.finished) == 1
    assert "simulated" in result.insecure
