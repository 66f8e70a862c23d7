"""Each example is checked, run to its end on this machine, and has the result that it promises."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file

from fedlearn.cli import main
from fedlearn.errors import PrivacyError
from fedlearn.privacy import PrivacySpec, noise_multiplier_for

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
JOBS = (  # in the order in which the tests ask for them
    "quickstart",
    "existing-flower-app",
    "custom-strategy",
    "personalised-layers",
    "differential-privacy",
    "xgboost",
    "lora",
)
AT_ONCE = 2

Load = Callable[[str, str], ModuleType]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run of an example: its folder, its events, what it noted, and the weights."""

    folder: Path
    noted: str
    events: tuple[Mapping[str, Any], ...]
    model: Mapping[str, np.ndarray]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event.get("kind") == kind]

    def metric(self, name: str) -> list[float]:
        """The metric after each round."""
        return [float(event["metrics"][name]) for event in self.of("round.finished")]

    def data(self, site: str, name: str = "data.csv") -> tuple[np.ndarray, np.ndarray]:
        table = np.loadtxt(self.folder / "data" / site / name, delimiter=",", skiprows=1)
        return table[:, :-1], table[:, -1]


class Runs:
    """Runs every example once, some at a time, when the first is asked for."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._started: dict[str, Future[Run]] = {}

    def __call__(self, name: str) -> Run:
        if not self._started:
            self._started = {each: self._pool.submit(self._run, each) for each in JOBS}
        return self._started[name].result()

    def _run(self, name: str) -> Run:
        folder = self._scratch / name
        shutil.copytree(EXAMPLES / name, folder)
        command = [sys.executable, "-c", "from fedlearn.cli import main; main()"]
        done = subprocess.run(
            [*command, "job", "try", "--tee", "sample", "--model", "out.safetensors", "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "FLWR_HOME": str(folder / "flower")},
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return Run(
            folder=folder,
            noted=done.stderr,
            events=tuple(json.loads(line) for line in done.stdout.splitlines()),
            model=load_file(folder / "out.safetensors"),
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("examples"))
    yield made
    made.close()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a module of the app of an example."""
    packages: set[str] = set()

    def load(example: str, module: str) -> ModuleType:
        monkeypatch.syspath_prepend(EXAMPLES / example / "app")
        packages.add(module.partition(".")[0])
        return importlib.import_module(module)

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


# --- what all of them have ------------------------------------------------------------


def test_there_are_the_examples_that_the_page_lists() -> None:
    # The notebook has a test of its own.
    folders = {path.parent.name for path in EXAMPLES.glob("*/job.toml")}
    assert folders - {"notebook"} == set(JOBS)
    page = (ROOT / "docs/examples.md").read_text()
    assert set(JOBS) <= set(re.findall(r"/examples/([a-z-]+)\)", page))
    for name in JOBS:
        readme = (EXAMPLES / name / "README.md").read_text()
        assert "fedlearn job try" in readme
        # What the app imports has to be installed at the sites.
        project = (EXAMPLES / name / "app/pyproject.toml").read_text()
        (needs,) = re.findall(r"^dependencies = \[(.*)\]$", project, re.M)
        for package in re.findall(r'"([\w-]+)>', needs):
            assert f"`{package}`" in readme, (name, package)


@pytest.mark.parametrize("name", JOBS)
def test_each_is_a_job_without_surprises(name: str) -> None:
    done = CliRunner().invoke(
        main, ["job", "validate", str(EXAMPLES / name / "job.toml"), "--json"]
    )
    assert done.exit_code == 0, done.output
    expected = {
        "insecure_sample": "accepts software evidence",
        "owner_key": "no owner_key",
        "visible": "the app receives the update of each site",
        "privacy": "under [privacy]",
    }
    for note in json.loads(done.stdout)["warnings"]:
        assert any(words in note for words in expected.values()), note


def test_the_data_is_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLES / "make_data.py"), str(tmp_path)], check=True)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= len(JOBS)
    for path in written:
        assert (EXAMPLES / path).read_bytes() == (tmp_path / path).read_bytes(), path


# --- what each promises ---------------------------------------------------------------


