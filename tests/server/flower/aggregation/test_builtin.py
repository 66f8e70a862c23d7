"""The strategies that the aggregator runs itself, and what one odd reply does to a round."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.algorithm_names import FEDNOVA_NORM, SCAFFOLD_STEP_SUM
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import JobError, PrivacyError, QuorumNotReached
from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.strategies import APP, MEAN_FAMILY, STRATEGIES, STREAMING
from fedlearn.privacy import ClientPrivacy, PrivacySpec, ServerPrivacy
from fedlearn.privacy.adaptive import WITHIN
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.robust.blocks import as_type
from server.flower.aggregation.strategies.classes import CLASSES, check_classes, name_of
from server.flower.ipc.strategy_state import capture, restore

SPEC = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
READ = {SCAFFOLD_STEP_SUM, FEDNOVA_NORM}
"""Metrics that one strategy reads; to another they are metrics like any other."""
FEW = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
MODEL: dict[str, npt.NDArray[Any]] = {"w": np.zeros(64, np.float32), "n": np.zeros((), np.int64)}


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class Grid:
    """What a strategy asks of the grid of a job; it notes what was refused."""

    def __init__(self, quorum: int = 0) -> None:
        self.quorum = quorum
        self.refused: dict[int, str] = {}
        self.noted: dict[int, str] = {}
        self.clip: float | None = None

    def get_node_ids(self) -> list[int]:
        return list(range(1, 9))

    def place(self, node: int) -> int:
        return node

    def site(self, node: int) -> str:
        return f"s{node}"

    def refuse(self, node: int, reason: str) -> None:
        self.refused[node] = reason

    def note(self, node: int, line: str) -> None:
        self.noted[node] = line

    def check_quorum(self, count: int, asked: int) -> None:
        if count < min(self.quorum, asked):
            raise QuorumNotReached(f"{count} of {asked}")


def strategy(name: str, grid: Grid, *, rounds: int = 1, **more: Any) -> BuiltIn:
    own: dict[str, dict[str, Any]] = {
        "fltrust": {"root_site": "s1"},
        "qfedavg": {"client_learning_rate": 0.1},
    }
    options = own.get(name, {})
    made = BuiltIn(name, {**FEW, **options}, **more)
    made.configure_train(rounds, record_of(MODEL), ConfigRecord(), grid)
    return made


def reply(
    node: int,
    value: float,
    *,
    metrics: dict[str, Any] | None = None,
    arrays: ArrayRecord | None = None,
) -> Message:
    model = {"w": np.full(64, value, np.float32), "n": np.asarray(3)}
    losses = {"loss": value, "train_loss": value}
    found = (
        {"num-examples": 10, **losses, **dict.fromkeys(READ, 1.0)} if metrics is None else metrics
    )
    content = RecordDict(
        {"arrays": record_of(model) if arrays is None else arrays, "m": MetricRecord(found)}
    )
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def test_every_name_of_a_job_has_its_class() -> None:
    check_classes()
    assert set(CLASSES) == set(STRATEGIES) - {APP} - ASYNCHRONOUS
    assert name_of(FedAvg()) == "fedavg"

    class Own(FedAdam):  # type: ignore[misc]
        pass

    assert name_of(Own()) is None
    assert name_of("fedavg") is None


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_makes_a_model_of_the_types_that_it_had(name: str) -> None:
    grid = Grid()
    replies = [reply(node, 1.0 + node / 8) for node in range(1, 8)]
    arrays, metrics = strategy(name, grid).aggregate_train(1, replies)
    assert arrays is not None
    found = arrays_of(arrays)
    assert {key: (each.dtype, each.shape) for key, each in found.items()} == {
        key: (each.dtype, each.shape) for key, each in MODEL.items()
    }
    assert np.isfinite(found["w"]).all()
    assert grid.refused == {}
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(1.5, abs=0.6)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - STREAMING))
def test_a_rule_over_single_updates_takes_arrays_in_any_order(name: str) -> None:
    found = []
    for order in (["w", "n"], ["n", "w"]):
        grid = Grid()
        replies = [reply(node, 1.0 + node / 8) for node in range(1, 8)]
        for message in replies[:4]:
            arrays = arrays_of(message.content["arrays"])
            message.content["arrays"] = record_of({each: arrays[each] for each in order})
        made, _ = strategy(name, grid).aggregate_train(1, replies)
        assert made is not None
        assert grid.refused == {}
        found.append({key: each.tobytes() for key, each in arrays_of(made).items()})
    assert found[0] == found[1]
    assert list(found[0]) == list(found[1]) == list(MODEL)


@pytest.mark.parametrize("loss", [None, -1.0, float("nan"), float("inf"), [1.0, 2.0]])
def test_q_fedavg_refuses_a_reply_without_a_loss(loss: Any) -> None:
    grid = Grid()
    odd = {"num-examples": 10, "loss": 1.0} | ({} if loss is None else {"train_loss": loss})
    replies = [reply(1, 1.0), reply(2, 2.0, metrics=odd), reply(3, 3.0)]
    arrays, metrics = strategy("qfedavg", grid).aggregate_train(1, replies)
    assert arrays is not None
    assert np.isfinite(arrays["w"].numpy()).all()
    assert metrics is not None
    assert "'train_loss', its training loss, as a finite number" in grid.refused[2]


@pytest.mark.parametrize("name", sorted(set(CLASSES) - STREAMING))
def test_a_rule_over_single_updates_needs_no_examples(name: str) -> None:
    grid = Grid()
    metrics = {"num-examples": 0, "loss": 1.0, "train_loss": 1.0}
    replies = [reply(node, 1.0 + node / 8, metrics=metrics) for node in range(1, 8)]
    arrays, found = strategy(name, grid).aggregate_train(1, replies)
    assert arrays is not None
    assert np.isfinite(arrays["w"].numpy()).all()
    assert found is None  # nothing weighs them
    assert grid.refused == {}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - STREAMING))
def test_a_rule_over_single_updates_keeps_its_options_between_rounds_and_no_array(
    name: str,
) -> None:
    made = strategy(name, Grid())
    made.aggregate_train(1, [reply(node, 1.0 + node / 8) for node in range(1, 8)])
    state, arrays = capture({"strategy": made})
    assert arrays == {}
    again = strategy(name, Grid())
    again.inner.weighted_by_key = "another"
    restore({"strategy": again}, (state, arrays))
    assert again.inner.weighted_by_key == "num-examples"


def test_bulyan_makes_no_model_of_too_few_updates() -> None:
    made = BuiltIn("bulyan", {**FEW, "num_malicious_nodes": 1})
    made.configure_train(1, record_of(MODEL), ConfigRecord(), Grid())
    replies = [reply(node, 1.0) for node in range(1, 7)]
    assert made.aggregate_train(1, replies) == (None, None)
    assert made.aggregate_train(1, [*replies, reply(7, 1.0)])[0] is not None


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "fedyogi", "fedadagrad"])
def test_an_optimiser_makes_of_the_exact_mean_what_flower_makes_of_its_own(name: str) -> None:
    import flwr.serverapp.strategy as strategies

    theirs = getattr(strategies, CLASSES[name])(**FEW)
    theirs.configure_train(1, record_of(MODEL), ConfigRecord(), Grid())
    replies = [reply(node, 1.0 + node / 8) for node in range(1, 8)]
    expected, _ = theirs.aggregate_train(1, [reply(n, 1.0 + n / 8) for n in range(1, 8)])
    arrays, _ = strategy(name, Grid()).aggregate_train(1, replies)
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"].numpy(), expected["w"].numpy(), rtol=1e-5)


def test_a_strategy_without_what_it_needs_is_refused() -> None:
    with pytest.raises(JobError, match="client_learning_rate"):
        BuiltIn("qfedavg", FEW)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - MEAN_FAMILY))
def test_what_sees_single_updates_is_refused_under_privacy(name: str) -> None:
    with pytest.raises(PrivacyError, match=r"single sites|of each site"):
        BuiltIn(name, FEW, privacy=ServerPrivacy.from_spec(SPEC, bytes(32)))


LOCAL = PrivacySpec(
    mechanism="local-gaussian", clip=1.0, noise_multiplier=1.0, epsilon=100.0, delta=1e-5
)


def test_updates_that_the_app_made_private_get_no_noise_and_count_alike() -> None:
    spec = PrivacySpec(
        mechanism="dp-sgd",
        unit="example",
        clip=1.0,
        noise_multiplier=1.0,
        epsilon=100.0,
        delta=1e-5,
        batch_rate=0.1,
        steps=3,
    )
    privacy = ServerPrivacy.from_spec(spec, bytes(32))
    sent = [_private(node, 10.0 * node) for node in (1, 2, 3)]
    grid = Grid()
    sent.append(_private(4, float("nan")))
    arrays, _ = strategy("fedavg", grid, privacy=privacy).aggregate_train(1, sent)
    assert arrays is not None
    # The clip is that of a gradient and bounds no update. Four were asked.
    assert arrays["w"].numpy() == pytest.approx(60 / 4)
    assert list(grid.refused) == [4]
    BuiltIn("krum", FEW, privacy=privacy)
    with pytest.raises(PrivacyError, match="needs the loss of each site"):
        BuiltIn("qfedavg", FEW, privacy=privacy)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - STREAMING - {"qfedavg"}))
def test_what_is_private_by_itself_may_be_seen_one_by_one(name: str) -> None:
    privacy, grid = ServerPrivacy.from_spec(LOCAL, bytes(32)), Grid()
    sent = []
    for node in range(1, 8):
        client = ClientPrivacy.from_spec(LOCAL, bytes([node] * 32))
        update = client.outgoing({"w": np.full(64, 0.1, np.float32), "n": MODEL["n"]}, MODEL)
        metrics = {"num-examples": 1}
        sent.append(reply(node, 0.0, metrics=metrics, arrays=record_of(update)))
    arrays, _ = strategy(name, grid, privacy=privacy).aggregate_train(1, sent)
    assert arrays is not None
    assert grid.refused == {}
    heavy = reply(8, 0.0, metrics={"num-examples": 2}, arrays=record_of(MODEL))
    loud = _private(7, 100.0)
    strategy(name, grid, privacy=privacy).aggregate_train(1, [*sent[:6], loud, heavy])
    assert set(grid.refused) == {7, 8}


def test_a_loss_does_not_leave_a_site_for_a_strategy() -> None:
    with pytest.raises(PrivacyError, match="needs the loss of each site"):
        BuiltIn("qfedavg", FEW, privacy=ServerPrivacy.from_spec(LOCAL, bytes(32)))


@pytest.mark.parametrize("name", sorted(MEAN_FAMILY))
def test_an_optimiser_sees_the_noised_mean_only(name: str) -> None:
    privacy = ServerPrivacy.from_spec(SPEC, hashlib.sha256(b"secret").digest())
    update = [reply(n, 0.01, metrics={"num-examples": 1}) for n in (1, 2, 3)]
    for message in update:
        message.content["arrays"]["n"] = record_of(MODEL)["n"]
    noised, _ = strategy(name, Grid(), privacy=privacy).aggregate_train(1, update)
    again = [reply(n, 0.01, metrics={"num-examples": 1}) for n in (1, 2, 3)]
    for message in again:
        message.content["arrays"]["n"] = record_of(MODEL)["n"]
    plain, _ = strategy(name, Grid()).aggregate_train(1, again)
    assert noised is not None
    assert plain is not None
    assert np.abs(noised["w"].numpy() - plain["w"].numpy()).max() > 0.01


def test_a_refused_update_does_not_change_the_denominator() -> None:
    privacy = ServerPrivacy.from_spec(SPEC, bytes(32))
    mean = {"w": np.full(64, 0.05), "n": MODEL["n"]}
    two = privacy.after_mean(mean, MODEL, 2, 1, asked=4)
    noise = privacy.after_mean(MODEL, MODEL, 0, 1, asked=4)
    # The scale is that of the four that were asked, whoever's update was taken.
    assert abs(float(two["w"].mean()) - 0.05 * 2 / 4) < 6 * float(noise["w"].std()) / 8
    with pytest.raises(PrivacyError, match="2 updates of 1"):
        privacy.after_mean(mean, MODEL, 2, 1, asked=1)


def _private(node: int, value: float, **counted: int) -> Message:
    arrays = record_of({"w": np.full(64, value, np.float32), "n": MODEL["n"]})
    return reply(node, value, metrics={"num-examples": 1, **counted}, arrays=arrays)


def test_an_adaptive_clip_is_sent_moves_and_survives_a_checkpoint() -> None:
    spec = PrivacySpec(
        clip=1.0,
        noise_multiplier=1.0,
        epsilon=100.0,
        delta=1e-5,
        clip_quantile=0.5,
        clip_noise=0.6,
    )
    privacy, grid = ServerPrivacy.from_spec(spec, bytes(32)), Grid()
    made = strategy("fedavg", grid, privacy=privacy)
    assert grid.clip == 1.0
    replies = [_private(node, 0.01, **{WITHIN: 1}) for node in range(1, 9)]
    arrays, metrics = made.aggregate_train(1, replies)
    assert arrays is not None
    assert made.clip == privacy.next_clip(1.0, within=8, answered=8, asked=8, round=1)
    assert metrics is None or WITHIN not in metrics
    again = strategy("fedavg", grid, privacy=privacy)
    restore({"strategy": again}, capture({"strategy": made}))
    assert again.clip == made.clip
    again.configure_train(2, arrays, ConfigRecord(), grid)
    assert grid.clip == made.clip


def test_correlated_noise_goes_on_after_a_checkpoint_and_a_repeat() -> None:
    spec = PrivacySpec(
        clip=1.0,
        noise_multiplier=1.0,
        epsilon=100.0,
        delta=1e-5,
        sampling="cyclic",
        groups=2,
        noise="banded",
    )
    privacy, grid = ServerPrivacy.from_spec(spec, bytes(32)), Grid()

    def after(made: BuiltIn, number: int, value: float) -> bytes:
        arrays, _ = made.aggregate_train(number, [_private(1, value), _private(2, value)])
        assert arrays is not None
        return bytes(arrays["w"].numpy().tobytes())

    made = strategy("fedavg", grid, privacy=privacy)
    after(made, 1, 0.01)
    saved = capture({"strategy": made})
    second = after(made, 2, 0.02)
    resumed = strategy("fedavg", grid, privacy=privacy)
    restore({"strategy": resumed}, saved)
    assert after(resumed, 2, 0.02) == second
    # The round is run again because a site was excluded: another sum, and independent noise.
    restore({"strategy": made}, saved)
    assert after(made, 2, 0.03) != second
    assert len(made.digests) == 2
    with pytest.raises(PrivacyError, match="does not follow"):
        after(made, 2, 0.03)


def test_a_reply_without_its_bit_is_refused_under_an_adaptive_clip() -> None:
    spec = PrivacySpec(
        clip=1.0,
        noise_multiplier=1.0,
        epsilon=100.0,
        delta=1e-5,
        clip_quantile=0.5,
        clip_noise=0.6,
    )
    privacy, grid = ServerPrivacy.from_spec(spec, bytes(32)), Grid()
    made = strategy("fedavg", grid, privacy=privacy)
    made.aggregate_train(1, [_private(1, 0.01), _private(2, 0.01, **{WITHIN: 1})])
    assert list(grid.refused) == [1]
    assert "0 or 1" in grid.refused[1]


def test_the_mean_of_noised_updates_gets_no_more_noise_and_needs_its_shares() -> None:
    spec = PrivacySpec(
        mechanism="distributed-gaussian",
        shares=3,
        clip=1.0,
        noise_multiplier=1.0,
        epsilon=100.0,
        delta=1e-5,
    )
    privacy = ServerPrivacy.from_spec(spec, bytes(32))
    sent = []
    for node in (1, 2, 3):
        client = ClientPrivacy.from_spec(spec, bytes([node] * 32))
        update = client.outgoing({"w": np.full(64, 0.1, np.float32), "n": MODEL["n"]}, MODEL)
        metrics = {"num-examples": 1}
        sent.append(reply(node, 0.0, metrics=metrics, arrays=record_of(update)))
    mean = np.mean([message.content["arrays"]["w"].numpy() for message in sent], axis=0)
    arrays, _ = strategy("fedavg", Grid(), privacy=privacy).aggregate_train(1, sent)
    assert arrays is not None
    assert arrays["w"].numpy() == pytest.approx(mean, abs=1e-3)
    with pytest.raises(PrivacyError, match="2 of 2 clients"):
        strategy("fedavg", Grid(), privacy=privacy).aggregate_train(
            1, [_private(1, 0.01), _private(2, 0.01)]
        )


def test_the_noised_mean_is_around_the_mean_of_the_updates() -> None:
    spec = PrivacySpec(clip=1.0, noise_multiplier=0.05, epsilon=1e6, delta=1e-5)
    privacy = ServerPrivacy.from_spec(spec, bytes(32))
    sent = [_private(node, 0.02 * node) for node in range(1, 6)]
    arrays, _ = strategy("fedavg", Grid(), privacy=privacy).aggregate_train(1, sent)
    assert arrays is not None
    # The mean is 0.06, and that of 64 noises of 0.05 / 5 has a deviation of 0.00125.
    assert float(arrays["w"].numpy().mean()) == pytest.approx(0.06, abs=0.008)


def test_nan_under_privacy_refuses_one_reply_and_not_the_round() -> None:
    privacy, grid = ServerPrivacy.from_spec(SPEC, bytes(32)), Grid()
    sent = [_private(1, float("nan")), _private(2, float("inf")), _private(3, 0.01)]
    arrays, _ = strategy("fedavg", grid, privacy=privacy).aggregate_train(1, sent)
    assert arrays is not None
    assert sorted(grid.refused) == [1, 2]


def test_two_stages_get_independent_noise_and_a_repeated_attempt_the_same() -> None:
    privacy = ServerPrivacy.from_spec(SPEC, bytes(32))
    first, again, other = (
        privacy.after_mean(MODEL, MODEL, 3, 1, stage=stage)["w"] for stage in (1, 1, 2)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


ODD: dict[str, dict[str, Any]] = {
    "twelve thousand metrics": {"metrics": {"num-examples": 10, **{f"m{i}": 1 for i in range(99)}}},
    "a list": {"metrics": {"num-examples": 10, "loss": [1.0, 2.0]}},
    "no weight": {"metrics": {"loss": 1.0}},
    "a weight beyond": {"metrics": {"num-examples": 1e300, "loss": 1.0}},
    "a weight below 0": {"metrics": {"num-examples": -1, "loss": 1.0}},
    "another model": {"arrays": ArrayRecord([np.ones(3)])},
}


@pytest.mark.parametrize("odd", sorted(ODD))
@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedmedian"])
def test_an_odd_reply_is_one_failure_domain(name: str, odd: str) -> None:
    grid = Grid(quorum=2)
    replies = [reply(1, 1.0), reply(2, 2.0, **ODD[odd]), reply(3, 3.0)]
    arrays, metrics = strategy(name, grid).aggregate_train(1, replies)
    assert arrays is not None
    assert np.isfinite(arrays["w"].numpy()).all()
    assert metrics is not None
    assert set(metrics) - READ == {"loss", "train_loss"}
    assert set(grid.refused) | set(grid.noted) == {2}


def test_an_odd_evaluation_is_left_out_and_named() -> None:
    grid = Grid()
    made = strategy("fedavg", grid)
    failed = Message(Error(code=0, reason="planted"), reply_to=reply(4, 0))
    replies = [
        reply(1, 1.0),
        reply(2, 2.0, metrics={"num-examples": 5, "other": 1.0}),
        reply(3, 3.0),
        failed,
    ]
    found = made.aggregate_evaluate(1, replies)
    assert found is not None
    assert found["loss"] == 2.0
    assert set(grid.noted) == {2}
    assert made.aggregate_evaluate(1, [reply(1, 1.0, metrics={"num-examples": 0})]) is None


def test_too_few_usable_updates_are_no_round() -> None:
    grid = Grid(quorum=3)
    made = strategy("fedavg", grid)
    failed = Message(Error(code=0, reason="planted"), reply_to=reply(4, 0))
    with pytest.raises(QuorumNotReached, match="2 of 3"):
        made.aggregate_train(1, [reply(1, 1.0), reply(2, 1.0), failed])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
def test_a_number_without_axes_keeps_being_an_array(dtype: str) -> None:
    found = as_type(np.asarray(0.75), np.dtype(dtype))
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == ((), np.dtype(dtype))
    assert found == (0.75 if dtype[0] == "f" else 1)
