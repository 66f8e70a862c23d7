"""One stage of the protocol: a message to each client, and what each one answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

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
        self,
        stage: str,
        bodies: Mapping[str, bytes],
        take: Callable[[str, bytes], None],
        *,
        enough: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Send each site its body, and hand what it answered to ``take``.

        A site that does not answer, or whose answer ``take`` refuses with UpdateRejected, is
        reported and left out.

        :param enough: whether no further answer is needed, asked after each.
        :returns: the sites whose answers were taken, in the order of the bodies.
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
        taken = set()
        with closing(self._grid.arrivals(messages, timeout=self._timeout)) as arrivals:
            for node, message in arrivals:
                if message.has_error():
                    continue
                fields = message.content[SECAGG]
                try:
                    if (fields["stage"], fields["session"]) != (stage, self._session):
                        raise UpdateRejected("its answer is of another stage or session")
                    take(node.site, fields["body"])
                except UpdateRejected as error:
                    self.note(node.site, f"{stage}: {error}")
                    continue
                taken.add(node.site)
                if enough():
                    break
        return [site for site in bodies if site in taken]

    def note(self, site: str, line: str) -> None:
        """Report a line on a site."""
        self._grid.note(self._nodes[site], f"secure aggregation: {line}")