def test_quickstart_beats_the_model_of_round_0(runs: Runs, app: Load) -> None:
    run = runs("quickstart")
    task = app("quickstart", "tumours_app.task")
    for site in ("north", "south"):
        features, labels = run.data(site)
        held_out = slice(len(labels) * 4 // 5, None)
        before = task.judge(task.new_model(), features[held_out], labels[held_out])
        after = task.judge([run.model["0"], run.model["1"]], features[held_out], labels[held_out])
        assert after["accuracy"] > before["accuracy"] + 0.1
        assert after["loss"] < before["loss"] - 0.3
    assert run.metric("accuracy")[-1] > 0.9


def test_an_existing_app_moves_by_the_lines_that_are_shown() -> None:
    folder = EXAMPLES / "existing-flower-app"
    changed: list[str] = []
    for stock in sorted((folder / "stock/digits_app").glob("*.py")):
        moved = folder / "app/digits_app" / stock.name
        old, new = stock.read_text().splitlines(), moved.read_text().splitlines()
        changed += [
            line
            for line in difflib.unified_diff(old, new, n=0, lineterm="")
            if not line.startswith(("---", "+++", "@@"))
        ]
    assert len([line for line in changed if line.startswith("+")]) == 3
    readme = (folder / "README.md").read_text()
    (shown,) = re.findall(r"```diff\n(.*?)```", readme, re.S)
    assert shown.splitlines() == changed


def test_the_stock_app_is_one_of_flowers_simulation() -> None:
    """It takes its partition from the packaged data, and its part is what `site-a` has here."""
    found = []
    for folder, node_config in (
        ("stock", {"partition-id": 0, "num-partitions": 2}),
        ("app", {"data": str(EXAMPLES / "existing-flower-app/data/site-a")}),
    ):
        source = EXAMPLES / "existing-flower-app" / folder / "digits_app/task.py"
        spec = importlib.util.spec_from_file_location(f"{folder}_task", source)
        assert spec is not None
        assert spec.loader is not None
        task = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(task)
        context = Context(
            run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={}
        )
        images, labels = task.load(context, held_out=False)
        found.append((images[:200].numpy(), labels[:200].numpy()))
    for stock, moved in zip(*found, strict=True):
        np.testing.assert_array_equal(stock, moved)


def test_an_existing_app_learns_with_the_strategy_that_it_starts(runs: Runs) -> None:
    run = runs("existing-flower-app")
    # Ten digits: a model that guesses is right once in ten times.
    assert run.metric("accuracy")[-1] > 0.5
    assert run.metric("loss")[-1] < 2.0 < np.log(10)
    assert not [event for event in run.of("log") if "replaces" in event["line"]]


def test_the_custom_strategy_withstands_a_site_that_a_mean_does_not(runs: Runs, app: Load) -> None:
    run = runs("custom-strategy")
    task = app("custom-strategy", "median_app.task")
    rows = np.array(json.loads((run.folder / "app/median_app/public.json").read_text())["rows"])
    features, labels = rows[:, :-1], rows[:, -1]
    mean = task.new_model()
    for _ in range(len(run.of("round.finished"))):
        models = []
        for site in ("site-a", "site-b", "site-c", "site-d"):
            own, answers = run.data(site)
            cut = len(answers) * 4 // 5
            models.append(task.train(mean, own[:cut], answers[:cut], epochs=20, rate=1.0))
        mean = [np.mean(arrays, axis=0) for arrays in zip(*models, strict=True)]
    by_mean = task.judge(mean, features, labels)["accuracy"]
    ours = run.metric("public-accuracy")[-1]
    assert ours > task.judge(task.new_model(), features, labels)["accuracy"] + 0.3
    assert ours > by_mean + 0.1
    found = task.judge([run.model["0"], run.model["1"]], features, labels)["accuracy"]
    assert found == pytest.approx(ours)


def test_personal_layers_never_leave_their_site(
    runs: Runs, app: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):  # as in Flower's own process
        monkeypatch.setattr(TaskIdentity, name, 1)
    run = runs("personalised-layers")
    assert set(run.model) == {"0.weight", "0.bias"}
    task = app("personalised-layers", "layers_app.task")
    client = app("personalised-layers", "layers_app.client_app")
    body = ArrayRecord(task.new_body().state_dict())
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"data": str(run.folder / "data/site-a")},
        state=RecordDict(),
        run_config={"local-epochs": 1, "learning-rate": 0.02},
    )
    question = RecordDict({"arrays": body, "config": ConfigRecord()})
    reply = client.app(Message(question, 1, "train"), context)
    # What is sent: one record, with the arrays of the body. What is kept: the head.
    (sent,) = reply.content.array_records.values()
    assert set(sent) == set(body) == set(run.model)
    assert set(context.state["head"]) == {"weight", "bias"}
    for event in run.of("update.received"):
        body_bytes = sum(array.nbytes for array in run.model.values())
        assert event["bytes"] < body_bytes + 1024


