"""Decides which sites run a job, before its first round, from what the sites report.

Pure: the same job, policy and reports give the same reasons and choices. A report is a claim of
the site and decides nothing about trust, which evidence decides at admission. It prevents rounds
that cannot succeed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from attestation.policy.model import AppraisalPolicy
from fedlearn.errors import JobError
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import Resources

__all__ = ["Candidate", "Choice", "choose", "objections", "obstacles"]

_RESOURCES: Final = ("cpu", "memory_mib", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A site as the coordinator knows it when a job is submitted.

    ``unable``        why it cannot take part, such as not being connected; or empty
    ``capabilities``  the JSON object that it reported last, or empty
    ``busy``          what the clients of other open jobs need of it, one entry each
    ``failures``      how many clients failed there lately
    """

    name: str
    unable: str = ""
    capabilities: str = ""
    busy: tuple[Resources, ...] = ()
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sites that take part, in the job's order, and why each of the others does not."""

    sites: tuple[str, ...]
    passed_over: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def choose(spec: JobSpec, policy: AppraisalPolicy, candidates: Sequence[Candidate]) -> Choice:
    """Pick ``spec.placement.choose`` of ``candidates``, which are the job's sites.

    Sites that are unable, or have :func:`obstacles` in their reports, are left out. The others
    are sorted: first those with room for one more client, then those with the fewest failures,
    then by ``spec.placement.prefer``, then in the order of the job. A site that reports no cost
    follows all sites that report one.

    :raises JobError: when too few are able, with the reason for each of the others.
    """
    able: list[tuple[tuple[float, ...], Candidate, str]] = []
    passed: dict[str, str] = {}
    for candidate in candidates:
        name = candidate.name
        reasons = obstacles(spec, policy, site=name, capabilities=candidate.capabilities)
        if candidate.unable or reasons:
            passed[name] = candidate.unable or "; ".join(reasons)
            continue
        rank, words = _rank(spec, candidate)
        able.append(((*rank, float(spec.sites.index(name))), candidate, words))
    wanted = spec.placement.choose
    if len(able) < wanted:
        why = "; ".join(f"site {name}: {reason}" for name, reason in passed.items())
        raise JobError(
            f"the job needs {wanted} sites and {len(able)} are able: {why}",
            hint="change the job or the sites, or lower placement.choose and `quorum`",
        )
    able.sort(key=lambda item: item[0])
    chosen = {candidate.name for _, candidate, _ in able[:wanted]}
    passed |= {
        candidate.name: f"others come first: {words}" for _, candidate, words in able[wanted:]
    }
    return Choice(sites=tuple(site for site in spec.sites if site in chosen), passed_over=passed)


def _rank(spec: JobSpec, candidate: Candidate) -> tuple[tuple[float, ...], str]:
    """Return the sort key of a site, least first, and the same in words."""
    report = _report(candidate.capabilities) or {}
    room = _room(spec.resources, report, candidate.busy)
    cost = _number(report.get("cost"))
    rank = [float(room < 1), float(candidate.failures)]
    words = [f"room for {_shown(room)} more", f"{candidate.failures} failures lately"]
    match spec.placement.prefer:
        case "capacity":
            rank.append(-room)
        case "cost":
            rank.append(math.inf if cost is None else cost)
            words.append("no known cost" if cost is None else f"cost {cost:g}")
        case _:
            words.append(f"listed as number {spec.sites.index(candidate.name) + 1}")
    return tuple(rank), ", ".join(words)


def _room(wanted: Resources, report: Mapping[str, Any], busy: Sequence[Resources]) -> float:
    """Return for how many such clients there is room; a value not reported sets no limit."""
    rooms = []
    for name in _RESOURCES:
        each = float(getattr(wanted, name))
        total = _number(report.get(f"total_{name}"))
        if total is None:
            total = _number(report.get(name))
        if total is not None and each > 0:
            taken = sum(float(getattr(other, name)) for other in busy)
            rooms.append((total - taken) / each)
    if (jobs := _number(report.get("jobs"))) is not None:
        rooms.append(jobs - len(busy))
    return float(math.floor(max(0.0, min(rooms)))) if rooms else math.inf


