"""The line between an agent and its client's process."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from edge.protocol.process_channel import AgentChannel, receive, send
from fedlearn.errors import LaunchError


def test_a_charge_is_answered_before_the_client_goes_on() -> None:
    ours, theirs = socket.socketpair()
    asked: list[object] = []

    def agent() -> None:
        send(ours, b"bootstrap")
        for answer in ({"answer": ""}, {"answer": "", "why": "the budget is 5"}):
            asked.append(json.loads(receive(ours)))
            send(ours, answer)

    thread = threading.Thread(target=agent)
    thread.start()
    line = AgentChannel(theirs)
    assert line.bootstrap() == b"bootstrap"
    line.charge("q1")
    with pytest.raises(LaunchError, match=r"does not charge the update .*: the budget is 5"):
        line.charge("q2")
    thread.join()
    assert asked == [{"charge": "q1"}, {"charge": "q2"}]
    ours.close()
    with pytest.raises(LaunchError, match=r"the other end of the line is gone|did not answer"):
        line.charge("q3")
