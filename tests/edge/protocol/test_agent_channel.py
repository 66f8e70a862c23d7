"""The messages between an agent and its client's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from edge.protocol import agent_channel
from edge.protocol.agent_channel import AgentChannel, Gone, agent_end
from fedlearn.errors import LaunchError
from fedlearn.job.phase import Phase
from fedlearn.sandbox.process_channel import ProcessChannel

Record = tuple[dict[str, Any], list[bytes]]


class Agent:
    """The agent's end, which answers each question by the next of ``answers``."""

    def __init__(self, *answers: Callable[[int], list[Record]]) -> None:
        ours, theirs = socket.socketpair()
        self.channel: ProcessChannel = agent_end(ours)
        self.client = AgentChannel(theirs)
        self.received: list[Record] = []
        self.channel.send({}, [b"bootstrap"])
        assert self.client.bootstrap() == b"bootstrap"
        self._thread = threading.Thread(target=self._answer, args=(answers,), daemon=True)
        self._thread.start()

    def _answer(self, answers: tuple[Callable[[int], list[Record]], ...]) -> None:
        for answer in answers:
            header, blobs = self.take()
            for record in answer(header["number"]):
                self.channel.send(*record)
            self.received.append((header, blobs))

    def take(self) -> Record:
        record = self.channel.receive(timeout=10)
        assert record is not None
        return record[0], [bytes(blob) for blob in record[1]]

    def done(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def good(number: int) -> list[Record]:
    return [({"number": number}, [b"yes"])]


def test_a_question_is_answered_with_bytes_or_a_reason() -> None:
    agent = Agent(
        good,
        good,
        lambda number: [({"number": number}, [b""])],
        lambda number: [({"number": number, "refused": "the budget is 5"}, [])],
    )
    assert agent.client.vouch(b"nonce", b"key") == b"yes"
    assert agent.client.grant_seed(b"request") == b"yes"
    agent.client.charge("q1")
    with pytest.raises(LaunchError, match=r"does not charge the update .*: the budget is 5"):
        agent.client.charge("q2")
    agent.done()
    assert [(header["ask"], blobs) for header, blobs in agent.received] == [
        ("vouch", [b"nonce", b"key"]),
        ("seed", [b"request"]),
        ("charge", [b"q1"]),
        ("charge", [b"q2"]),
    ]
    agent.client.report(Phase.RUNNING, "x" * 3000)
    assert agent.take() == ({"phase": "running", "reason": "x" * 2000}, [])


def test_a_late_answer_is_not_taken_for_one_to_another_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(
        lambda number: [],
        lambda number: [*good(number - 1), ({"number": number, "refused": "over"}, [])],
    )
    monkeypatch.setattr(agent_channel, "_ANSWER_SECONDS", 0.1)
    with pytest.raises(Gone, match="did not answer within"):
        agent.client.charge("q1")
    monkeypatch.setattr(agent_channel, "_ANSWER_SECONDS", 10.0)
    with pytest.raises(LaunchError, match="over"):
        agent.client.charge("q2")
    agent.done()


def test_an_answer_without_bytes_is_refused() -> None:
    agent = Agent(lambda number: [({"number": number}, [])])
    with pytest.raises(LaunchError, match="holds no bytes"):
        agent.client.vouch(b"nonce", b"key")


def test_a_client_is_stopped_and_notices_that_its_agent_is_gone() -> None:
    agent = Agent()
    agent.channel.send({"stop": "the job ended"})
    assert agent.client.stop.wait(10)
    agent.channel.close()
    with pytest.raises(Gone, match="the agent is gone"):
        agent.client.charge("q")
    ours, theirs = socket.socketpair()
    agent_end(ours).close()
    with pytest.raises(Gone, match="no bootstrap document"):
        AgentChannel(theirs).bootstrap()
