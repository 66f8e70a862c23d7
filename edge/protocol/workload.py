"""How a site starts a client: one protocol for processes, pods and virtual machines.

A launcher starts clients and reports their phases. The site has decided before that it runs the
job (:mod:`edge.agent.site_policy`), and the coordinator decides by evidence whether the client is
the one that the policy demands. A launcher is not trusted with either decision.

The page is docs/contributing/add-a-launcher.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fedlearn.job.assignment import Assignment
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec

__all__ = ["REFUSED_EXIT", "Launcher", "Report", "WorkloadApi", "Workload"]

REFUSED_EXIT: Final = 3
"""Exit status of a client that was not admitted: starting it again would not help."""


Report = Callable[[str, Phase, str], None]
"""``report(assignment id, phase, reason)``; the reason is for people, never empty on failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One client to start.

    ``data``    path at the site, or the name of a PersistentVolumeClaim
    ``client``  name of the client in its SPIFFE id
    """

    assignment: Assignment
    spec: JobSpec
    bundle: bytes = field(repr=False)
    data: str
    client: str


class WorkloadApi(Protocol):
    """What a client asks of the agent that started it. It carries no secret."""

    def vouch(self, nonce: bytes, tls_key: bytes) -> bytes:
        """Return the site's signature for this client (see :mod:`fedlearn.identity.voucher`).

        :raises LaunchError: when the agent has ended or does not vouch.
        """
        ...

    def grant_seed(self, request: bytes) -> bytes:
        """Return the seed of this client's commitment, sealed to it
        (:mod:`edge.protocol.seed_release`).

        :raises LaunchError: when the agent has ended or the client is not admitted.
        """
        ...

    def charge(self, question: str) -> None:
        """Charge the update that answers ``question`` to the budget of the site's data.

        When it returns, the charge is on the site's disk, and the update may leave.

        :raises FedlearnError: when the agent has ended, or the update does not fit into the
            budget. The update must not leave then.
        """
        ...


class Launcher(Protocol):
    """Starts and stops clients. Methods are called from several threads and do not block."""

    @property
    def kind(self) -> str:
        """The name in ``site.toml`` and in a job's ``launcher``."""
        ...

    def launch(self, workload: Workload) -> None:
        """Start a client, or adopt the one of the same assignment that runs already.

        :raises LaunchError: when it cannot be started; no part of it remains.
        """
        ...

    def stop(self, assignment: str, reason: str) -> None:
        """Stop a client and remove what it leaves; do nothing when there is none."""
        ...

    def running(self) -> tuple[str, ...]:
        """Return the assignments whose clients run, also those that an earlier agent started."""
        ...

    def capabilities(self) -> Mapping[str, Any]:
        """Return what this site can run, JSON-ready, for the coordinator and for people."""
        ...

    def close(self) -> None:
        """Release what the launcher holds. Processes end with their agent; pods stay."""
        ...
