"""Can this site run that job? Asked before a round, of what the site reports about itself.

Pure: a job, its policy and a report go in, reasons come out. A report is a claim of the
site's and decides nothing about trust; evidence does that at admission. It saves everybody a
round that cannot work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attestation.policy import AppraisalPolicy
from fedlearn.job import JobSpec

__all__ = ["obstacles"]


def obstacles(
    spec: JobSpec, policy: AppraisalPolicy, *, site: str, capabilities: str
) -> tuple[str, ...]:
    """Return why ``site`` cannot run ``spec``; empty when nothing it reports speaks against it.

    ``capabilities`` is the JSON object that the site sent last, or empty when it has not
    been heard of yet. What it does not mention is not held against it.
    """
    try:
        report: object = json.loads(capabilities) if capabilities else {}
    except (ValueError, RecursionError):
        return ("its report of capabilities is not JSON",)
    if not isinstance(report, Mapping):
        return ("its report of capabilities is not an object",)
    return tuple(_reasons(spec, policy, site, report))


def _reasons(
    spec: JobSpec, policy: AppraisalPolicy, site: str, report: Mapping[str, Any]
) -> Iterator[str]:
    launcher = report.get("launcher")
    if isinstance(launcher, str) and spec.launcher not in ("any", launcher):
        yield f"the job wants the launcher {spec.launcher}, it has {launcher}"
    tees = report.get("tees")
    accepted = {tee.value for tee in policy.accept}
    if isinstance(tees, list) and accepted.isdisjoint(map(str, tees)):
        has = ", ".join(map(str, tees)) or "none"
        yield f"the policy accepts {', '.join(sorted(accepted)) or 'nothing'}, its TEE is {has}"
    for name, wanted in (
        ("cpu", spec.resources.cpu),
        ("memory_mib", spec.resources.memory_mib),
        ("gpu", spec.resources.gpu),
    ):
        available = report.get(name)
        if isinstance(available, bool) or not isinstance(available, int | float):
            continue
        if available < wanted:
            yield f"the job wants {name} = {wanted:g}, it has {available:g}"
    mount = spec.data.get(site)
    sets = report.get("data")
    if mount is not None and mount.set and isinstance(sets, list) and mount.set not in sets:
        yield f"it has no data set {mount.set!r}; it has {', '.join(map(str, sets)) or 'none'}"
