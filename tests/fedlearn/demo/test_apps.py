"""The demo's apps do what they promise, called the way Flower calls them."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.serverapp.strategy import Result

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app import checks as application
from fedlearn.demo import app, baselines, data

SITES = 5


Load = Callable[[str, str], Any]
"""Imports a module of an app: ``load("medpar", "client_app")``."""


@pytest.fixture(params=["medpar", "digits"])
def dealt(request: pytest.FixtureRequest) -> data.DemoData:
    return data.prepare(request.param, sites=SITES, seed=3)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where Flower's own process would: messages carry the number of a run."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a module of an app as Flower does: with the app's folder first on the path."""

    def import_module(name: str, module: str) -> Any:
        monkeypatch.syspath_prepend(str(app.folder(name)))
        return importlib.import_module(f"{name}_app.{module}")

    yield import_module
    for name in [
        name for name in sys.modules if name.split(".")[0] in {"medpar_app", "images_app"}
    ]:
        del sys.modules[name]


class Federation:
    """The coordinator's side of a run, by hand: every site answers in this process."""

    def __init__(self, client: Any, folders: list[Path], config: dict[str, Any]) -> None:
        self._client = client
        self._contexts = [
            Context(
                run_id=1,
                node_id=number + 2,
                node_config={
                    "data": str(folder),
                    "partition-id": number,
                    "num-partitions": len(folders),
                },
                state=RecordDict(),
                run_config=config,
            )
            for number, folder in enumerate(folders)
        ]

    def get_node_ids(self) -> list[int]:
        return [context.node_id for context in self._contexts]

    def send_and_receive(self, messages: Any, **_: Any) -> list[Message]:
        """Answer in the order of the sites, so that sums have one order."""
        by_node = {message.metadata.dst_node_id: message for message in messages}
        return [
            self._client(by_node[context.node_id], context)
            for context in self._contexts
            if context.node_id in by_node
        ]


def _run(load: Load, dealt: data.DemoData, folder: Path, **changes: Any) -> Any:
    client = load(dealt.app, "client_app").app
    server = load(dealt.app, "server_app")
    config = {**baselines.settings_of(dealt), **changes}
    folders = []
    for site in dealt.sites:
        folders.append(folder / site.name)
        data.write(site, folders[-1])
    results: list[Any] = []

    class Kept(FedAvg):  # type: ignore[misc]  # flwr has no types here
        def start(self, *args: Any, **kwargs: Any) -> Any:
            results.append(super().start(*args, **kwargs))
            return results[-1]

    server.FedAvg = Kept
    grid = Federation(client, folders, config)
    server.app(grid, SimpleNamespace(run_config=config))
    return results[0]


def _weights(result: Result) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in result.arrays.items()}


def test_one_site_gives_the_same_as_plain_training(
    load: Load, dealt: data.DemoData, tmp_path: Path
) -> None:
    import dataclasses

    alone = dataclasses.replace(dealt, sites=dealt.sites[:1])
    rounds = 3
    result = _run(load, alone, tmp_path, **{"num-server-rounds": rounds, "min-sites": 1})
    rows = alone.sites[0].train
    config = baselines.settings_of(alone)
    generators = [np.random.default_rng([3, number, 0]) for number in range(1, rounds + 1)]
    if dealt.app == "medpar":
        expected = {"weights": _plain_logistic(rows["stays"], config, generators)}
    else:
        expected = _plain_torch(rows, config, generators)
    found = _weights(result)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


def _plain_logistic(
    stays: np.ndarray, config: dict[str, Any], generators: list[np.random.Generator]
) -> np.ndarray:
    model = app.module("medpar", "model")
    features, died = model.design(stays)
    weights = np.zeros(features.shape[1])
    for rng in generators:
        for _ in range(config["local-epochs"]):
            order = rng.permutation(len(died))
            for start in range(0, len(order), config["batch-size"]):
                rows = order[start : start + config["batch-size"]]
                chance = 1 / (1 + np.exp(-(features[rows] @ weights)))
                slope = features[rows].T @ (chance - died[rows]) / len(rows)
                weights = weights - config["learning-rate"] * (slope + config["l2"] * weights)
        weights = weights.astype(np.float32).astype(np.float64)
    return weights


