"""Certificates, revocation lists and collateral in the forms of other tools."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.binding import ReportData
from attestation.documents.formats import to_evidence
from attestation.endorsements.collateral import load_folder
from attestation.endorsements.collateral_forms import read_collateral
from attestation.endorsements.offline import Input, gather
from attestation.errors import EndorsementError, EvidenceError
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.amd import Amd
from tests.vectors.foreign_forms import (
    AMD,
    CHAIN,
    COLLATERAL,
    DATA,
    INTEL,
    QUOTE,
    REPORT,
    REPORT_DATA,
    REPORTED,
    VCEK,
    ders,
    judged,
)


def test_certificates_come_in_any_order_and_any_number_of_files() -> None:
    ask, ark = ders(CHAIN)
    pems = [keys.pem(item) for item in (VCEK, ask, ark)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]):
        assert judged(REPORT, b"".join(pems[number] for number in order)).hardware_id
        assert judged(REPORT, *(pems[number] for number in order)).hardware_id
    assert judged(REPORT, ark, VCEK, ask).hardware_id
    asvk = (DATA / "snp_milan_asvk_ark.pem").read_bytes()
    assert judged(REPORT, VCEK, asvk + CHAIN).hardware_id
    text = b"subject=/CN=SEV\n" + CHAIN.replace(b"\n", b"\r\n") + b"\n\n"
    assert judged(REPORT, VCEK, text).hardware_id


def test_an_unreadable_certificate_takes_nothing_from_the_others_in_its_file() -> None:
    malformed = (REPORTED / "NUVO_2111.pem").read_bytes()
    for chain in (malformed + CHAIN, CHAIN + malformed, b"text\n" + malformed + b"text\n" + CHAIN):
        assert judged(REPORT, VCEK, chain).hardware_id
    with pytest.raises(EndorsementError, match="file 1 is not a certificate"):
        judged(REPORT, VCEK, malformed)


def test_every_revocation_list_of_a_file_counts() -> None:
    def pem(crl: bytes) -> bytes:
        return x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM)

    other = pem(Amd(product="Genoa").crl())
    assert judged(REPORT, VCEK, pem(AMD.crl()) + other + CHAIN).hardware_id
    for file in (other + pem(AMD.crl((2,))), CHAIN + other + pem(AMD.crl((2,)))):
        with pytest.raises(EndorsementError, match="was revoked by"):
            judged(REPORT, VCEK, CHAIN, file)


def test_a_revocation_list_that_cannot_be_read_is_refused() -> None:
    broken = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    for file in (broken, CHAIN + broken):
        with pytest.raises(EndorsementError, match="a revocation list that was given cannot be re"):
            judged(REPORT, VCEK, CHAIN, file)


def signed_wrap(document: dict[str, str]) -> dict[str, str]:
    rest = {key: value for key, value in document.items() if not key.endswith("_signature")}
    for key, name in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        signature = document[f"{key}_signature"]
        rest[key] = f'{{"{name}":{document[key]},"signature":"{signature}"}}'
    return rest


def turned(chain: str) -> str:
    """Return a chain with its root first."""
    found = x509.load_pem_x509_certificates(chain.encode())
    return "".join(item.public_bytes(Encoding.PEM).decode() for item in reversed(found))


def crl_pem(text: str) -> str:
    return x509.load_der_x509_crl(bytes.fromhex(text)).public_bytes(Encoding.PEM).decode()


LISTS = ("root_ca_crl", "pck_crl")


FORMS: dict[str, Any] = {
    "signature inside": signed_wrap,
    "lists in PEM": lambda d: {**d, **{key: crl_pem(d[key]) for key in LISTS}},
    "lists in base64": lambda d: {
        **d,
        **{key: base64.b64encode(bytes.fromhex(d[key])).decode() for key in LISTS},
    },
    "lists of numbers": lambda d: {**d, **{key: list(bytes.fromhex(d[key])) for key in LISTS}},
    "hex of hex": lambda d: {**d, "root_ca_crl": d["root_ca_crl"].encode().hex() + "00"},
    "signatures in base64": lambda d: {
        **d,
        "tcb_info_signature": base64.b64encode(bytes.fromhex(d["tcb_info_signature"])).decode(),
    },
    "root first": lambda d: {
        **d,
        **{key: turned(value) for key, value in d.items() if key.endswith("_chain")},
    },
    "more keys": lambda d: {**d, "major_version": 3, "pck_certificate_chain": None},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_collateral_of_other_tools_is_read(
    form: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    document = json.loads(COLLATERAL)
    other = form(document)
    assert read_collateral(other) == read_collateral(document)
    data = json.dumps(other).encode()
    assert judged(QUOTE, collateral=data).tcb == "UpToDate"
    assert judged(QUOTE, data).tcb == "UpToDate"
    (tmp_path / "collateral.json").write_bytes(data)
    assert load_folder(tmp_path, now=keys.AT).collateral == (data,)


@pytest.mark.parametrize("key", sorted(json.loads(COLLATERAL)))
def test_collateral_that_lacks_a_part_names_it(key: str) -> None:
    document = json.loads(COLLATERAL)
    for value in (None, "", 1, "!", [300]):
        if (value == "!" and key in ("tcb_info", "qe_identity")) or key.endswith("_chain"):
            continue
        with pytest.raises(EvidenceError, match=key):
            read_collateral({**document, key: value})


def test_real_collateral_with_the_root_first_judges_a_real_quote() -> None:
    quote = (REPORTED / "tdx_out_of_date_quote.dat").read_bytes()
    evidence, trust = gather(
        Input(name="quote", data=quote),
        collateral=((REPORTED / "collateral_root_first.json").read_bytes(),),
    )
    now = datetime(2026, 2, 1, tzinfo=UTC)
    claims = verify(evidence, binding=None, trust=trust, now=now)
    assert claims.tcb == "OutOfDate"


def test_a_malformed_document_takes_nothing_from_other_collateral() -> None:
    bad = json.dumps({**json.loads(COLLATERAL), "pck_crl": ""}).encode()
    evidence = to_evidence(QUOTE)
    bound = ReportData(value=REPORT_DATA)
    trust = TrustAnchors(intel_root=INTEL.root_key, collateral=(bad, COLLATERAL))
    assert verify(evidence, binding=bound, trust=trust, now=keys.AT).tcb == "UpToDate"
    alone = replace(trust, collateral=(bad,))
    with pytest.raises(
        EndorsementError, match=r"not read: document 1, collateral\.pck_crl: is empty"
    ):
        verify(evidence, binding=bound, trust=alone, now=keys.AT)


@pytest.mark.parametrize("key", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_a_chain_without_its_signer_is_named_with_the_order(key: str) -> None:
    document = json.loads(COLLATERAL)
    root = turned(document[key]).split("-----END CERTIFICATE-----")[0]
    without = {**document, key: root + "-----END CERTIFICATE-----\n"}
    words = f"collateral.{key}: has no signer: it starts with .* comes first, its root second"
    with pytest.raises(EvidenceError, match=words):
        read_collateral(without)


def test_malformed_collateral_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_bytes(COLLATERAL)
    bad = json.dumps({**json.loads(COLLATERAL), "pck_crl": ""}).encode()
    (tmp_path / "bad.json").write_bytes(bad)
    loaded = load_folder(tmp_path, now=keys.AT)
    assert loaded.collateral == (COLLATERAL,)
    assert loaded.warnings == (f"{tmp_path / 'bad.json'}: collateral.pck_crl: is empty",)


@pytest.mark.parametrize("data", [b'{"a": 1}', b"garbage", b""])
def test_an_endorsement_of_another_kind_is_named(data: bytes) -> None:
    with pytest.raises(EndorsementError, match="file 0 is not"):
        judged(REPORT, data)


def test_collateral_among_the_endorsements_that_is_malformed_is_named() -> None:
    for data in (b"{", b'{"tcb_info": 1}'):
        with pytest.raises(EndorsementError, match="file 0: collateral"):
            judged(REPORT, data)
