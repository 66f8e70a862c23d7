"""Finds the attesters that work on this machine, and opens one.

:mod:`attestation.attesters.kinds` lists them. Attesters in software are never chosen automatically:
a configuration must name them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from attestation.attesters import Attester
from attestation.attesters.kinds import KINDS, Found, Options
from attestation.errors import AttesterError

__all__ = ["detect", "open_hardware"]

_LOG: Final = logging.getLogger(__name__)


def detect() -> tuple[Found, ...]:
    """Look for each kind, the strongest first. Nothing is opened."""
    return tuple(kind.find() for kind in KINDS)


def open_hardware(
    name: str, options: Options, *, report: Callable[[str], None] | None = None
) -> Attester:
    """Open the attester of a kind, or for ``auto`` the strongest that is here and works.

    :param report: called with one line that names the kind which ``auto`` chose and the reason;
        the line is logged in any case.
    :raises AttesterError: when the kind is not available; for ``auto``, with the reason for each.
    """
    if name == "auto":
        return _strongest(Options(state=options.state, scope=options.scope), report)
    for kind in KINDS:
        if kind.name == name:
            return kind.open(options)
    raise AttesterError(f"{name!r} is none of auto, {', '.join(kind.name for kind in KINDS)}")


def _strongest(options: Options, report: Callable[[str], None] | None) -> Attester:
    reasons: list[str] = []
    for found in detect():
        if not found.present:
            reasons.append(f"{found.kind}: {found.why}")
            continue
        try:
            attester = open_hardware(found.kind, options)
        except AttesterError as error:
            reasons.append(f"{found.kind}: {error}")
            continue
        passed = f" (not {'; not '.join(reasons)})" if reasons else ""
        line = f"attesting with {found.kind}: {found.why}{passed}"
        _LOG.info(line)
        if report is not None:
            report(line)
        return attester
    raise AttesterError(
        f"nothing here can attest: {'; '.join(reasons)}",
        hint='for development name an insecure kind, such as kind = "insecure-sample"',
    )
