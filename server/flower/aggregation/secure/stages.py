"""One stage of the protocol: a message to each client, and what each one answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from fedlearn.app.flower import SECAGG
from fedlearn.errors import UpdateRejected
from server.flower.aggregation.grid import JobGrid

__all__ = ["Stages"]


class Stages:
    """The stages of one session.

    :param nodes: the node of each site.
    :param session: 16 bytes.
    """

    def __init__(
        self, grid: JobGrid, nodes: Mapping[str, int], session: bytes, *, timeout: float
    ) -> None:
        self._grid = grid
        self._nodes = nodes
        self._session = session
        self._timeout = timeout

    def ask(
        self, stage: str, bodies: Mapping[str, bytes], take: Callable[[str, bytes], None]
    ) -> list[str]:
        """Send each site its body, and hand what it answered to ``take``.

        A site that does not answer, or whose answer ``take`` refuses with UpdateRejected, is
        reported and left out.

        :returns: the sites whose answers were taken.
        """
        messages = [
            Message(
                RecordDict(
                    {SECAGG: ConfigRecord({"stage": stage, "session": self._session, "body": body})}
                ),
                self._nodes[site],
                SECAGG,
            )
            for site, body in bodies.items()
        ]
        replies = self._grid.send_and_receive(messages, timeout=self._timeout)
        return list(self._taken(stage, replies, take))

    def note(self, site: str, line: str) -> None:
        """Report a line on a site."""
        self._grid.note(self._nodes[site], f"secure aggregation: {line}")

    def _taken(
        self, stage: str, replies: object, take: Callable[[str, bytes], None]
    ) -> Iterator[str]:
        assert isinstance(replies, list)
        for message in replies:
            if message.has_error():
                continue
            node = message.metadata.src_node_id
            fields = message.content[SECAGG]
            try:
                if (fields["stage"], fields["session"]) != (stage, self._session):
                    raise UpdateRejected("its answer is of another stage or session")
                take(self._grid.site(node), fields["body"])
            except UpdateRejected as error:
                self._grid.note(node, f"secure aggregation, {stage}: {error}")
                continue
            yield self._grid.site(node)
