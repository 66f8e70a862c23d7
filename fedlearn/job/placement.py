"""The ``[placement]`` table of ``job.toml``: how many of the listed sites take part, and which.

Without it all of them do. With ``choose`` the sites of the job are candidates, of which the
coordinator chooses that many when the job is submitted (:mod:`server.jobs.placement`). The job that
runs names exactly those, so its digest, its evidence and the order of every aggregation are as
well defined as if the file had named them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attestation.config import choice, option, whole

__all__ = ["LAUNCHERS", "MAX_SITES", "PREFERENCES", "Placement"]

MAX_SITES: Final = 8191
"""The most sites of one job: the exact mean adds as many updates in one round (docs/adr/0042)."""

LAUNCHERS: Final = ("process", "kubernetes")
"""How a site may start clients: ``launcher.kind`` of ``site.toml``, and a job's ``launcher``."""

PREFERENCES: Final = ("listed", "capacity", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which of its sites a job runs at.

    ``choose``  how many; 0 for all
    ``prefer``  among sites that are equally able: the first ones that are ``listed``, those with
                the most free ``capacity``, or those of the least ``cost``
    """

    choose: int = option(whole(0, MAX_SITES), default=0)
    prefer: str = option(choice(*PREFERENCES), default="listed")
