"""The outcome of a demo run, as plain values, for the report and the terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedlearn.demo.significance import UNKNOWN, Gain
from fedlearn.job.event_fields import Findings
from fedlearn.results.refusals import findings_against

__all__ = [
    "METRIC_NAMES",
    "DemoOutcome",
    "LedgerFacts",
    "ModelFacts",
    "RefusedSite",
    "RoundFacts",
    "SiteFacts",
]

METRIC_NAMES: Final[Mapping[str, str]] = {"auc": "AUC", "accuracy": "Accuracy"}
"""The names of metrics on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """One site that took part.

    ``tee``           the TEE in which its client runs, by its evidence
    ``admitted``      seconds from the start of the demo until its certificate was issued
    ``rounds``        rounds with an update of this site in the model
    ``alone``         metric of a model trained on this site's rows only, on all test rows
    ``alone_own``     the same model on the site's own test rows; NaN where undefined
    ``federated_own`` the federated model on the site's own test rows; NaN where undefined
    ``gain``          the federated model over the one trained alone, on all test rows
    ``gain_own``      the same on the site's own test rows
    """

    name: str
    tee: str
    train: int
    test: int
    members: int = 0
    admitted: float = math.nan
    rounds: int = 0
    bytes: int = 0
    alone: float = math.nan
    alone_own: float = math.nan
    federated_own: float = math.nan
    gain: Gain = UNKNOWN
    gain_own: Gain = UNKNOWN
    hardware_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSite:
    """A site that was refused. ``findings`` as in ``Finding.to_json``."""

    name: str
    tee: str
    story: str
    reason: str
    findings: Findings = ()
    round: int = 0

    @property
    def against(self) -> Findings:
        """The findings for which it was refused, one for each claim and value."""
        return findings_against(self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """One round, with the metric of its model."""

    number: int
    seconds: float
    sites: int
    bytes: int
    metric: float = math.nan
    loss: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFacts:
    """The ledger after the run. ``fault`` is empty when every entry verified."""

    entries: int
    head: str
    key: str
    kinds: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The sealed model.

    ``matches``  the opened weights give the metric that the sites reported
    ``refusal``  the refusal of the other key; empty means that it was not refused
    """

    name: str
    version: int
    file: str
    bytes: int
    sha256: str
    tensors: int
    parameters: int
    owner: str
    opened: bool
    matches: bool
    stranger: str
    refusal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """A whole run. ``started`` is RFC 3339 with a zone; ``timings`` are seconds by step.

    ``gain``      of the federated model over the mean of the sites' own, on all test rows
    ``insecure``  why the evidence of this run proves nothing about hardware
    """

    data: str
    title: str
    task: str
    source: str
    licence: str
    partition: str
    unit: str
    metric: str
    federated: float
    error: float
    pooled: float
    member: float | None
    members: int
    seed: int
    started: str
    seconds: float
    version: str
    command: str
    sites: tuple[SiteFacts, ...]
    refused: tuple[RefusedSite, ...]
    rounds: tuple[RoundFacts, ...]
    ledger: LedgerFacts
    model: ModelFacts
    gain: Gain = UNKNOWN
    insecure: str = ""
    policy: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    @property
    def metric_name(self) -> str:
        """The metric as it is written on a page."""
        return METRIC_NAMES.get(self.metric, self.metric)

    @property
    def alone(self) -> float:
        """Mean over the sites of the metric that each reaches alone, on all test rows."""
        known = [site.alone for site in self.sites if math.isfinite(site.alone)]
        return sum(known) / len(known) if known else math.nan

    @property
    def better_alone(self) -> tuple[SiteFacts, ...]:
        """The sites whose own model is better on their own test rows."""
        return tuple(site for site in self.sites if site.alone_own > site.federated_own)

    @property
    def train(self) -> int:
        """Training rows of all sites together."""
        return sum(site.train for site in self.sites)

    @property
    def test(self) -> int:
        """Test rows of all sites together."""
        return sum(site.test for site in self.sites)

    @property
    def faults(self) -> tuple[str, ...]:
        """What a demo must show and this run did not; empty when nothing is missing."""
        checks = (
            (self.ledger.fault == "", f"the ledger did not verify: {self.ledger.fault}"),
            (self.model.opened, "the owner could not open the sealed model"),
            (self.model.matches, "the opened model does not give the metric that was reported"),
            (bool(self.model.refusal), "the sealed model opened for the key of another owner"),
            (bool(self.refused), "the altered client was not refused"),
        )
        return tuple(text for passed, text in checks if not passed)

    def to_json(self) -> dict[str, Any]:
        """Return all values JSON-ready; NaN becomes null."""
        document: dict[str, Any] = _plain(dataclasses.asdict(self))
        document["alone"] = _plain(self.alone)
        document["gain"]["significant"] = self.gain.significant
        document["faults"] = list(self.faults)
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