def _plain_torch(
    rows: Any, config: dict[str, Any], generators: list[np.random.Generator]
) -> dict[str, np.ndarray]:
    import torch

    model = app.module("images", "model")
    start = app.module("images", "initial").weights(config["image-size"], config["seed"])
    net = model.Net(config["image-size"])
    model.load(net, start)
    images = torch.from_numpy(rows["images"].astype(np.float32) / 255).unsqueeze(1)
    labels = torch.from_numpy(rows["labels"].astype(np.int64))
    for rng in generators:
        steps = torch.optim.SGD(
            net.parameters(), lr=config["learning-rate"], momentum=config["momentum"]
        )
        for _ in range(config["local-epochs"]):
            for batch in torch.from_numpy(rng.permutation(len(labels))).split(config["batch-size"]):
                steps.zero_grad()
                torch.nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
                steps.step()
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def test_fedavg_over_two_sites_equals_the_hand_computation(
    load: Load, dealt: data.DemoData, tmp_path: Path
) -> None:
    import dataclasses

    both = dataclasses.replace(dealt, sites=dealt.sites[:2])
    config = {**baselines.settings_of(both), "num-server-rounds": 1}
    found = _weights(_run(load, both, tmp_path, **config))
    judge = baselines.judge(both, config)
    trained = [
        judge.train(
            site.train,
            epochs=int(config["local-epochs"]),
            rng=np.random.default_rng([3, 1, number]),
        )
        for number, site in enumerate(both.sites)
    ]
    rows = [site.train_rows for site in both.sites]
    for name, array in found.items():
        one, two = (np.asarray(weights[name], np.float32) for weights in trained)
        expected = (rows[0] * one + rows[1] * two) / sum(rows)
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def test_the_app_comes_to_what_plain_federated_averaging_comes_to(
    load: Load, dealt: data.DemoData, tmp_path: Path
) -> None:
    config = {**baselines.settings_of(dealt), "num-server-rounds": 2}
    found = _weights(_run(load, dealt, tmp_path, **config))
    expected = baselines.federate(dealt, config)[-1]
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


def test_two_runs_with_one_seed_agree_to_the_bit(
    load: Load, dealt: data.DemoData, tmp_path: Path
) -> None:
    changes = {"num-server-rounds": 2}
    first = _weights(_run(load, dealt, tmp_path / "a", **changes))
    second = _weights(_run(load, dealt, tmp_path / "b", **changes))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes()


