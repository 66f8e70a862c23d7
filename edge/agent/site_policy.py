"""The site's decision whether it runs a job on its data. Pure: settings, job and time in.

The coordinator's order is signed and the client's code is attested; the site decides in addition
whose code reads its data, when, and what may leave.

The page is docs/how-to/review-a-bundle.md.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.errors import AttestationError
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.policy.sign import verify_policy
from edge.agent import data_budget as databudget
from edge.agent.policy_versions import SeenPolicy, rollback
from edge.config.site import SiteConfig
from fedlearn.job.run import RunName
from fedlearn.job.spec import JobSpec

__all__ = ["Answer", "Decision", "decide"]

_NOTHING_CHARGED: Final = databudget.BudgetAccounts()


class Answer(enum.StrEnum):
    """A site's answer to an assignment."""

    RUN = "run"
    ASK = "ask"
    """A person at the site has to approve it."""
    WAIT = "wait"
    """Not now: outside of the hours, or too many jobs run."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An answer and its reasons, for the people at the site and at the coordinator.

    ``data`` is the path or the name of the claim that the client gets; empty unless it runs.
    ``policy`` is the job's policy where the site requires signed ones and the job runs by it.
    """

    answer: Answer
    reasons: tuple[str, ...]
    data: str = ""
    policy: AppraisalPolicy | None = None


def decide(
    config: SiteConfig,
    spec: JobSpec,
    *,
    site: str,
    bundle: bytes,
    now: datetime,
    running: int = 0,
    approved: bool = False,
    adopting: bool = False,
    policy: str = "",
    policy_signature: bytes = b"",
    seen: Mapping[str, SeenPolicy] = MappingProxyType({}),
    budget: databudget.BudgetAccounts = _NOTHING_CHARGED,
) -> Decision:
    """Return whether ``site`` runs ``spec`` with the code ``bundle`` (SHA-256, 32 bytes).

    ``running`` other clients run here already; ``approved`` when a person here approved
    this job with this bundle; ``adopting`` when its client runs here already, so that it
    does not wait. ``now`` must have a time zone. ``policy`` is the job's appraisal
    policy (TOML), with its operator's signature. ``seen`` are the versions of signed
    policies that this site has used: an older one is refused, except for a running client.
    ``budget`` is what the site's data was charged so far.
    """
    data, problem = _data(config, spec, site)
    refusals = [*_refusals(config, spec, site, bundle), *([problem] if problem else [])]
    signed, faults = _signed(config, spec, policy, policy_signature, {} if adopting else seen)
    refusals += faults
    if data:
        refusals += databudget.refusals(config, spec, data, budget)
    if refusals:
        return Decision(answer=Answer.REFUSE, reasons=tuple(refusals))
    if adopting:
        return Decision(answer=Answer.RUN, reasons=(), data=data, policy=signed)
    if not approved and (asks := list(_asks(config, bundle))):
        return Decision(answer=Answer.ASK, reasons=tuple(asks))
    if waits := list(_waits(config, now, running)):
        return Decision(answer=Answer.WAIT, reasons=tuple(waits))
    return Decision(answer=Answer.RUN, reasons=(), data=data, policy=signed)


def _refusals(config: SiteConfig, spec: JobSpec, site: str, bundle: bytes) -> Iterator[str]:
    if site not in spec.sites:
        yield f"the job does not name the site {site}"
    if bundle not in config.accept.bundles and config.accept.other_bundles == "refuse":
        yield f"the app bundle {bundle.hex()} is not in accept.bundles of this site"
    if spec.launcher not in ("any", config.launcher.kind):
        yield f"the job wants the launcher {spec.launcher}, this site has {config.launcher.kind}"
    if spec.aggregation.visible and not config.accept.visible_updates:
        yield (
            "the job's app receives the update of each site (aggregation.updates = "
            '"visible-to-app"), and accept.visible_updates of this site does not allow it'
        )
    filters = [each.kind for each in config.privacy.filters]
    if filters and spec.aggregation.site_filters == "refuse":
        yield (
            f"this site filters every update ({', '.join(filters)}), and the job does not accept "
            'it (aggregation.site_filters = "refuse")'
        )
    yield from _privacy(config, spec)
    for name in ("cpu", "memory_mib", "gpu"):
        wanted, cap = getattr(spec.resources, name), getattr(config.caps, name)
        if wanted > cap:
            yield f"the job wants {name} = {wanted:g}, this site gives at most {cap:g}"


