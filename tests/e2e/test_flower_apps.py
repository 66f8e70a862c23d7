"""Applications that decide more themselves than Flower's strategies do: they run as in Flower."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.flower.job_plan import Outcome
from server.flower.job_runner import JobRunner
from tests.harness.flower_federation import (
    PYPROJECT,
    Channel,
    During,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

PROJECT = PYPROJECT.replace("num-server-rounds = 3", 'num-server-rounds = 3\nmode = ""')

LEGACY_SERVER = """
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

def mean(found):
    total = sum(count for count, _ in found)
    return {"accuracy": sum(count * each["accuracy"] for count, each in found) / total}

def evaluate(server_round, parameters, config):
    print("round", server_round, "is", float(parameters[0].mean()))
    return 0.1, {}

def server_fn(context):
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters([np.zeros((3, 3), "f4")]),
        evaluate_metrics_aggregation_fn=mean,
        evaluate_fn=evaluate,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=3))

app = ServerApp(server_fn=server_fn)
"""

LEGACY_CLIENT = """
from flwr.client import ClientApp, NumPyClient

class Client(NumPyClient):
    def fit(self, parameters, config):
        return [each + 1.0 for each in parameters], 10, {"loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 10, {"accuracy": float(parameters[0].mean())}

app = ClientApp(client_fn=lambda context: Client().to_client())
"""

OWN_SERVER = """
import os, time
import numpy as np
import flwr.serverapp.strategy as strategies
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()
FEW = dict(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
MODEL = ArrayRecord(
    {"body": Array(np.zeros(8, "f4")), "head": Array(np.zeros((2, 2), "f4"))}
)

class Own(strategies.FedAvg):
    def __init__(self, **more):
        super().__init__(**more)
        self.seen = []

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] = 0.5 / server_round
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        good = [each for each in replies if each.has_content()]
        self.seen.append(len(good))
        for each in good:
            arrays = {k: (str(v.numpy().dtype), v.numpy().shape)
                      for r in each.content.array_records.values() for k, v in r.items()}
            print("got", sorted(arrays.items()), len(each.content.array_records))
        for each in replies:
            if each.has_error():
                print("error", each.error.reason)
        print("seen", self.seen)
        shift = np.float32(len(self.seen))
        return ArrayRecord({k: Array(v.numpy() + shift) for k, v in MODEL.items()}), None

@app.main()
def main(grid, context):
    mode = context.run_config["mode"]
    if mode == "grid":
        for _ in range(2):
            nodes = list(grid.get_node_ids())
            asked = [Message(RecordDict(), n, "query.stats") for n in nodes]
            print("stats", [float(r.content["arr"]["e"].numpy().sum())
                            for r in grid.send_and_receive(asked)])
            asked = [Message(RecordDict({"arrays": MODEL}), n, "train") for n in nodes]
            print("train", len(list(grid.send_and_receive(asked))))
        return
    if mode == "flood":
        node = next(iter(grid.get_node_ids()))
        for number in range(100):
            grid.push_messages([Message(RecordDict({"arrays": MODEL}), node, "train")])
            print("pushed", number)
    strategy = Own(**FEW)
    strategy.start(grid=grid, initial_arrays=MODEL, num_rounds=3)
    if mode == "after":
        nodes = list(grid.get_node_ids())
        for _ in range(2):
            asked = [Message(RecordDict({"arrays": MODEL}), n, "train") for n in nodes]
            found = list(grid.send_and_receive(asked))
            print("after", len([each for each in found if each.has_content()]))
"""

OWN_CLIENT = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    mode = context.run_config["mode"]
    found = {k: v.numpy() for k, v in message.content["arrays"].items()}
    calls = context.state.get("calls", ConfigRecord({"n": 0}))["n"] + 1
    context.state["calls"] = ConfigRecord({"n": calls})
    time.sleep(context.run_config["pause"])
    if mode == "partial":
        found.pop("head")
    if mode == "extra":
        found["control"] = np.zeros(4, "f4")
    if mode == "half":
        found = {k: v.astype("f2") for k, v in found.items()}
    if mode == "double":
        found = {k: v.astype("f8") for k, v in found.items()}
    if mode == "int8":
        found = {k: v.astype("i1") for k, v in found.items()}
    if mode == "othershape":
        found = {"logits": np.zeros((7, 10), "f4")}
    if mode == "nan":
        found["head"] = np.full((2, 2), np.nan, "f4")
    if mode == "raise":
        raise ValueError("my data file is missing column age")
    records = {
        "arrays": ArrayRecord({k: Array(v) for k, v in found.items()}),
        "metrics": MetricRecord({"num-examples": 10, "calls": calls}),
    }
    if mode == "two":
        records["control"] = ArrayRecord({"c": Array(np.ones(5))})
    return Message(RecordDict(records), reply_to=message)

@app.query("stats")
def stats(message, context):
    arrays = ArrayRecord({"e": Array(np.arange(3.0))})
    return Message(RecordDict({"arr": arrays}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 10, "acc": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


Run = Callable[..., tuple[Outcome, Channel, list[str]]]


@pytest.fixture
def run(federation: FlowerFederation, tmp_path: Path) -> Run:
    from server.flower.application.bundle import build

    def go(
        job: str, server: str, client: str, *, during: During | None = None, **plan: object
    ) -> tuple[Outcome, Channel, list[str]]:
        folder = write_app(tmp_path / f"app-{job}", server=server, client=client, project=PROJECT)
        made = make_plan(build(folder), job=job, sites=2, **{"updates": "visible-to-app", **plan})
        host, channel = federation.host(made)
        for site in made.spec.sites:
            federation.client(made, site)
        host.start()
        if during is not None:
            during(host, channel)
        outcome = ended(host, 90)
        host.close()
        assert outcome is not None
        return outcome, channel, [fields["line"] for fields in channel.of("log")]

    return go


def test_the_legacy_api_works_as_in_flower(run: Run) -> None:
    outcome, channel, lines = run("legacy", LEGACY_SERVER, LEGACY_CLIENT)
    assert outcome.status == "finished", (outcome, lines)
    assert [each for each in lines if each.startswith("round ")] == [
        f"round {number} is {float(number)}" for number in range(4)
    ]
    assert len(channel.of("update.received")) == 6
    assert not channel.of("update.rejected")
    assert any("accuracy" in each and "3.0" in each for each in lines)


def test_the_legacy_api_needs_to_be_allowed_to_see_updates(run: Run) -> None:
    outcome, _, lines = run("legacy-no", LEGACY_SERVER, LEGACY_CLIENT, updates="aggregated")
    assert outcome.status == "failed", lines
    assert "sends messages to sites itself" in outcome.message
    assert 'updates = "visible-to-app"' in outcome.hint


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("partial", "[('body', ('float32', (8,)))] 1"),
        ("extra", "('control', ('float32', (4,)))"),
        ("half", "('body', ('float16', (8,)))"),
        ("double", "('body', ('float64', (8,)))"),
        ("int8", "('head', ('int8', (2, 2)))"),
        ("othershape", "[('logits', ('float32', (7, 10)))] 1"),
        ("two", "('c', ('float64', (5,)))"),
    ],
)
def test_an_own_aggregation_judges_the_replies(run: Run, mode: str, expected: str) -> None:
    outcome, channel, lines = run(mode, OWN_SERVER, OWN_CLIENT, run_config={"mode": mode})
    assert outcome.status == "finished", (outcome, lines)
    assert len([each for each in lines if each.startswith("got") and expected in each]) == 6
    assert "seen [2, 2, 2]" in lines
    assert channel.models[-1]["body"].tolist() == [3.0] * 8


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("nan", "head: contains NaN or infinity"), ("raise", "my data file is missing column age")],
)
def test_what_is_no_update_reaches_an_own_aggregation_as_an_error(
    run: Run, mode: str, reason: str
) -> None:
    plan = {"run_config": {"mode": mode}, "rounds": 1}
    outcome, channel, lines = run(mode, OWN_SERVER, OWN_CLIENT, **plan)
    assert (outcome.status, outcome.code) == ("failed", "quorum")
    assert len(channel.of("update.rejected")) == 2
    assert all(reason in fields["reason"] for fields in channel.of("update.rejected")), lines


def test_an_application_that_drives_its_rounds_itself_gets_every_reply(run: Run) -> None:
    outcome, channel, lines = run("grid", OWN_SERVER, OWN_CLIENT, run_config={"mode": "grid"})
    assert outcome.status == "finished", (outcome, lines)
    assert lines.count("stats [3.0, 3.0]") == lines.count("train 2") == 2
    assert len(channel.of("update.received")) == 4


def test_an_application_may_go_on_by_itself_after_its_strategy(run: Run) -> None:
    outcome, channel, lines = run("after", OWN_SERVER, OWN_CLIENT, run_config={"mode": "after"})
    assert outcome.status == "finished", (outcome, lines)
    assert lines.count("after 2") == 2
    numbers = [fields["round"] for fields in channel.of("update.received")]
    assert numbers == [1, 1, 2, 2, 3, 3, 0, 0, 0, 0]
    # The clients' state went on as well.
    assert [f["metrics"]["calls"] for f in channel.of("update.received")][-2:] == [5.0, 5.0]


def test_a_node_is_asked_a_bounded_number_of_questions_at_once(run: Run) -> None:
    config = {"mode": "flood", "pause": 5.0}
    outcome, _, lines = run("flood", OWN_SERVER, OWN_CLIENT, run_config=config)
    assert outcome.status == "failed"
    assert "9 messages to node" in outcome.message
    assert "pushed 7" in lines
    assert "pushed 8" not in lines


def test_an_own_strategy_resumes_with_the_state_that_it_had(run: Run) -> None:
    config = {"mode": "", "pause": 0.2}
    _, whole, _ = run("whole", OWN_SERVER, OWN_CLIENT, run_config=config)

    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.started", 3)
        for pid in host.pids:
            os.kill(pid, signal.SIGKILL)
        assert ended(host, 20).code == "crashed"
        host.start()

    outcome, channel, lines = run("again", OWN_SERVER, OWN_CLIENT, run_config=config, during=kill)
    assert outcome.status == "finished", (outcome, lines)
    assert channel.of("job.started")[-1]["resumed_from"] == 2
    assert [each for each in lines if each.startswith("seen")][-1] == "seen [2, 2, 2]"
    for name, array in whole.models[-1].items():
        assert array.tobytes() == channel.models[-1][name].tobytes()


def test_a_round_that_reached_no_site_is_not_finished(
    run: Run, federation: FlowerFederation
) -> None:
    """Clients are stopped while the strategy is in ``configure_train``, until they are offline."""
    server = OWN_SERVER.replace(
        "        return super().configure_train(server_round, arrays, config, grid)",
        textwrap.indent(
            "found = list(super().configure_train(server_round, arrays, config, grid))\n"
            'print("ghost", flush=True)\n'
            'time.sleep(0.5 if server_round == 1 else float(context_config["pause"]))\n'
            "return found",
            "        ",
        ),
    ).replace(
        '    mode = context.run_config["mode"]\n    if mode == "grid"',
        "    global context_config\n    context_config = context.run_config\n"
        '    mode = context.run_config["mode"]\n    if mode == "grid"',
    )
    client = OWN_CLIENT.replace('    time.sleep(context.run_config["pause"])\n', "")

    def stop(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.finished", 1)
        for process in federation.clients:
            process.send_signal(signal.SIGSTOP)
        threading.Thread(target=go_on, args=(host,), daemon=True).start()

    def go_on(host: JobRunner) -> None:
        host.wait(80)
        for process in federation.clients:
            process.send_signal(signal.SIGCONT)

    started = time.monotonic()
    outcome, channel, lines = run(
        "ghost",
        server,
        client,
        run_config={"mode": "own", "pause": 3.0},
        during=stop,
        seconds=15.0,
    )
    assert (outcome.status, outcome.code) == ("failed", "quorum"), (outcome, lines)
    assert len(channel.of("round.finished")) == 1
    assert time.monotonic() - started < 80
