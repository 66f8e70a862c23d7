"""A reply that cannot be sent, or breaks the rules of records, costs the round only its site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.flower_federation import (
    CLIENT_APP,
    PYPROJECT,
    FlowerFederation,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

_ODD = """
    odd = context.run_config["odd"] if context.node_config["index"] == 1 else ""
    if odd == "error":
        raise ValueError("not Unicode: \\ud800 " + "x" * 100_000)
    strange = {
        "integer": MetricRecord({"num-examples": 10, "n": 10**400}),
        "many": MetricRecord({"num-examples": 10, "n": [0.1234567890123] * 400_000}),
        "text": ConfigRecord({"n": "\\ud800"}),
    }
    if odd in strange:
        return Message(RecordDict({"strange": strange[odd]}), reply_to=message)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from server.flower.application.bundle import build

    place = '    time.sleep(context.run_config["pause"])\n'
    assert place in CLIENT_APP
    client = CLIENT_APP.replace(place, _ODD)
    project = PYPROJECT.replace("pause = ", 'odd = ""\npause = ')
    folder = tmp_path_factory.mktemp("src") / "app"
    return build(write_app(folder, client=client, project=project))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("integer", "more than 64 bits"),
        ("many", "at most 4194304 are sent"),
        ("text", "not Unicode"),
        ("error", "ValueError: not Unicode: ?"),
    ],
)
def test_an_odd_reply_is_one_site_short_of_the_quorum(
    federation: FlowerFederation, bundle: bytes, odd: str, reason: str
) -> None:
    plan = make_plan(
        bundle, job=odd, sites=2, quorum=1, rounds=2, run_config={"odd": odd}, evaluate_fraction=0.0
    )
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site)
    host.start()
    outcome = host.wait(60)
    assert outcome is not None
    assert outcome.status == "finished", outcome
    assert [received["sites"] for received in channel.of("round.finished")] == [1, 1]
    rejected = channel.of("update.rejected")
    assert [received["site"] for received in rejected] == ["site-1", "site-1"]
    assert all(reason in received["reason"] for received in rejected), rejected
