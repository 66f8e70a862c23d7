"""An aggregator's requests to a coordinator that a thread serves, over a process channel."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fedlearn.errors import TransportError
from fedlearn.sandbox.process_channel import ProcessChannel
from server.flower.exchange.calls import CoordinatorClient, serve
from server.flower.exchange.job_exchange import JobExchange
from server.flower.job_plan import Checkpoint

LIMIT = 1 << 30


class Channel:
    """A job's channel that keeps what is saved and reported."""

    def __init__(self, sites: Sequence[str] = ()) -> None:
        self.saved: list[Checkpoint] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self._sites = sites

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.saved.append(checkpoint)

    def settle(self) -> None:
        return None

    def load_checkpoint(self) -> Checkpoint | None:
        return self.saved[-1] if self.saved else None

    def live_sites(self) -> dict[str, int]:
        return dict.fromkeys(self._sites, 0)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.events.append((kind, fields))

    def take_events(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.events += events


class JobRequests:
    """Both ends: ``client`` is the aggregator's."""

    def __init__(self, link: JobExchange) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(link.plan.spec.sites)
        self.end = ProcessChannel(ours, limit=LIMIT)
        self.client = CoordinatorClient(self.end)
        self.failed: list[TransportError] = []
        self._thread = threading.Thread(
            target=self._serve, args=(ProcessChannel(theirs, limit=LIMIT), link)
        )
        self._thread.start()

    def _serve(self, end: ProcessChannel, link: JobExchange) -> None:
        channel: Any = self.channel
        try:
            serve(end, link, channel, lambda rounds, failure: None)
        except TransportError as error:
            self.failed.append(error)
        finally:
            end.close()

    def close(self) -> None:
        self.end.close()
        self._thread.join(10)