def _shown(room: float) -> str:
    return "any number" if math.isinf(room) else f"{room:g}"


def _number(value: object) -> float | None:
    """Return a value of a report if it is a number; a report may contain anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _report(capabilities: str) -> Mapping[str, Any] | None:
    try:
        report: object = json.loads(capabilities) if capabilities else {}
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, Mapping) else None


def obstacles(
    spec: JobSpec, policy: AppraisalPolicy, *, site: str, capabilities: str
) -> tuple[str, ...]:
    """Return the reasons in the report of ``site`` why it cannot run ``spec``.

    ``capabilities`` is the JSON object that the site sent last, or empty when it has not
    sent one yet. A value that it does not mention is not an obstacle.
    """
    report = _report(capabilities)
    if report is None:
        return ("its report of capabilities is not a JSON object",)
    return tuple(_reasons(spec, policy, site, report))


def objections(spec: JobSpec, *, bundle: bytes, signer: bytes, capabilities: str) -> Iterator[str]:
    """Yield what a site reports that it refuses or leaves out of ``spec``, or asks a person about.

    ``bundle`` is the SHA-256 of the app's bundle; ``signer`` that of the key (SPKI) that signed the
    policy, empty when it is not signed.
    ``capabilities`` is as for :func:`obstacles`: a site need not report what it accepts.
    """
    report = _report(capabilities) or {}
    accept = report.get("accept")
    if not isinstance(accept, Mapping):
        return
    name = bundle.hex()
    bundles, others = accept.get("bundles"), accept.get("other_bundles")
    if isinstance(bundles, list) and name not in bundles and others == "refuse":
        yield f"it refuses the app bundle {name} until its site.toml has it in accept.bundles"
    elif accept.get("approval") == "manual" or (
        isinstance(bundles, list) and name not in bundles and others == "ask"
    ):
        yield (f"a person there has to approve the app: `fedlearn-edge approve {spec.name} {name}`")
    if spec.aggregation.visible and accept.get("visible_updates") is False:
        yield "it refuses an app that receives the update of each site (accept.visible_updates)"
    if spec.aggregation.site_filters == "refuse" and accept.get("filters"):
        yield "it filters every update, and the job refuses this (aggregation.site_filters)"
    if spec.app_logs == "sealed" and accept.get("app_logs") in ("off", "insecure-plain"):
        yield "it runs the job and sends no logs of the app (accept.app_logs)"
    keys = accept.get("policy_keys")
    if isinstance(keys, list) and keys and signer.hex() not in keys:
        what = f"is signed by {signer.hex()}" if signer else "is not signed"
        yield f"it refuses a policy that {what}: its accept.policy_keys names other keys"


def _reasons(
    spec: JobSpec, policy: AppraisalPolicy, site: str, report: Mapping[str, Any]
) -> Iterator[str]:
    launcher = report.get("launcher")
    if isinstance(launcher, str) and spec.launcher not in ("any", launcher):
        yield f"the job needs the launcher {spec.launcher}, it has {launcher}"
    tees = report.get("tees")
    accepted = {tee.value for tee in policy.accept}
    if isinstance(tees, list) and accepted.isdisjoint(map(str, tees)):
        has = ", ".join(map(str, tees)) or "none"
        yield f"the policy accepts {', '.join(sorted(accepted)) or 'nothing'}, its TEE is {has}"
    for name in _RESOURCES:
        available, wanted = _number(report.get(name)), getattr(spec.resources, name)
        if available is not None and available < wanted:
            yield f"the job needs {name} = {wanted:g}, it has {available:g}"
    mount = spec.data.get(site)
    sets = report.get("data")
    if mount is not None and mount.set and isinstance(sets, list) and mount.set not in sets:
        yield f"it has no data set {mount.set!r}; it has {', '.join(map(str, sets)) or 'none'}"
