"""A client that was throttled was not looked at, and asks again."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from edge.client import runner as module
from fedlearn.errors import AdmissionDenied, FedlearnError, Throttled, TransportError


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.02)
    made: Any = object.__new__(module._Client)
    made._stop = threading.Event()
    made._now = lambda: datetime.now(UTC)
    return made


@pytest.mark.parametrize("error", [Throttled("too many"), TransportError("away")])
def test_admission_is_sought_again(client: Any, error: FedlearnError) -> None:
    answers: list[Any] = [error, error, "status"]

    def seek(attester: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client._seek = seek
    assert client._admitted(None, patient=False) == "status"


def test_a_refusal_is_final(client: Any) -> None:
    tries = []

    def seek(attester: Any) -> Any:
        tries.append(1)
        raise AdmissionDenied("no")

    client._seek = seek
    with pytest.raises(AdmissionDenied):
        client._admitted(None, patient=False)
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("errors", "tries"),
    [([Throttled("x"), Throttled("x"), TransportError("y")], 4), ([AdmissionDenied("no")], 1)],
)
def test_attesting_again_is_tried_again_unless_it_was_refused(
    client: Any, errors: list[FedlearnError], tries: int
) -> None:
    over = threading.Event()
    made = []

    def renew(*_: Any) -> None:
        made.append(1)
        if errors:
            raise errors.pop(0)
        over.set()

    client._renew = renew
    status = SimpleNamespace(admitted=SimpleNamespace(renew_after=datetime.now(UTC)))
    client._keep_admitted(None, status, None, over)
    assert len(made) == tries
