"""Fixtures of tests/server/flower/exchange."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.flower.exchange.job_exchange import JobExchange
from tests.fakes.exchange import FakeNode
from tests.harness.job_plans import job_plan


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobExchange]:
    monkeypatch.setattr("server.flower.exchange.nodes._HOLD_SECONDS", 0.2)
    made = JobExchange(job_plan())
    yield made
    made.close(completed=False)


@pytest.fixture
def nodes(link: JobExchange) -> list[FakeNode]:
    made = [FakeNode(link, "a"), FakeNode(link, "b")]
    for node in made:
        node.activate()
    return made
