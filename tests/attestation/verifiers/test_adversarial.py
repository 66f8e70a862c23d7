"""Attacks, generated: bytes flipped, evidence cut, logs edited, everything presented elsewhere.

Nothing may pass, and nothing may raise anything but our own errors, of the class that fits
the field. The count of what was tried is printed at the end.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.binding import ReportData
from attestation.errors import (
    BindingError,
    EventLogError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.attempts import SUBJECTS, TRIED, attempt, refused
from tests.vectors.cases import OTHER_BINDINGS, binding

BINARY = [name for name in SUBJECTS if not name.startswith(("azure", "sample"))]


EVERY = 64
"""Fields of up to so many bytes are flipped byte by byte, longer ones at about as many."""


MALFORMED = {
    "version",
    "key type",
    "tee type",
    "body descriptor",
    "signature size",
    "certification header",
    "padding",
    "signature algo",
    "signature reserved",
}


SIGNED = {
    "user data",
    "svn",
    "vendor",
    "body",
    "signature",
    "attestation key",
    "qe report",
    "qe signature",
    "report data",
    "measurement",
    "host data",
    "chip id",
    "reported tcb",
    "vmpl",
    "policy",
}


def flipped(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    step = max(1, (end - start) // EVERY)
    for number, offset in enumerate(range(start, end, step)):
        changed = bytearray(data)
        changed[offset] ^= (0x01, 0xFF, 0x80, 0x20)[number % 4]
        yield offset, bytes(changed)


@pytest.mark.parametrize("name", BINARY)
def test_no_flipped_byte_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    for field, start, end in subject.regions(evidence.quote):
        for offset, quote in flipped(evidence.quote, start, end):
            error = refused("byte flipped", replace(evidence, quote=quote), subject.trust)
            if field in MALFORMED:
                assert isinstance(error, EvidenceError | SignatureError), (field, offset, error)
            if field in SIGNED:
                assert isinstance(error, SignatureError), (field, offset, error)
            if isinstance(error, EvidenceError):
                assert error.field, (field, offset, error)


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_length_but_the_whole_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    whole = len(evidence.quote.rstrip())
    step = max(1, whole // 200)
    for length in {*range(0, whole, step), *range(max(0, whole - 32), whole), *range(64)}:
        cut = replace(evidence, quote=evidence.quote[:length])
        error = refused("cut", cut, subject.trust)
        assert isinstance(error, EvidenceError), (length, error)
    for tail in (b"\1", b"\xff" * 16, evidence.quote):
        refused("appended", replace(evidence, quote=evidence.quote + tail), subject.trust)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name.startswith("azure")])
def test_no_changed_part_of_a_composite_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    document = json.loads(evidence.quote)
    message = bytes.fromhex(document["tpm_quote"]["message"])
    signature = bytes.fromhex(document["tpm_quote"]["signature"])
    for key, value in (("message", message), ("signature", signature)):
        for _, changed in flipped(value, 0, len(value)):
            edited = {**document, "tpm_quote": {**document["tpm_quote"], key: changed.hex()}}
            quote = json.dumps(edited).encode()
            error = refused("part changed", replace(evidence, quote=quote), subject.trust)
            assert isinstance(error, SignatureError | EvidenceError)
    for number, value in enumerate(document["tpm_quote"]["pcrs"]):
        pcrs = [*document["tpm_quote"]["pcrs"]]
        pcrs[number] = (bytes.fromhex(value)[:-1] + b"\0").hex()
        edited = {**document, "tpm_quote": {**document["tpm_quote"], "pcrs": pcrs}}
        quote = json.dumps(edited).encode()
        error = refused("part changed", replace(evidence, quote=quote), subject.trust)
        assert isinstance(error, SignatureError)
    import base64

    hcl = base64.urlsafe_b64decode(document["hcl_report"] + "==")
    for start, end in ((0, 32), (32, 1216), (1216, len(hcl))):
        if name == "azure-tdx" and start == 32:
            continue
        for offset, changed in flipped(hcl, start, end):
            edited = {**document, "hcl_report": base64.b64encode(changed).decode()}
            quote = json.dumps(edited).encode()
            error = refused("part changed", replace(evidence, quote=quote), subject.trust)
            assert not isinstance(error, FreshnessError), offset


@pytest.mark.parametrize("name", ["tdx-v4", "tdx-v5", "tpm"])
def test_no_edited_log_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    log = EventLog.parse(evidence.event_log)
    events = [event.to_bytes() for event in log.events]
    edits: list[list[bytes]] = []
    for number in range(len(events)):
        edits.append(events[:number] + events[number + 1 :])
        edits.append([*events[: number + 1], *events[number:]])
        edits.append(events[:number])
        for other in range(number):
            if log.events[number].index == log.events[other].index:
                swapped = [*events]
                swapped[number], swapped[other] = events[other], events[number]
                edits.append(swapped)
    for edit in edits:
        if edit == events or not edit:
            continue
        changed = replace(evidence, event_log=log.header + b"".join(edit))
        error = refused("log edited", changed, subject.trust)
        assert isinstance(error, EventLogError), error
        assert error.register or "event" in str(error)


@pytest.mark.parametrize("name", ["tdx-v4", "tpm"])
def test_no_flipped_byte_of_a_log_changes_a_claim(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    good = verify(evidence, binding=binding(), trust=subject.trust, now=keys.AT)
    for offset in range(0, len(evidence.event_log), 3):
        changed = bytearray(evidence.event_log)
        changed[offset] ^= 0xFF
        log = replace(evidence, event_log=bytes(changed))
        outcome = attempt("log byte flipped", log, subject.trust)
        if isinstance(outcome, Claims):
            for claim in ("app", "job"):
                assert outcome.measurements[claim] == good.measurements[claim], offset
        else:
            assert isinstance(outcome, EvidenceError | EventLogError), (offset, outcome)


@pytest.mark.parametrize("name", SUBJECTS)
def test_evidence_is_good_for_nothing_else(name: str) -> None:
    subject = SUBJECTS[name]
    for changed in OTHER_BINDINGS.values():
        evidence = subject.make(binding(**changed))
        assert isinstance(refused("relayed", evidence, subject.trust), BindingError)
    evidence = subject.make(binding())
    for value in (b"", bytes(32), bytes(64), bytes(63), b"\xff" * 64):
        error = refused("relayed", evidence, subject.trust, binding=ReportData(value=value))
        assert isinstance(error, BindingError)


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of real evidence."""
    default = Path(__file__).parents[3].parent / "shared" / "vectors"
    found = Path(os.environ.get("FEDLEARN_VECTORS", default))
    if not found.is_dir():
        pytest.skip(f"no real evidence at {found}; set FEDLEARN_VECTORS")
    return found


