"""The ``fedlearn`` command: one module a noun, each imported only when it is used.

The pages are docs/how-to/index.md, docs/reference/cli/fedlearn.md and
docs/contributing/write-documentation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

from fedlearn import __version__
from fedlearn.terminal.console import COMPLETION, Commands, Noun

__all__ = ["NOUNS", "main"]


def _noun(name: str, summary: str, attribute: str = "group") -> Noun:
    return Noun(module=f"fedlearn.cli.{name}", attribute=attribute, summary=summary)


NOUNS: Final[Mapping[str, Noun]] = MappingProxyType(
    {
        "demo": _noun(
            "demo.commands", "Train a model across attested sites on this machine.", "command"
        ),
        "simulate": _noun(
            "simulate.commands", "Run a job with simulated clients, without attestation.", "command"
        ),
        "job": _noun("job.commands", "Write, check, submit and watch jobs."),
        "site": _noun("site", "Invite, show, approve, drain and remove sites."),
        "operator": _noun("operators", "Log in, and add or revoke operators of the coordinator."),
        "local": _noun("local", "Keep a coordinator and sites on this machine."),
        "policy": _noun(
            "appraisal.policy", "Check, apply, explain, draft and sign appraisal policies."
        ),
        "evidence": _noun("appraisal.evidence", "Collect, inspect and appraise evidence."),
        "collateral": _noun(
            "appraisal.collateral", "Fetch and keep the vendors' documents for verification."
        ),
        "model": _noun("state.model", "List, open, export and verify sealed models."),
        "ledger": _noun("state.ledger", "Show and verify the record of every decision."),
        "privacy": _noun("privacy.commands", "Plan how much noise an epsilon needs."),
        "data": _noun(
            "data.commands", "Divide a data set among simulated sites, and see who has what."
        ),
        "experiment": _noun(
            "experiment.commands", "Run a job over a grid of values in simulation, and report."
        ),
        "audit": _noun(
            "audit.commands", "Attack a job of your own in the simulator, and measure the effect."
        ),
        "bench": _noun("bench.commands", "Measure what confidentiality costs on this machine."),
        "doctor": _noun("doctor", "Check this machine and its configuration.", "command"),
        "completion": COMPLETION,
    }
)
"""The nouns of the command line, in the order in which ``--help`` shows them."""


@click.group(cls=Commands, name="fedlearn", nouns=NOUNS)
@click.version_option(__version__, prog_name="fedlearn", message="%(prog)s %(version)s")
def main() -> None:
    """Train one model across attested sites.

    A first own job:  fedlearn job init my-job && fedlearn job validate my-job/job.toml
    """
