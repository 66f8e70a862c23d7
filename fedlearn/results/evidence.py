"""The evidence of a run, in words: what signed it, whom it excluded, and why.

Texts of refusals come from other parties and are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from fedlearn.job.event_fields import Findings
from fedlearn.results.history import RunHistory
from fedlearn.results.markup import (
    NOT_KNOWN,
    Head,
    Html,
    code,
    counted,
    definitions,
    joined,
    note,
    paragraph,
    section,
    shortened,
    table,
    tag,
)
from fedlearn.results.refusals import Refusal

__all__ = [
    "INSECURE",
    "WORDS",
    "evidence_section",
    "findings_table",
    "insecure_text",
    "refusal_sections",
    "tee_tag",
]

_REFUSALS: Final = 20
_FINDINGS: Final = 30

WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tdx": "Intel TDX: the processor signed what was started in a confidential VM, whose "
        "memory the host cannot read.",
        "sgx": "Intel SGX: the processor signed the code of an enclave, whose memory the host "
        "cannot read.",
        "snp": "AMD SEV-SNP: the processor signed what was started in a confidential VM, whose "
        "memory the host cannot read.",
        "tpm": "TPM 2.0: a TPM signed what the machine measured while it started. Memory is not "
        "protected from who controls the machine. A TPM that is software proves nothing about "
        "hardware; the policy of the job decides whether one is accepted.",
        "azure-vtpm": "Azure confidential VM: the processor signed the key of the machine's "
        "virtual TPM, which signed what was started.",
        "nvidia": "NVIDIA: the GPU signed its firmware and configuration.",
        "sample": "Sample evidence: a development key signed whatever the process stated about "
        "itself. It proves nothing.",
    }
)
"""For each kind of evidence what signed it."""

INSECURE: Final = frozenset({"sample"})
"""Kinds of evidence that prove nothing."""


def insecure_text(kinds: Iterable[str]) -> str:
    """Return a sentence on evidence that proves nothing; empty where there is none.

    >>> insecure_text(["tdx", "sample"])
    'The evidence of 1 of 2 sites is sample evidence, which proves nothing.'
    >>> insecure_text(["tdx"])
    ''
    """
    known = list(kinds)
    insecure = sum(kind in INSECURE for kind in known)
    if not insecure:
        return ""
    whose = "all sites" if insecure == len(known) else f"{insecure} of {len(known)} sites"
    return f"The evidence of {whose} is sample evidence, which proves nothing."


def tee_tag(tee: str) -> Html:
    """Return the kind of evidence of a site as a tag."""
    if not tee:
        return Html(NOT_KNOWN)
    if insecure_text([tee]):
        return tag(f"{tee}, insecure", "warn")
    return tag(tee, "good")


def evidence_section(history: RunHistory) -> Html:
    """Return a section on what signed the evidence of which sites; empty without admissions."""
    kinds: dict[str, list[str]] = {}
    for site in history.sites.values():
        if site.admissions:
            kinds.setdefault(site.tee, []).append(site.name)
    if not kinds:
        return Html()
    rows = [
        (
            tee,
            joined(
                WORDS.get(tee, "A kind of evidence that this version does not know."),
                Html("<br>"),
                f"{counted(len(names), 'site')}: {_listed(names)}.",
            ),
        )
        for tee, names in sorted(kinds.items())
    ]
    return section(
        "Evidence",
        note(
            "The coordinator verified the evidence of each client, and the policy of the job "
            "affirmed it, before the client received a certificate. The ledger has every decision."
        ),
        definitions(rows),
    )


def refusal_sections(history: RunHistory) -> list[Html]:
    """Return a section for each refusal, at most 20 of them, and how many more there are."""
    sections = [_refusal(each) for each in history.refusals[:_REFUSALS]]
    more = len(history.refusals) - _REFUSALS + history.refusals_left_out
    if more > 0:
        sections.append(
            section("More refusals", paragraph(f"{more} more are in the events of the job."))
        )
    return sections


def _refusal(each: Refusal) -> Html:
    when = f" during round {each.round}" if each.round else ""
    what, label = ("Quarantined", "stopped") if each.quarantined else ("Refused", "not admitted")
    times = f", {each.count} times" if each.count > 1 else ""
    who = each.site or "a client of no known site"
    title = joined(f"{what}{when}: {who}{times} ", tag(label, "bad"))
    return section(
        title,
        paragraph(f"The coordinator answered: {shortened(each.reason)}"),
        findings_table(each.against),
        style="refused",
    )


def findings_table(against: Findings) -> Html:
    """Return what was expected and found for each finding that speaks against a client."""
    heads = [Head("Claim"), Head("Expected"), Head("Found"), Head("What would help")]
    rows = [
        [
            code(str(finding.get("claim", ""))),
            code(str(finding.get("expected", ""))),
            code(str(finding.get("actual", ""))),
            str(finding.get("remedy") or NOT_KNOWN),
        ]
        for finding in against[:_FINDINGS]
    ]
    more = len(against) - _FINDINGS
    caption = f"{more} more findings are in the events of the job." if more > 0 else ""
    return table(heads, rows, caption=caption, cards=True) if rows else Html()


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
