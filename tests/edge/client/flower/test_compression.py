"""A client's compression: after privacy, and the same again for a round that is run again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from edge.client.flower.app_state import Call
from edge.client.flower.compression import UpdateCompressor
from fedlearn.app.array_records import record_of
from fedlearn.app.flower import COMPRESSED
from fedlearn.compression.codec import decode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import RoundError, UpdateRejected
from fedlearn.privacy import ClientPrivacy, PrivacySpec, ServerPrivacy
from fedlearn.update import arrays as update
from tests.harness.job_plans import job_plan

MODEL: dict[str, update.Array] = {"w": np.zeros(100, np.float32), "n": np.array(3)}


def question(model: dict[str, update.Array]) -> RecordDict:
    return RecordDict({"arrays": record_of(model)})


def answer(round_: int) -> RecordDict:
    draw = np.random.default_rng(round_)
    arrays = {"w": draw.standard_normal(100).astype(np.float32), "n": np.array(4)}
    return RecordDict({"update": record_of(arrays), "metrics": MetricRecord({"num-examples": 5})})


def compressor(spec: CompressionSpec, **plan: Any) -> UpdateCompressor:
    return UpdateCompressor(job_plan(compression=spec, **plan).spec)


def sent(made: UpdateCompressor, round_: int) -> bytes:
    """Return the document that leaves in a round."""
    found = made.content(answer(round_), question(MODEL), Call.of(round_, "train"))
    (packed,) = found["update"].values()
    assert packed.stype == COMPRESSED
    assert dict(found["metrics"]) == {"num-examples": 5}
    return bytes(packed.data)


TOPK = CompressionSpec(update="topk", fraction=0.05)


def test_a_round_that_is_run_again_sends_the_same_bytes() -> None:
    whole = compressor(TOPK)
    expected = [sent(whole, number) for number in range(1, 6)]
    again = compressor(TOPK)
    assert [sent(again, number) for number in (1, 2, 3)] == expected[:3]
    assert sent(again, 3) == expected[2]  # the same round once more
    assert [sent(again, number) for number in (2, 3, 4, 5)] == expected[1:]
    # Without what the rounds before have left, the bytes are others.
    assert sent(compressor(TOPK), 3) != expected[2]
    with pytest.raises(RoundError, match="round 5, not 2"):
        sent(again, 2)


def test_without_feedback_a_round_depends_on_nothing_before_it() -> None:
    spec = CompressionSpec(update="topk", fraction=0.05, error_feedback=False)
    made = compressor(spec)
    expected = [sent(made, number) for number in range(1, 6)]
    assert sent(compressor(spec), 3) == expected[2]
    assert sent(made, 2) == expected[1]


def test_an_answer_without_arrays_is_not_changed() -> None:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 5})})
    assert compressor(TOPK).content(content, question(MODEL), Call.of(1, "train")) is content
    asked = RecordDict({"metrics": MetricRecord({"num-examples": 5})})
    update_ = answer(1)
    assert compressor(TOPK).content(update_, asked, Call.of(1, "train")) is update_


def test_what_is_not_one_update_of_the_model_is_refused() -> None:
    made, call = compressor(TOPK), Call.of(1, "train")
    two = answer(1)
    two["more"] = ArrayRecord()
    with pytest.raises(UpdateRejected, match=r"has 2 ArrayRecords; with .compression. an"):
        made.content(two, question(MODEL), call)
    with pytest.raises(UpdateRejected, match="'n' of the update is not in the model"):
        made.content(answer(1), question({"w": MODEL["w"]}), call)


def test_under_privacy_the_decoded_update_is_within_the_clip_norm() -> None:
    privacy = PrivacySpec(clip=0.9985, noise_multiplier=1.0, epsilon=8.0, delta=1e-5)
    spec = CompressionSpec(update="bf16")
    model: dict[str, update.Array] = {"w": np.zeros(1, np.float32)}
    clipped = ClientPrivacy.from_spec(privacy).outgoing({"w": np.ones(1, np.float32)}, model)
    content = RecordDict({"update": record_of(clipped)})
    made = compressor(spec, privacy=privacy)
    found = made.content(content, question(model), Call.of(1, "train"))
    (packed,) = found["update"].values()
    decoded = decode(update.decode(packed.data), model, spec)
    ServerPrivacy.from_spec(privacy, bytes(32)).check(decoded, model)
    # Rounded to nearest it would be 1.0, which the aggregator refuses.
    with pytest.raises(UpdateRejected, match=r"has a norm of 1; clip is 0\.9985"):
        ServerPrivacy.from_spec(privacy, bytes(32)).check({"w": np.ones(1, np.float32)}, model)
