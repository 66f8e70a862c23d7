"""What a reply states about the filters of its site, and what the coordinator makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedlearn.app.array_records import record_of
from fedlearn.app.flower import FILTERED
from fedlearn.errors import UpdateRejected
from server.flower.aggregation.round_updates import RoundUpdates, Rules
from server.flower.aggregation.update_validator import Asked, UpdateValidator
from server.flower.exchange.calls import Node


def checked(stated: Any, *, accepted: bool = True) -> tuple[RecordDict, Asked]:
    rules = Rules(
        sites=("a",),
        quorum=1,
        seconds=1.0,
        stragglers="drop",
        max_update_bytes=1 << 20,
        site_filters=accepted,
    )
    coordinator: Any = None
    validator = UpdateValidator(rules, RoundUpdates(coordinator, rules))
    content = RecordDict(
        {"u": record_of({"w": np.zeros(3)}), "m": MetricRecord({"num-examples": 1})}
    )
    if stated is not None:
        content[FILTERED] = stated
    asked = Asked(Node(number=1, site="a"), "train", None)
    return validator._checked(content, asked), asked


def test_the_filters_of_a_reply_are_noted_and_do_not_reach_the_strategy() -> None:
    content, asked = checked(ConfigRecord({"names": ["clip", "gaussian"]}))
    assert list(content) == ["u", "m"]
    assert asked.filters == ("clip", "gaussian")
    content, asked = checked(None, accepted=False)
    assert asked.filters == ()


def test_a_filtered_update_is_refused_where_the_job_does_not_accept_it() -> None:
    with pytest.raises(UpdateRejected, match=r"its site filtered it \(clip\), and the job has"):
        checked(ConfigRecord({"names": ["clip"]}), accepted=False)


@pytest.mark.parametrize(
    "stated",
    [
        ConfigRecord({"names": ["data of a patient"]}),
        ConfigRecord({"names": ["clip"] * 17}),
        ConfigRecord({"names": []}),
        ConfigRecord({"names": "clip"}),
        ConfigRecord({}),
        MetricRecord({"names": 1}),
    ],
)
def test_a_name_that_is_no_filter_is_refused(stated: Any) -> None:
    with pytest.raises(UpdateRejected, match="its filters are not some of clip"):
        checked(stated)
