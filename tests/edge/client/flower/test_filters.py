"""The filters that a site demands: what each does, in which order, and what cannot pass them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.config import InconsistentValues
from edge.client.flower.filters import UpdateFilters
from edge.protocol.bootstrap import Bootstrap
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.filters import FilterSpec, order_fault
from fedlearn.errors import ConfigError, JobError, UpdateRejected
from fedlearn.update.arrays import Array, to_bfloat16
from tests.harness.job_plans import job_plan

MODEL: dict[str, Array] = {
    "w": np.asarray([[1.0, 1.0], [1.0, 1.0]], np.float32),
    "n": np.asarray(3),
    "b": np.zeros(2, np.float64),
}
CLIP = FilterSpec(kind="clip", norm=1.0)


def filters(*specs: FilterSpec, **plan: Any) -> UpdateFilters:
    return UpdateFilters(job_plan(**plan).spec, specs, secret=bytes(32))


def passed(
    made: UpdateFilters,
    update: dict[str, Array],
    *,
    model: dict[str, Array] = MODEL,
    round_: int = 1,
) -> dict[str, Array]:
    """Return the arrays that leave, and check that the rest of the answer stays."""
    answer = RecordDict({"u": record_of(update), "m": MetricRecord({"num-examples": 5})})
    found = made.content(answer, RecordDict({"a": record_of(model)}), round_, "train")
    assert list(found) == ["u", "m"]
    assert dict(found["m"]) == {"num-examples": 5}
    return arrays_of(found["u"])


def moved(*values: float) -> dict[str, Array]:
    """Return the model with differences: four numbers of ``w``, two of ``b``."""
    return {
        "w": MODEL["w"] + np.asarray(values[:4], np.float32).reshape(2, 2),
        "n": np.asarray(9),
        "b": np.asarray(values[4:], np.float64),
    }


def difference(found: dict[str, Array]) -> list[float]:
    assert found["n"] == 3  # an integer is none of the difference
    apart = found["w"].astype(np.float64) - MODEL["w"]
    return [*apart.reshape(-1).tolist(), *found["b"].tolist()]


def test_each_filter_by_hand() -> None:
    update = moved(3, 0, 0, 4, 0, 0)
    np.testing.assert_allclose(
        difference(passed(filters(CLIP), update)), [0.6, 0, 0, 0.8, 0, 0], atol=1e-6
    )
    assert difference(passed(filters(CLIP), moved(0.5, 0, 0, 0, 0, 0))) == [0.5, 0, 0, 0, 0, 0]
    topk = FilterSpec(kind="topk", fraction=0.5)
    assert difference(passed(filters(topk), moved(3, 1, -2, 4, 1, -2))) == [3, 0, 0, 4, 0, -2]
    above = FilterSpec(kind="percentile", percentile=60, limit=2.5)
    assert difference(passed(filters(above), moved(3, 1, -2, 4, 1, -5))) == [
        2.5,
        0,
        0,
        2.5,
        0,
        -2.5,
    ]
    sign = FilterSpec(kind="sign", step=0.25)
    assert difference(passed(filters(sign), moved(3, 0, -2, 4, 1, -5))) == [
        *(0.25, 0, -0.25, 0.25),
        *(0.25, -0.25),
    ]


def test_filters_apply_in_their_order() -> None:
    sign = FilterSpec(kind="sign", step=1.0)
    update = moved(3, 0, 0, 4, 0, 0)
    first = difference(passed(filters(CLIP, sign), update))
    second = difference(passed(filters(sign, CLIP), update))
    assert first == [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(second, [0.5**0.5, 0, 0, 0.5**0.5, 0, 0], atol=1e-6)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), norm=st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_no_rounding_makes_a_clipped_update_longer(values: list[float], norm: float) -> None:
    found = passed(filters(FilterSpec(kind="clip", norm=norm)), moved(*values))
    assert float(np.linalg.norm(difference(found))) <= norm * (1 + 1e-12)


def test_noise_has_the_deviation_that_the_site_states_and_is_bound_to_the_update() -> None:
    model: dict[str, Array] = {"w": np.zeros(40_000)}
    made = filters(FilterSpec(kind="clip", norm=2.0), FilterSpec(kind="gaussian", sigma=0.5))
    found = passed(made, {"w": np.zeros(40_000)}, model=model)["w"]
    # sigma * norm = 1; the chi-square statistic of 40,000 numbers is within 5 deviations.
    statistic = float((found**2).sum())
    assert abs(statistic - 40_000) < 5 * (2 * 40_000) ** 0.5 + 40_000 * 2.0**-9
    assert abs(float(found.mean())) < 5 / 40_000**0.5
    again = passed(made, {"w": np.zeros(40_000)}, model=model)["w"]
    assert again.tobytes() == found.tobytes()
    for other in (
        passed(made, {"w": np.zeros(40_000)}, model=model, round_=2)["w"],
        passed(made, {"w": np.full(40_000, 1e-3)}, model=model)["w"],
        passed(UpdateFilters(job_plan().spec, made._filters), {"w": np.zeros(40_000)}, model=model)[
            "w"
        ],
    ):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.05


def test_an_update_in_bfloat16_stays_one() -> None:
    model: dict[str, Array] = {"w": to_bfloat16(np.ones(4, np.float32))}
    update: dict[str, Array] = {"w": to_bfloat16(np.full(4, 9.0, np.float32))}
    assert passed(filters(CLIP), update, model=model)["w"].dtype == model["w"].dtype


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"c": ConfigRecord({"data": b"x"})}, "train", "a ConfigRecord cannot be filtered"),
        ({"u": record_of(MODEL), "v": record_of(MODEL)}, "train", "leave as one update"),
        ({"u": record_of(MODEL)}, "evaluate", "in the answer to a message to train"),
        ({"u": record_of(MODEL)}, "query.anything", "in the answer to a message to train"),
        ({"u": record_of({"w": MODEL["w"]})}, "train", "n"),
        ({"u": record_of({**MODEL, "w": np.zeros(3, np.float32)})}, "train", "w"),
        (
            {"u": record_of({**MODEL, "b": np.asarray([np.nan, 0.0])})},
            "train",
            "b: contains NaN or infinity",
        ),
    ],
)
def test_what_no_filter_can_read_does_not_leave(
    answer: dict[str, Any], kind: str, words: str
) -> None:
    asked = RecordDict({"a": record_of(MODEL)})
    with pytest.raises(UpdateRejected, match=words):
        filters(CLIP).content(RecordDict(answer), asked, 1, kind)


def test_an_answer_without_arrays_passes() -> None:
    answer = RecordDict({"m": MetricRecord({"loss": 1.0})})
    assert filters(CLIP).content(answer, RecordDict(), 1, "evaluate") is answer


def test_a_job_that_refuses_filters_does_not_run_with_them() -> None:
    refuse = {"aggregation": {"site_filters": "refuse"}}
    with pytest.raises(JobError, match=r"this site filters what leaves it \(clip\)"):
        filters(CLIP, **refuse)
    assert filters(**refuse).names == []


@pytest.mark.parametrize(
    ("order", "place"),
    [
        ("gaussian", 0),
        ("clip sign gaussian", 2),
        ("clip gaussian gaussian", 2),
        ("clip topk gaussian sign", None),
        ("sign clip percentile gaussian", None),
    ],
)
def test_noise_needs_a_bound_of_what_it_hides(order: str, place: int | None) -> None:
    made = {
        "clip": CLIP,
        "gaussian": FilterSpec(kind="gaussian", sigma=1.0),
        "percentile": FilterSpec(kind="percentile", percentile=50, limit=1.0),
        "sign": FilterSpec(kind="sign", step=1.0),
        "topk": FilterSpec(kind="topk", fraction=0.5),
    }
    chosen = [made[kind] for kind in order.split()]
    faults = [found for found, _ in order_fault(chosen)]
    assert faults == ([] if place is None else [place])
    if place is not None:
        with pytest.raises(ConfigError, match=rf"filters\[{place}\]: needs a filter"):
            filters(*chosen)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "clip"}, 'norm: "clip" needs it'),
        ({"kind": "clip", "norm": 1.0, "step": 1.0}, 'step: not a parameter of "clip"'),
        ({"kind": "percentile", "percentile": 10}, 'limit: "percentile" needs it'),
    ],
)
def test_parameters_of_another_filter_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InconsistentValues, match=words):
        FilterSpec(**values)


def test_the_filters_reach_the_client_with_its_bootstrap(tmp_path: Any) -> None:
    made = (CLIP, FilterSpec(kind="percentile", percentile=90, limit=0.1))
    document = Bootstrap(
        site="a",
        client="c",
        spec="{}",
        policy="",
        bundle=b"",
        gate_address="h:1",
        ca_pin=bytes(32),
        data="",
        attester=AttesterSettings(kind="tsm"),
        state=tmp_path,
        filters=made,
    ).encode()
    assert Bootstrap.decode(document).filters == made
    for wrong in (b'[{"kind": "none"}]', b'"clip"', b"[3]", b'[{"kind": "clip"}]'):
        start = document.index(b'"filters": ') + len(b'"filters": ')
        end = document.index(b"]", start) + 1
        with pytest.raises(ConfigError):
            Bootstrap.decode(document[:start] + wrong + document[end:])
