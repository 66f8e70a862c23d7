"""Evidence and certificates in the forms of other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.binding import ReportData
from attestation.endorsements.offline import Input, gather
from attestation.evidence import Claims
from attestation.verifiers import verify
from tests.vectors import keys, make
from tests.vectors.amd import Amd
from tests.vectors.intel import Intel

DATA = Path(make.__file__).parent / "data"


REPORT_DATA = make.REPORT_DATA


REPORT = (DATA / "snp_milan_vcek_report.bin").read_bytes()


QUOTE = (DATA / "tdx_v4_quote.bin").read_bytes()


VCEK = (DATA / "snp_milan_vcek.der").read_bytes()


CHAIN = (DATA / "snp_milan_ask_ark.pem").read_bytes()


COLLATERAL = (DATA / "tdx_collateral.json").read_bytes()


REPORTED = Path(__file__).parents[1] / "attestation/reported"
"""Inputs that were reported as read wrongly, or refused without a useful word."""


INTEL, AMD = Intel(), Amd()


def judged(
    data: bytes,
    *endorsements: bytes,
    collateral: bytes = b"",
    form: str | None = None,
    bound: bytes = REPORT_DATA,
) -> Claims:
    """Verify a file as the command line does, under our own roots."""
    evidence, trust = gather(
        Input(name="evidence", data=data),
        format=form,
        endorsements=tuple(
            Input(name=f"file {number}", data=item) for number, item in enumerate(endorsements)
        ),
        collateral=(collateral,) if collateral else (),
    )
    trust = replace(trust, intel_root=INTEL.root_key, amd_ark_keys=frozenset({AMD.root_key}))
    return verify(evidence, binding=ReportData(value=bound), trust=trust, now=keys.AT)


def ders(chain: bytes) -> list[bytes]:
    return [item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(chain)]
