"""The facts of an update come from what the exchange saw, whatever the aggregator reports."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from fedlearn.errors import JobError
from server.flower.exchange import receipts
from server.flower.exchange.receipts import Receipts, ledger_digest
from server.flower.job_plan import Reply

DIGEST = hashlib.sha256(b"update").hexdigest()


def reply(question: str = "q1", site: str = "site-a") -> Reply:
    return Reply(
        question=question,
        site=site,
        node=1,
        message=b"",
        objects={},
        size=70,
        key="ab" * 32,
        digest=DIGEST,
    )


def reported(**more: object) -> dict[str, Any]:
    return {"question": "q1", "round": 1, "site": "site-a", "examples": 5, "metrics": {}, **more}


def test_size_key_and_digest_are_those_of_the_exchange() -> None:
    held = Receipts()
    held.note(reply())
    lies = reported(bytes=1, key="00" * 32, digest="00" * 32)
    found = held.fill("update.received", lies)
    assert (found["bytes"], found["key"], found["digest"]) == (70, "ab" * 32, DIGEST)
    assert "question" not in found
    assert found["examples"] == 5


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (reported(question="q2"), "no site has sent"),
        (reported(question=None), "no site has sent"),
        (reported(question=["q1"]), "no site has sent"),
        (reported(site="site-b"), "an update of site-a is reported as one of site-b"),
    ],
)
def test_an_update_that_was_not_handed_over_is_none(fields: dict[str, Any], why: str) -> None:
    held = Receipts()
    held.note(reply())
    with pytest.raises(JobError, match=why):
        held.fill("update.received", fields)


def test_an_answer_makes_one_event() -> None:
    held = Receipts()
    held.note(reply())
    held.fill("update.received", reported())
    with pytest.raises(JobError, match="reported before"):
        held.fill("update.received", reported())
    held.note(reply())
    held.fill("update.rejected", reported(reason="no"))
    with pytest.raises(JobError, match="reported before"):
        held.fill("update.received", reported())


def test_other_events_pass_as_they_are() -> None:
    assert Receipts().fill("log", {"line": "x"}) == {"line": "x"}


def test_under_privacy_the_digest_is_keyed() -> None:
    secret = b"s" * 32
    held = Receipts(secret)
    held.note(reply())
    keyed = hmac.digest(secret, b"update\0" + bytes.fromhex(DIGEST), "sha256").hex()
    assert (
        held.fill("update.received", reported())["digest"] == keyed == ledger_digest(DIGEST, secret)
    )
    assert ledger_digest("", secret) == ""


def test_what_nobody_reports_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "_MAX_HELD", 2)
    held = Receipts()
    for number in range(3):
        held.note(reply(f"q{number}"))
    with pytest.raises(JobError):
        held.fill("update.received", reported(question="q0"))
    held.fill("update.received", reported(question="q2"))
