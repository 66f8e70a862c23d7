"""Every parser of hardware evidence on bytes that nobody made: our errors, or a value.

Hypothesis makes two kinds of input: bytes of its own, and valid input with a few bytes
changed, cut, doubled or moved. ``FEDLEARN_FUZZ_EXAMPLES`` raises the number of examples.
"""

from __future__ import annotations

import contextlib
import json
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.endorsements.amd import Endorsements
from attestation.endorsements.chains import load_certificate, split_certificates
from attestation.endorsements.intel import parse_collateral, read_pck
from attestation.errors import AttestationError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.accumulator import SoftwareRegisters
from attestation.logs.eventlog import EventLog
from attestation.logs.firmwarelog import agent_claims, boot_claims
from attestation.quotes.azure import AzureEvidence, HclReport
from attestation.quotes.dcap import DcapQuote
from attestation.quotes.sgx import EnclaveReport
from attestation.quotes.snp import SnpReport, parse_certificate_table
from attestation.quotes.tdx import TdReport
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import azure, keys
from tests.vectors.amd import Amd
from tests.vectors.intel import Intel, event_log

EXAMPLES = int(os.environ.get("FEDLEARN_FUZZ_EXAMPLES", "60"))
INTEL, AMD = Intel(), Amd()
LOG = event_log()[0]
QUOTES = [INTEL.quote(4), INTEL.quote(5), INTEL.sgx_quote()]
MAX_MEMORY = 64 * 1024 * 1024
"""No parser may need more, whatever it is given."""


def claims_of_log(data: bytes) -> None:
    log = EventLog.parse(data)
    boot_claims(log, "sha384", ccel=True)
    agent_claims(log, 4)
    SoftwareRegisters.read(log)


def pck_of_quote(data: bytes) -> None:
    quote = DcapQuote.parse(data)
    for number, der in enumerate(quote.chain):
        load_certificate(der, f"chain[{number}]")
    read_pck(quote)


PARSERS: dict[str, tuple[Callable[[bytes], Any], list[bytes]]] = {
    "quote": (DcapQuote.parse, QUOTES),
    "pck": (pck_of_quote, QUOTES),
    "td report": (TdReport.parse, [QUOTES[0][48:632]]),
    "enclave report": (EnclaveReport.parse, [QUOTES[2][48:432]]),
    "snp report": (SnpReport.parse, [AMD.report(2), AMD.report(5)]),
    "certificate table": (parse_certificate_table, [bytes(48), b"\1" * 16 + b"\x30" + bytes(60)]),
    "azure": (AzureEvidence.parse, [azure.evidence(b"x"), azure.evidence(b"x", intel=INTEL)]),
    "hcl report": (HclReport.parse, [b"HCLA" + bytes(1300)]),
    "collateral": (parse_collateral, [INTEL.collateral()]),
    "certificate": (lambda data: split_certificates(data, "x"), [INTEL.chain[0], AMD.leaf()]),
    "chain": (lambda data: split_certificates(data, "x"), [AMD.authorities()]),
    "endorsements": (lambda data: Endorsements.gather((), (data,)), [AMD.leaf(), AMD.crl()]),
    "log": (claims_of_log, [LOG]),
}


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("set", "cut", "double", "move", "zero", "insert"))):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "move":
                size = draw(st.integers(1, 64))
                data += data[at : at + size]
                del data[at : at + size]
            case "zero":
                data[at : at + 8] = bytes(len(data[at : at + 8]))
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def quiet(call: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(AttestationError):
        call(data)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_never_fails_in_another_way(name: str) -> None:
    parse, seeds = PARSERS[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.one_of(st.binary(max_size=2048), mutated(seeds), mutated(seeds)))
    def run(data: bytes) -> None:
        quiet(parse, data)

    run()


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_does_not_read_what_is_too_large(name: str) -> None:
    parse, seeds = PARSERS[name]
    for data in (
        bytes(8 * 1024 * 1024),
        b"\xff" * 8 * 1024 * 1024,
        seeds[0] + b"A" * 8 * 1024 * 1024,
        b"{" + b" " * 8 * 1024 * 1024,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ):
        tracemalloc.start()
        quiet(parse, data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MAX_MEMORY, (name, data[:8], peak)


@pytest.mark.parametrize("tee", [Tee.TDX, Tee.SGX, Tee.SNP, Tee.AZURE_VTPM])
def test_a_verifier_never_fails_in_another_way(tee: Tee) -> None:
    seeds = {
        Tee.TDX: QUOTES[:2],
        Tee.SGX: QUOTES[2:],
        Tee.SNP: [AMD.report(3)],
        Tee.AZURE_VTPM: [azure.evidence(b"x")],
    }[tee]
    trust = TrustAnchors(
        intel_root=INTEL.root_key,
        amd_ark_keys=frozenset({AMD.root_key}),
        collateral=(INTEL.collateral(), INTEL.collateral("SGX")),
        endorsements=(AMD.leaf(), AMD.authorities()),
    )

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        quote=mutated(seeds),
        log=st.one_of(st.just(b""), mutated([LOG])),
        endorsement=st.one_of(
            st.just(b""), mutated([AMD.leaf(), INTEL.collateral(), AMD.authorities()])
        ),
    )
    def run(quote: bytes, log: bytes, endorsement: bytes) -> None:
        evidence = Evidence(
            tee=tee,
            quote=quote,
            event_log=log,
            endorsements=(endorsement,) if endorsement else (),
        )
        quiet(lambda _: verify(evidence, binding=None, trust=trust, now=keys.AT), quote)

    run()


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["version", "hcl_report", "tpm_quote", "vcek", "td_quote", "message", "pcrs"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_json_of_any_shape_is_refused(document: object) -> None:
    data = json.dumps(document).encode()
    with pytest.raises(EvidenceError):
        AzureEvidence.parse(data)
    assert parse_collateral(data) is None
