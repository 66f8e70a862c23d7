"""Attempts to have evidence verified that must be refused, and their count."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attestation.errors import (
    AttestationError,
    EvidenceError,
    VerificationError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.cases import binding, subjects

SUBJECTS = {subject.name: subject for subject in subjects()}


TRIED: Counter[str] = Counter()


def attempt(kind: str, evidence: Evidence, trust: TrustAnchors, **how: Any) -> Claims | Exception:
    """Return what came of it; an error that is not ours ends the test."""
    TRIED[kind] += 1
    how = {"binding": binding(), "now": keys.AT, **how}
    try:
        return verify(evidence, trust=trust, **how)
    except (EvidenceError, VerificationError) as error:
        return error


def refused(kind: str, evidence: Evidence, trust: TrustAnchors, **how: Any) -> AttestationError:
    """Check that ``evidence`` is refused with an error of ours; return it."""
    outcome = attempt(kind, evidence, trust, **how)
    assert isinstance(outcome, AttestationError), f"{kind}: accepted"
    assert str(outcome)
    return outcome


def tdx(quote: bytes) -> Evidence:
    return Evidence(tee=Tee.TDX, quote=quote)
