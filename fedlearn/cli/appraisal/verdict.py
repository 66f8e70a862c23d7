"""A verdict as text and as JSON: what was checked, expected and found, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation.errors import (
    BindingError,
    EndorsementError,
    EventLogError,
    FreshnessError,
    SignatureError,
    VerificationError,
)
from attestation.evidence import Claims, Evidence
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult, Finding, Tier
from fedlearn.cli.appraisal.inputs import Request
from fedlearn.terminal.console import REFUSED, line, printable

__all__ = ["Verdict", "judge", "print_explanation", "print_summary"]

_COLOURS: Final = {
    Tier.AFFIRMING: "green",
    Tier.NONE: "cyan",
    Tier.WARNING: "yellow",
    Tier.CONTRAINDICATED: "red",
}
_MARKS: Final = {
    Tier.AFFIRMING: "ok",
    Tier.NONE: "note",
    Tier.WARNING: "refused",
    Tier.CONTRAINDICATED: "refused",
}
_EXPECTED: Final[tuple[tuple[type[VerificationError], str, str, str], ...]] = (
    (
        SignatureError,
        "a signature by the key of the TEE",
        "hardware",
        "the evidence was altered or is not from the TEE that it names; collect it again",
    ),
    (
        BindingError,
        "the given report data",
        "instance-identity",
        "collect evidence over this nonce and these keys",
    ),
    (
        FreshnessError,
        "valid at the time of verification",
        "hardware",
        "renew what has expired, or verify at the time of the evidence with --at",
    ),
    (
        EventLogError,
        "a log that replays to the quoted registers",
        "executables",
        "send the whole log of the boot that was quoted",
    ),
    (
        EndorsementError,
        "a chain to a trusted root",
        "hardware",
        "give the missing certificates or collateral with --endorsement and --collateral",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result. ``claims`` is ``None`` when the evidence is not genuine."""

    evidence: Evidence
    policy: AppraisalPolicy
    status: Tier
    findings: tuple[Finding, ...]
    claims: Claims | None
    result: AttestationResult | None

    @property
    def exit_status(self) -> int:
        """0 when affirming, else 2."""
        return 0 if self.status is Tier.AFFIRMING else REFUSED

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        claims = self.claims
        return {
            "status": self.status.name.lower(),
            "tee": self.evidence.tee.value,
            "tcb_status": claims.tcb if claims else None,
            "advisories": _advisories(claims),
            "claims": _claims(claims) if claims else {},
            "findings": [finding.to_json() for finding in self.findings],
            "policy": {
                "name": self.policy.name,
                "version": self.policy.version,
                "digest": self.policy.digest.hex(),
            },
        }


def judge(request: Request, policy: AppraisalPolicy, *, node: str | None = None) -> Verdict:
    """Verify and appraise. The result for evidence that is not genuine is a verdict as well.

    Without ``--report-data`` the binding is not compared, which is reported and not a refusal.

    :raises EvidenceError: when the input is malformed.
    """
    try:
        claims = request.verify(policy)
    except VerificationError as error:
        return Verdict(
            evidence=request.evidence,
            policy=policy,
            status=Tier.CONTRAINDICATED,
            findings=(_failed(error),),
            claims=None,
            result=None,
        )
    result = appraise(
        policy, claims, now=request.now, node=node, require_binding=request.report_data is not None
    )
    return Verdict(
        evidence=request.evidence,
        policy=policy,
        status=result.status,
        findings=result.findings,
        claims=claims,
        result=result,
    )


def print_summary(verdict: Verdict) -> None:
    """Print the status, and one line for each refusal."""
    tee, name = verdict.evidence.tee.value, printable(verdict.policy.name)
    if verdict.status is Tier.AFFIRMING:
        line(f"affirming: this {tee} evidence satisfies policy {name}", style="green")
    else:
        line(f"refused: this {tee} evidence does not satisfy policy {name}", style="red")
    for finding in verdict.findings:
        if finding.tier is Tier.AFFIRMING:
            continue
        text = f"  {finding.claim}: expected {finding.expected}, found {finding.actual}"
        if finding.tier is not Tier.NONE and finding.remedy:
            text += f" ({finding.remedy})"
        line(printable(text), style=_COLOURS[finding.tier])


def print_explanation(verdict: Verdict) -> None:
    """Print every check: which claim, what was expected, what was found, what to do."""
    tee = verdict.evidence.tee.value
    line(f"1. Is this {tee} evidence genuine?", bold=True)
    if verdict.claims is None:
        _print_findings(verdict.findings)
        line("2. Not appraised: only genuine evidence is.", bold=True)
    else:
        line("   ok       signature, endorsements and freshness verified", style="green")
        line(f"   tcb      {printable(verdict.claims.tcb)}")
        line(f"   hardware {verdict.claims.hardware_id.hex() or 'unknown'}")
        name = f"{printable(verdict.policy.name)} (version {verdict.policy.version})"
        line(f"2. Does policy {name} affirm it?", bold=True)
        _print_findings(verdict.findings)
    good = verdict.status is Tier.AFFIRMING
    line(
        "affirming" if good else f"refused ({verdict.status.name.lower()})",
        style="green" if good else "red",
        bold=True,
    )


def _print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        mark = _MARKS[finding.tier]
        line(f"   {mark:<8} {printable(finding.claim)}", style=_COLOURS[finding.tier])
        line(f"            expected  {printable(finding.expected)}")
        line(f"            found     {printable(finding.actual)}")
        line(f"            from      {finding.origin.value}")
        if finding.remedy:
            line(f"            to do     {printable(finding.remedy)}")


def _failed(error: VerificationError) -> Finding:
    expected, category, remedy = "genuine evidence", "hardware", ""
    for kind, text, member, mend in _EXPECTED:
        if isinstance(error, kind):
            expected, category, remedy = text, member, mend
            break
    prefix = f"{error.step}: "
    return Finding(
        claim=error.step or "verification",
        tier=Tier.CONTRAINDICATED,
        expected=expected,
        actual=str(error).removeprefix(prefix),
        category=category,
        remedy=error.hint or remedy,
    )


def _advisories(claims: Claims | None) -> list[str]:
    value = claims.attributes.get("advisories", ()) if claims else ()
    return list(value) if isinstance(value, tuple) else [str(value)]


def _claims(claims: Claims) -> Mapping[str, Any]:
    document: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in claims.attributes.items()
    }
    document |= {name: value.hex() for name, value in claims.measurements.items()}
    document |= {
        "bound": claims.bound,
        "debug": claims.debug,
        "hardware_id": claims.hardware_id.hex(),
        "unverified": list(claims.unverified),
        "origins": {name: claims.origin_of(name).value for name in claims.measurements},
        "components": [
            {"tee": item.tee.value, "tcb": item.tcb, **_claims(item)} for item in claims.components
        ],
    }
    return document
