"""An exchange of a job with nodes that a test moves."""

from __future__ import annotations

import pytest

from fedlearn.app.message import Head
from server.clock import awake
from server.flower.exchange.job_exchange import JobExchange
from server.flower.job_plan import Reply


def error(reply: Reply) -> int:
    failure = Head.from_bytes(reply.message).failure
    assert failure is not None
    assert reply.size == 0
    return failure.code


def holds_nothing(link: JobExchange) -> bool:
    nodes = link._state.nodes.values()
    return not (
        link._state.questions or link._state.replies or any(n.queue or n.in_hand for n in nodes)
    )


class Clock:
    """The time for which the coordinator ran, as a test sets it; no date is its business."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = awake()
        for module in ("job_exchange", "exchange_state"):
            monkeypatch.setattr(f"server.flower.exchange.{module}.awake", lambda: self.now)