def test_no_flipped_byte_of_real_evidence_passes(real: Path) -> None:
    from tests.vectors.cases import dcap_regions, snp_regions

    intel = dt.datetime.fromtimestamp(1750340000, dt.UTC)
    now = dt.datetime(2025, 9, 1, tzinfo=dt.UTC)

    def read(name: str) -> bytes:
        return (real / name).read_bytes()

    for tee, data, trust, moment in (
        (
            Tee.TDX,
            read("tdx_v4_quote_phala.bin"),
            TrustAnchors(collateral=(read("tdx_v4_quote_phala.collateral.json"),)),
            intel,
        ),
        (
            Tee.SGX,
            read("sgx_v3_quote_phala.bin"),
            TrustAnchors(collateral=(read("sgx_v3_quote_phala.collateral.json"),)),
            intel,
        ),
        (
            Tee.SNP,
            bytes.fromhex(read("snp_v2_report_virtee_milan.hex").decode().strip()),
            TrustAnchors(
                endorsements=(read("snp_vcek_virtee_milan.der"), read("amd_ask_ark_milan.pem"))
            ),
            now,
        ),
        (
            Tee.SNP,
            read("snp_vlek_report_trustee.bin"),
            TrustAnchors(
                endorsements=(read("snp_vlek_trustee.der"), read("amd_asvk_ark_milan.pem"))
            ),
            now,
        ),
    ):
        evidence = Evidence(tee=tee, quote=data)
        assert verify(evidence, binding=None, trust=trust, now=moment)
        regions = snp_regions(data) if tee is Tee.SNP else dcap_regions(data)
        for _, start, end in regions:
            for _, quote in flipped(data, start, end):
                refused(
                    "real byte flipped",
                    replace(evidence, quote=quote),
                    trust,
                    binding=None,
                    now=moment,
                )
        padding = next((start for name, start, _ in regions if name == "padding"), len(data))
        for length in range(0, padding, 41):
            refused(
                "real cut", replace(evidence, quote=data[:length]), trust, binding=None, now=moment
            )


def test_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(TRIED.items()))
        print(f"\nadversarial: {sum(TRIED.values())} attempts, none passed ({listed})")
    if os.environ.get("PYTEST_XDIST_WORKER") is None:
        assert sum(TRIED.values()) > 0