def test_federated_area_is_that_of_the_pooled_scores(load: Load, tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    dealt = data.prepare("medpar", sites=SITES, seed=3)
    result = _run(load, dealt, tmp_path, **{"num-server-rounds": 3})
    reported = result.evaluate_metrics_clientapp[3]
    model = app.module("medpar", "model")
    features, died = model.design(dealt.pooled().test["stays"])
    scores = model.predict(_weights(result)["weights"].astype(np.float64), features)
    exact = metrics.roc_auc_score(died, scores)
    bins = app.module("medpar", "ranking").BINS
    binned = metrics.roc_auc_score(died, np.minimum(np.floor(scores * bins), bins - 1))
    assert reported["auc"] == pytest.approx(binned, abs=1e-12)
    assert reported["auc-low"] <= exact <= reported["auc-high"]
    assert abs(reported["auc"] - exact) < 0.01
    assert reported["num-examples"] == len(died)
    assert reported["loss"] == pytest.approx(metrics.log_loss(died, scores), rel=1e-6)


def test_the_mean_of_the_sites_areas_would_have_been_wrong() -> None:
    ranking = app.module("medpar", "ranking")
    good = (np.array([0.1, 0.3]), np.array([0.0, 1.0]))
    shifted = (np.array([0.6, 0.8]), np.array([0.0, 1.0]))
    counts = [ranking.histogram(*site) for site in (good, shifted)]
    assert [ranking.area(*site).value for site in counts] == [1.0, 1.0]
    pooled = ranking.area(counts[0][0] + counts[1][0], counts[0][1] + counts[1][1])
    assert pooled.value == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_area_agrees_with_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    ranking = app.module("medpar", "ranking")
    rng = np.random.default_rng(seed)
    outcome = (rng.random(300) < 0.3).astype(np.float64)
    scores = np.clip(rng.normal(0.4 + 0.2 * outcome, 0.2), 0, 1)
    area = ranking.area(*ranking.histogram(scores, outcome))
    exact = metrics.roc_auc_score(outcome, scores)
    assert area.low <= exact <= area.high
    assert 0 < area.error < 0.1


def test_an_area_without_both_outcomes_is_refused() -> None:
    ranking = app.module("medpar", "ranking")
    with pytest.raises(ValueError, match="both outcomes"):
        ranking.area(*ranking.histogram(np.array([0.2, 0.4]), np.array([0.0, 0.0])))


def test_federated_beats_a_site_alone_and_comes_near_pooled_data(
    load: Load, tmp_path: Path
) -> None:
    dealt = data.prepare("medpar", sites=6, seed=data.DEFAULT_SEED)
    result = _run(load, dealt, tmp_path)
    federated = float(result.evaluate_metrics_clientapp[10]["auc"])
    baseline = baselines.compare(dealt, baselines.settings_of(dealt))
    alone = float(np.mean([site.all for site in baseline.sites]))
    assert baseline.members == 54
    assert baseline.member is not None
    assert federated > alone + 0.01
    assert federated > baseline.member + 0.05
    assert abs(federated - baseline.pooled) < 0.02
    judge = baselines.judge(dealt, baselines.settings_of(dealt))
    assert judge.score(_weights(result), dealt.pooled().test) == pytest.approx(federated)


def test_accuracy_is_that_over_all_images(load: Load, tmp_path: Path) -> None:
    dealt = data.prepare("digits", sites=SITES, seed=3)
    result = _run(load, dealt, tmp_path, **{"num-server-rounds": 2})
    judge = baselines.judge(dealt, baselines.settings_of(dealt))
    expected = judge.score(_weights(result), dealt.pooled().test)
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("name", app.APPS)
def test_an_app_is_an_ordinary_bundle(name: str) -> None:
    bundle = build_fab_from_disk(app.folder(name))
    assert bundle == build_fab_from_disk(app.folder(name))
    assert application.check_bundle(bundle).name == name
    assert application.check_folder(app.folder(name)).name == name
    assert len(bundle) < 64 * 1024


def test_initial_weights_fit_the_network() -> None:
    model, initial = app.module("images", "model"), app.module("images", "initial")
    for size in (8, 28):
        net = model.Net(size)
        model.load(net, initial.weights(size, 1))
        assert {n: tuple(t.shape) for n, t in net.state_dict().items()} == initial.shapes(size)
    with pytest.raises(ValueError, match="multiple of 4"):
        initial.weights(10, 1)


def test_weights_of_another_shape_are_refused(load: Load, tmp_path: Path) -> None:
    dealt = data.prepare("digits", sites=SITES, seed=3)
    data.write(dealt.sites[0], tmp_path)
    client = load("images", "client_app").app
    context = Context(
        run_id=1,
        node_id=2,
        node_config={"data": str(tmp_path), "partition-id": 0, "num-partitions": 1},
        state=RecordDict(),
        run_config=baselines.settings_of(dealt),
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord({"conv1.weight": Array(np.zeros(3, np.float32))}),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    with pytest.raises(RuntimeError, match="state_dict"):
        client(Message(content=content, message_type="train", dst_node_id=2), context)


def test_the_metric_of_a_site_with_one_outcome_is_not_invented() -> None:
    dealt = data.prepare("medpar", sites=SITES, seed=3)
    judge = baselines.judge(dealt, baselines.settings_of(dealt))
    rows = dealt.sites[0].test["stays"]
    assert math.isnan(judge.score(judge.start(), {"stays": rows[rows[:, -1] == 0]}))