def _signed(
    config: SiteConfig,
    spec: JobSpec,
    policy: str,
    signature: bytes,
    seen: Mapping[str, SeenPolicy],
) -> tuple[AppraisalPolicy | None, list[str]]:
    """Return the job's policy, where it has to be signed, and why it is not acceptable here."""
    keys = config.accept.policy_keys
    if not keys:
        return None, []
    if not signature:
        return None, ["the job's policy is not signed, and this site requires a signature"]
    faults = []
    try:
        found = parse_policy(policy.encode(), where="the job's policy")
        if found.digest != spec.policy_digest:
            faults.append("the policy that came with the job is not the one that the job names")
        verify_policy(found, signature, key_digests=keys)
        if older := rollback(found, seen):
            faults.append(older)
    except AttestationError as error:
        return None, [*faults, f"the job's policy is not acceptable here: {error}"]
    return found, faults


def _privacy(config: SiteConfig, spec: JobSpec) -> Iterator[str]:
    floor = config.privacy
    promise = spec.privacy
    asked = floor.max_epsilon < 1e6 or floor.max_delta < 0.5 or floor.min_noise_multiplier > 0
    required = floor.required or asked
    if promise is None:
        if required:
            yield "the job has no [privacy], and this site requires it"
        return
    if promise.epsilon > floor.max_epsilon:
        yield f"epsilon {promise.epsilon:g} is above this site's {floor.max_epsilon:g}"
    if promise.delta > floor.max_delta:
        yield f"delta {promise.delta:g} is above this site's {floor.max_delta:g}"
    if promise.noise_multiplier < floor.min_noise_multiplier:
        yield (
            f"the noise multiplier {promise.noise_multiplier:g} is below this site's "
            f"{floor.min_noise_multiplier:g}"
        )
    if required and not promise.protects(floor.unit):
        yield (
            f"the job protects each {promise.unit}, as far as its app does, and privacy.unit of "
            f"this site is {floor.unit}"
        )
    if promise.insecure_deterministic_noise and required:
        yield "the job's noise is derived from its seed, so it gives no privacy"
    if promise.insecure_exact_metrics and required and not floor.insecure_exact_metrics:
        yield (
            "the job's metrics leave the site without noise (insecure_exact_metrics), and "
            "privacy.insecure_exact_metrics of this site does not allow it"
        )


def _data(config: SiteConfig, spec: JobSpec, site: str) -> tuple[str, str]:
    """Return the data of the job here, or why there is none."""
    mount = spec.data.get(site)
    if mount is not None and mount.path:
        path = Path(mount.path).resolve()
        if not any(path.is_relative_to(root.resolve()) for root in config.accept.data_paths):
            return "", f"the path {mount.path} is not below accept.data_paths of this site"
        return str(path), ""
    if mount is not None and mount.claim:
        known = [item for item in config.data.values() if item.claim == mount.claim]
        if not known:
            return "", f"the claim {mount.claim} is not a data set of this site"
        return _allowed(known[0].jobs, spec, mount.claim, mount.claim)
    wanted = mount.set if mount is not None else next(iter(config.data), "")
    if mount is None and len(config.data) != 1:
        return "", f"the job names no data for {site}, and this site has {len(config.data)} sets"
    found = config.data.get(wanted)
    if found is None:
        return "", f"this site has no data set {wanted!r}"
    place = str(found.path.resolve()) if found.path is not None else found.claim
    return _allowed(found.jobs, spec, wanted, place)


def _allowed(jobs: tuple[str, ...], spec: JobSpec, name: str, place: str) -> tuple[str, str]:
    job = RunName.of_id(spec.name).name
    if not any(fnmatch.fnmatchcase(job, pattern) for pattern in jobs):
        return "", f"the data set {name} is not for the job {job}"
    return place, ""


def _asks(config: SiteConfig, bundle: bytes) -> Iterator[str]:
    if config.accept.approval == "manual":
        yield "every job needs approval at this site"
    if bundle not in config.accept.bundles and config.accept.other_bundles == "ask":
        yield f"the app bundle {bundle.hex()} needs approval at this site"


def _waits(config: SiteConfig, now: datetime, running: int) -> Iterator[str]:
    local = now.astimezone(UTC)
    hours = config.accept.hours
    if hours is not None and not hours.contain(local.hour * 60 + local.minute):
        yield f"this site runs jobs at {hours} only"
    if running >= config.caps.jobs:
        yield f"{running} jobs run here, and this site runs at most {config.caps.jobs} at once"
