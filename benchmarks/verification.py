"""Measures verifications a second on one core, and compares them with their signature checks.

For each kind of evidence the same signatures are checked twice, in turns: once in a whole
verification, from bytes to claims, and once by calls of ``cryptography`` alone, with parsed keys
and prepared messages. The multiple is the time of the first to that of the second, and so shows the
cost of parsing, chains, replay and comparison; the target is at most 1.5.

Evidence, chains and collateral are the synthetic vectors of ``tests/vectors``. Certificates of the
relying party (roots, authorities, collateral) are parsed once and cached, as in a coordinator that
admits many clients; every signature is checked every time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from _report import Row, at_most, interleave, measured, options, show  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature  # noqa: E402

from attestation.endorsements.chains import Certificate, load_certificate, split_certificates  # noqa: E402
from attestation.evidence import Evidence, Tee  # noqa: E402
from attestation.quotes.azure import AzureEvidence  # noqa: E402
from attestation.quotes.dcap import DcapQuote  # noqa: E402
from attestation.quotes.sample import SampleQuote  # noqa: E402
from attestation.quotes.snp import SnpReport  # noqa: E402
from attestation.quotes.tpm import TpmQuote  # noqa: E402
from attestation.verifiers import verify  # noqa: E402
from tests.vectors import cases, keys  # noqa: E402

Check = Callable[[], None]
TARGET = 1.5


def p256(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> Check:
    """Return the check of one raw P-256 signature."""
    encoded = encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )
    return lambda: key.verify(encoded, data, ec.ECDSA(hashes.SHA256()))


def issued(child: x509.Certificate, key: Any) -> Check:
    """Return the check of one certificate's or list's signature."""
    data = getattr(child, "tbs_certificate_bytes", None) or child.tbs_certlist_bytes  # type: ignore[attr-defined]
    if isinstance(key, rsa.RSAPublicKey):
        scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        return lambda: key.verify(child.signature, data, scheme, hashes.SHA384())
    return lambda: key.verify(child.signature, data, ec.ECDSA(hashes.SHA256()))


def dcap_checks(evidence: Evidence, collateral: bytes) -> list[Check]:
    """Quote, QE report, PCK, its CA, TCB signer, TCB info, QE identity, and two CRLs."""
    quote = DcapQuote.parse(evidence.quote)
    pck, authority, root = (load_certificate(der, "chain") for der in quote.chain)
    point = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), b"\4" + quote.attestation_key
    )
    document = json.loads(collateral)
    signer = split_certificates(document["tcb_info_issuer_chain"].encode(), "signer")[0]
    lists = [x509.load_der_x509_crl(bytes.fromhex(document[k])) for k in ("root_ca_crl", "pck_crl")]
    assert isinstance(pck.key, ec.EllipticCurvePublicKey)
    assert isinstance(signer.key, ec.EllipticCurvePublicKey)
    signed = [
        p256(signer.key, bytes.fromhex(document[f"{k}_signature"]), document[k].encode())
        for k in ("tcb_info", "qe_identity")
    ]
    return [
        p256(point, quote.signature, quote.signed),
        p256(pck.key, quote.qe_report_signature, quote.qe_report.raw),
        issued(pck.parsed, authority.key),
        issued(authority.parsed, root.key),
        issued(signer.parsed, root.key),
        *signed,
        issued(lists[0], root.key),  # type: ignore[arg-type]
        issued(lists[1], authority.key),  # type: ignore[arg-type]
    ]


def snp_checks(report: SnpReport, chain: list[Certificate]) -> list[Check]:
    """Report, VCEK or VLEK, ASK or ASVK, and the ARK's own."""
    leaf, authority, root = chain
    key = leaf.key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    encoded = encode_dss_signature(*report.signature)
    return [
        lambda: key.verify(encoded, report.signed, ec.ECDSA(hashes.SHA384())),
        issued(leaf.parsed, authority.key),
        issued(authority.parsed, root.key),
        issued(root.parsed, root.key),
    ]


def tpm_check(quote: TpmQuote) -> Check:
    """Return the check of a TPM quote's signature."""
    ak, raw = quote.ak, quote.statement.raw
    if isinstance(ak, rsa.RSAPublicKey):
        return lambda: ak.verify(quote.signature.value, raw, padding.PKCS1v15(), hashes.SHA256())
    encoded = encode_dss_signature(*quote.signature.numbers)
    return lambda: ak.verify(encoded, raw, ec.ECDSA(hashes.SHA256()))


def bare_checks(subject: cases.Subject, evidence: Evidence) -> list[Check]:
    """Return the signature checks that a verification of ``evidence`` requires."""
    if evidence.tee in (Tee.TDX, Tee.SGX):
        return dcap_checks(evidence, subject.trust.collateral[0])
    chain = [c for data in subject.trust.endorsements for c in split_certificates(data, "chain")]
    if evidence.tee is Tee.SNP:
        return snp_checks(SnpReport.parse(evidence.quote), chain)
    if evidence.tee is Tee.TPM:
        return [tpm_check(TpmQuote.from_evidence(evidence))]
    if evidence.tee is Tee.SAMPLE:
        sample = SampleQuote.from_bytes(evidence.quote)
        key = keys.ec_key("a development key").public_key()
        return [p256(key, sample.signature, sample.signed)]
    composite = AzureEvidence.parse(evidence.quote)
    if composite.hcl.tee is Tee.SNP:
        chain = [load_certificate(composite.vcek, "vcek"), *chain]
        inner = snp_checks(SnpReport.parse(composite.hcl.hardware_report), chain)
    else:
        quote = Evidence(tee=Tee.TDX, quote=composite.td_quote)
        inner = dcap_checks(quote, subject.trust.collateral[0])
    return [*inner, tpm_check(composite.quote)]


def seconds(work: Callable[[], object], count: int) -> float:
    """Return the seconds that one call takes."""
    start = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - start) / count


def measure(subject: cases.Subject, count: int, repeat: int) -> Row:
    """Return the row of one kind, measured in turns."""
    binding = cases.binding()
    evidence = subject.make(binding)
    checks = bare_checks(subject, evidence)

    def whole() -> None:
        verify(evidence, binding=binding, trust=subject.trust, now=keys.AT)

    def bare() -> None:
        for check in checks:
            check()

    floor = "its signatures"
    found = interleave(
        {
            "ours": lambda: 1e6 * seconds(whole, count),
            floor: lambda: 1e6 * seconds(bare, count),
        },
        repeat=repeat,
    )
    return measured(
        f"verification of {subject.name}, {len(checks)} signatures",
        unit="µs",
        ours=found["ours"],
        floor={floor: found[floor]},
        target=[at_most(TARGET, floor)],
        how=f"CPU time of one core, from bytes to claims; medians of {repeat} turns of {count}; "
        "what does not change between two attestations of a client was parsed before",
    )


def main() -> None:
    """Measure every kind of evidence."""
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=40, help="verifications in each repetition")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    count, repeat = (2, 1) if arguments.quick else (arguments.count, arguments.repeat)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [measure(subject, count, repeat) for subject in cases.subjects()]
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
