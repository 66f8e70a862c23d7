"""A launcher of a site that has nothing to do."""

from __future__ import annotations

from collections.abc import Mapping

from edge.protocol.workload import Workload


class NoClients:
    """Fails when something is to be started or stopped."""

    kind = "process"

    def launch(self, workload: Workload) -> None:
        """Fail."""
        raise AssertionError("nothing was ordered")

    def stop(self, assignment: str, reason: str) -> None:
        """Fail."""
        raise AssertionError("nothing runs")

    def running(self) -> tuple[str, ...]:
        """Return no assignment."""
        return ()

    def capabilities(self) -> Mapping[str, object]:
        """Return the kind."""
        return {"launcher": self.kind}

    def close(self) -> None:
        """Do nothing."""