def test_personal_layers_do_what_one_model_cannot(runs: Runs) -> None:
    # The two sites need opposite answers: one model for both is right half of the time.
    run = runs("personalised-layers")
    assert min(run.metric("accuracy")) > 0.75


def test_privacy_spends_its_epsilon_and_no_more(runs: Runs, app: Load) -> None:
    run = runs("differential-privacy")
    assert "note: under [privacy] no loss or metric of a site leaves it" in run.noted
    spent = run.of("privacy.spent")
    assert [event["round"] for event in spent] == [1, 2, 3, 4]
    assert 7.5 < spent[-1]["epsilon"] <= spent[-1]["limit"] == 8.0
    assert not [event for event in run.of("update.received") if event["metrics"]]
    assert all(set(event["metrics"]) == {"public-auc"} for event in run.of("round.finished"))
    # Random noise: of a thousand simulated runs, the lowest was 0.91.
    assert run.metric("public-auc")[-1] > 0.8
    task = app("differential-privacy", "private_app.task")
    assert task.auc(task.new_model(), *task.public()) == 0.5


def test_the_numbers_of_the_privacy_example_belong_together(tmp_path: Path) -> None:
    text = (EXAMPLES / "differential-privacy/job.toml").read_text()
    (multiplier,) = re.findall(r"^noise_multiplier = (.*)$", text, re.M)
    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=8.0, delta=1e-5)
    assert float(multiplier) == noise_multiplier_for(spec, rounds=4)
    shutil.copytree(EXAMPLES / "differential-privacy", tmp_path / "more")
    job = tmp_path / "more/job.toml"
    job.write_text(text.replace("rounds = 4", "rounds = 5"))
    done = CliRunner().invoke(main, ["job", "validate", str(job)])
    assert isinstance(done.exception, PrivacyError | SystemExit)
    assert done.exit_code == 1
    assert "epsilon" in done.output


def test_trees_of_all_sites_beat_those_of_each(runs: Runs, app: Load) -> None:
    run = runs("xgboost")
    task = app("xgboost", "trees_app.task")
    tables = [run.data(site) for site in ("site-a", "site-b", "site-c")]
    held_out = [
        (rows[len(rows) * 4 // 5 :], labels[len(rows) * 4 // 5 :]) for rows, labels in tables
    ]
    features = np.concatenate([rows for rows, _ in held_out])
    labels = np.concatenate([found for _, found in held_out])
    together = task.judge(run.model["0"], features, labels)
    assert together > 0.9
    nothing = np.zeros(0, dtype=np.uint8)
    for own, answers in tables:
        cut = len(answers) * 4 // 5
        alone = task.grow(
            nothing, own[:cut], answers[:cut], trees=54, max_depth=3, learning_rate=0.3
        )
        assert together > task.judge(alone, features, labels) + 0.02


def test_lora_sends_the_adapter_only(runs: Runs, app: Load) -> None:
    run = runs("lora")
    assert all("lora_" in name or "classifier" in name for name in run.model)
    assert any("lora_" in name for name in run.model)
    task = app("lora", "adapter_app.task")
    model = task.new_model()
    whole = sum(each.numel() * each.element_size() for each in model.parameters())
    adapter = sum(array.nbytes for array in run.model.values())
    assert adapter < whole / 20
    for event in run.of("update.received"):
        assert event["bytes"] < adapter + 4096 < whole / 20
    assert run.metric("accuracy")[-1] > 0.7
    # The classes are of about the same size.
    labels = np.loadtxt(run.folder / "data/site-a/tokens.csv", delimiter=",")[:, -1]
    assert 0.4 < labels.mean() < 0.6
