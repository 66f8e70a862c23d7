"""Compressed updates are decoded before every check; what is malformed refuses one reply alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.app.flower import COMPRESSED
from fedlearn.compression.codec import decode, encode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import JobError
from fedlearn.privacy import PrivacySpec, ServerPrivacy
from fedlearn.update import arrays as update
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.update_decoder import UpdateDecoder
from server.flower.ipc.task import enter_run
from tests.server.flower.aggregation.test_builtin import Grid
from tests.server.flower.aggregation.test_grid import MODEL, SITES, run

INT8 = CompressionSpec(update="int8")
TOPK = CompressionSpec(update="topk", fraction=0.25)


@pytest.fixture(autouse=True)
def _run() -> None:
    enter_run(9)


def trained(site: str) -> dict[str, update.Array]:
    draw = np.random.default_rng(ord(site))
    return {"w": draw.standard_normal(8).astype(np.float32), "n": np.array(1, np.int64)}


def reply(document: bytes) -> RecordDict:
    packed = ArrayRecord({"packed": Array("uint8", (len(document),), COMPRESSED, document)})
    return RecordDict({"arrays": packed, "m": MetricRecord({"num-examples": 5})})


def encoded(site: str, spec: CompressionSpec) -> dict[str, update.Array]:
    return encode(trained(site), MODEL, spec).arrays


@pytest.mark.parametrize("spec", [INT8, TOPK], ids=["int8", "topk"])
def test_the_strategy_gets_decoded_updates(spec: CompressionSpec) -> None:
    contents = {site: reply(update.encode(encoded(site, spec))) for site in SITES}
    coordinator, grid, messages = run(contents, compression=spec)
    for site, message in zip(SITES, messages, strict=True):
        found = arrays_of(next(iter(message.content.array_records.values())))
        wanted = decode(encoded(site, spec), MODEL, spec)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in wanted.items()
        }
    assert len([kind for kind, _ in coordinator.reported if kind == "update.received"]) == 3
    assert grid.updates.saved == 0  # such a small model does not shrink


def changed(spec: CompressionSpec, **parts: Any) -> Callable[[], RecordDict]:
    """Return a reply whose encoded update has other parts; None removes one."""

    def made() -> RecordDict:
        arrays = {**encoded("b", spec), **{f"0.{key}": part for key, part in parts.items()}}
        return reply(update.encode({name: a for name, a in arrays.items() if a is not None}))

    return made


def plain() -> RecordDict:
    return RecordDict({"arrays": record_of(trained("b")), "m": MetricRecord({"num-examples": 5})})


@pytest.mark.parametrize(
    ("spec", "broken", "stated"),
    [
        (INT8, plain, "arrays: is not encoded as the job's"),
        (INT8, lambda: reply(b"\0" * 40), "the header of an update is not a JSON object"),
        (INT8, lambda: reply(update.encode({"w": np.zeros(1)})), "w: its values are missing"),
        (INT8, changed(INT8, scales=np.array([np.nan], np.float32)), "NaN or infinity"),
        (INT8, changed(INT8, scales=np.array([3e38], np.float32)), "beyond the range of F32"),
        (INT8, changed(INT8, scales=np.array([1.0])), "its scales are F64"),
        (INT8, changed(INT8, values=np.zeros(9, np.int8)), "its values are I8 of the shape"),
        (INT8, changed(INT8, more=np.zeros(1)), "a part '0.more', which is none of its model"),
        (TOPK, changed(TOPK, bitmap=None), "its bitmap are missing"),
        (TOPK, changed(TOPK, bitmap=np.array([7], np.uint8)), "has 3 bits; it must have 2"),
        (TOPK, changed(TOPK, values=np.zeros(9, np.float32)), "its values are F32 of the shape"),
        (TOPK, changed(INT8), "its values are"),
        (CompressionSpec(), lambda: reply(update.encode(encoded("b", INT8))), "not a numpy array"),
    ],
)
def test_a_malformed_update_is_refused_and_the_mean_is_that_of_the_others(
    spec: CompressionSpec, broken: Callable[[], RecordDict], stated: str
) -> None:
    contents = {site: reply(update.encode(encoded(site, spec))) for site in ("a", "c")}
    if not spec.active:
        contents = {
            site: RecordDict(
                {"arrays": record_of(trained(site)), "m": MetricRecord({"num-examples": 5})}
            )
            for site in ("a", "c")
        }
    coordinator, _, messages = run({**contents, "b": broken()}, compression=spec)
    ((_, refusal),) = [each for each in coordinator.reported if each[0] == "update.rejected"]
    assert (refusal["site"], stated in refusal["reason"]) == ("b", True), refusal
    mean, expected = ExactMean(MODEL), ExactMean(MODEL)
    for message in messages:
        if message.has_content():
            mean.add(arrays_of(next(iter(message.content.array_records.values()))), 5)
    for site in ("a", "c"):
        arrays = trained(site)
        if spec.active:
            arrays = decode(encoded(site, spec), MODEL, spec)
        expected.add(arrays, 5)
    assert mean.updates == 2
    assert update.encode(mean.result()) == update.encode(expected.result())


@pytest.mark.parametrize(
    ("name", "private"),
    [("fedavg", False), ("fedavg", True), ("fedadam", False), ("fedadam", True), ("krum", False)],
)
def test_arrays_that_do_not_travel_stay_as_they_are(name: str, private: bool) -> None:
    model = {"body": np.full(8, 0.1, np.float32), "lora": np.zeros(8, np.float32)}
    privacy = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=50.0, delta=1e-5)
    server = ServerPrivacy.from_spec(privacy, bytes(32)) if private else None
    few = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    spec = CompressionSpec(arrays=("lora*",))
    strategy = BuiltIn(name, few, privacy=server, travels=spec.travels)
    strategy.configure_train(1, record_of(model), ConfigRecord(), Grid())
    update_ = {**model, "lora": np.full(8, 0.25, np.float32)}
    replies = [
        Message(
            RecordDict({"a": record_of(update_), "m": MetricRecord({"num-examples": 1})}),
            reply_to=Message(RecordDict(), node, "train"),
        )
        for node in (1, 2)
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    found = arrays_of(arrays)
    assert list(found) == ["body", "lora"]
    assert found["body"].tobytes() == model["body"].tobytes()
    assert (found["lora"] != 0).all()
    if not private and name == "fedavg":
        assert found["lora"].tolist() == [0.25] * 8


def test_the_order_of_arrival_changes_no_bit() -> None:
    updates = [decode(encoded(site, INT8), MODEL, INT8) for site in SITES]
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        mean = ExactMean(MODEL)
        for index in order:
            mean.add(updates[index], 10 + index)
        results.append(update.encode(mean.result()))
    assert results[0] == results[1]


def test_a_model_without_an_array_that_travels_is_refused() -> None:
    decoder = UpdateDecoder(CompressionSpec(arrays=("lora*",)), max_bytes=1000)
    with pytest.raises(JobError, match=r"no array of the model matches 'lora\*'; it has w, n"):
        decoder.check_model(record_of(MODEL))
    UpdateDecoder(CompressionSpec(), max_bytes=1000).check_model(ArrayRecord())


def test_a_document_that_is_too_long_is_refused() -> None:
    coordinator, _, _ = run(
        {site: reply(update.encode(encoded(site, INT8))) for site in SITES},
        compression=INT8,
        max_update_bytes=100,
        quorum=0,
    )
    reasons = [fields["reason"] for kind, fields in coordinator.reported if "reason" in fields]
    assert len(reasons) == 3
    assert all("at most 100 are accepted" in reason for reason in reasons)
