"""Evidence and endorsements as other tools write them: each reads as what it is, or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.binding import ReportData
from attestation.decoded import decode_file
from attestation.documents.formats import detect_format, to_evidence
from attestation.encodings import json_bytes, unwrap_text
from attestation.endorsements.collateral import load_folder
from attestation.endorsements.collateral_forms import read_collateral
from attestation.endorsements.offline import Input, gather
from attestation.errors import BindingError, EndorsementError, EvidenceError, VerificationError
from attestation.evidence import Claims, Tee
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import azure, keys, make
from tests.vectors.amd import Amd
from tests.vectors.intel import Intel

DATA = Path(make.__file__).parent / "data"
REPORT_DATA = make.REPORT_DATA
REPORT = (DATA / "snp_milan_vcek_report.bin").read_bytes()
QUOTE = (DATA / "tdx_v4_quote.bin").read_bytes()
VCEK = (DATA / "snp_milan_vcek.der").read_bytes()
CHAIN = (DATA / "snp_milan_ask_ark.pem").read_bytes()
COLLATERAL = (DATA / "tdx_collateral.json").read_bytes()
REPORTED = Path(__file__).parents[1] / "reported"
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


def lines(data: bytes) -> bytes:
    return base64.encodebytes(data)


TEXTS: dict[str, Any] = {
    "hex": lambda data: data.hex().encode(),
    "hex with a line end": lambda data: data.hex().encode() + b"\n",
    "hex in capitals": lambda data: data.hex().upper().encode(),
    "hex with 0x": lambda data: b"0x" + data.hex().encode(),
    "hex in lines": lambda data: data.hex("\n", 32).encode(),
    "base64": base64.b64encode,
    "base64 in lines": lines,
    "base64 in lines of Windows": lambda data: lines(data).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_is_read_as_its_bytes(text: Callable[[bytes], bytes]) -> None:
    assert judged(text(REPORT), text(VCEK), CHAIN).tee is Tee.SNP
    assert judged(text(QUOTE), collateral=COLLATERAL).tcb == "UpToDate"
    assert detect_format(text(REPORT)) == "snp-report"


@pytest.mark.parametrize(
    "text",
    [
        REPORT.hex()[:-1].encode(),
        REPORT.hex().encode() + b"\n\n",
        b" " + REPORT.hex().encode(),
        base64.b64encode(REPORT)[:-1],
        base64.b64encode(REPORT) + b"=",
        base64.urlsafe_b64encode(bytes([251, 255, 254]) * 100),
    ],
)
def test_a_text_has_one_spelling(text: bytes) -> None:
    assert unwrap_text(text) == text
    with pytest.raises(EvidenceError):
        to_evidence(text)


def test_hex_is_of_one_case() -> None:
    text = REPORT.hex().encode()
    with pytest.raises(EvidenceError):
        to_evidence(text.replace(b"a", b"A", 1))


def test_every_altered_character_of_a_text_is_refused() -> None:
    for text in (REPORT.hex().encode(), base64.b64encode(REPORT)):
        for at in range(0, len(text), 37):
            for bit in (1, 0x20, 0x80):
                altered = bytearray(text)
                altered[at] ^= bit
                with pytest.raises((EvidenceError, VerificationError)):
                    judged(bytes(altered), VCEK, CHAIN)


@pytest.mark.parametrize("size", range(1, 40))
def test_base64_in_a_document_has_one_spelling(size: int) -> None:
    data = keys.stream("base64", size) + b"\xff\xfe\xfb"
    text = base64.b64encode(data).decode()
    for spelling in (text, text.rstrip("="), text.translate(str.maketrans("+/", "-_"))):
        assert json_bytes(spelling, "field") == data
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bare = text.rstrip("=")
    for last in alphabet:
        altered = bare[:-1] + last
        if last != bare[-1]:
            try:
                assert json_bytes(altered, "field") != data
            except EvidenceError:
                continue
    for wrong in (text + "=", text + "===", text + "\n", " " + text, bare + "===="):
        with pytest.raises(EvidenceError):
            json_bytes(wrong, "field")


def table(*entries: tuple[str, bytes]) -> bytes:
    """Return a certificate table: entries of name and content, then the contents."""
    at = 24 * (len(entries) + 1)
    head = body = b""
    for guid, content in entries:
        head += uuid.UUID(guid).bytes + struct.pack("<II", at + len(body), len(content))
        body += content
    return head + bytes(24) + body


def ders(chain: bytes) -> list[bytes]:
    return [item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(chain)]


VCEK_GUID = "63da758d-e664-4564-adc5-f4b93be8accd"
ASK_GUID = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
ARK_GUID = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
OTHER_GUID = "ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"


def test_an_extended_report_brings_its_certificates() -> None:
    ask, ark = ders(CHAIN)
    whole = table((VCEK_GUID, VCEK), (ASK_GUID, ask), (ARK_GUID, ark))
    assert judged(REPORT + whole).hardware_id
    assert judged(REPORT + whole, form="snp-report").hardware_id
    assert judged(REPORT + table((OTHER_GUID, b"else"), (VCEK_GUID, VCEK)), CHAIN).hardware_id
    with pytest.raises(EndorsementError):
        judged(REPORT + table((OTHER_GUID, VCEK)), CHAIN)


@pytest.mark.parametrize(
    "tail", [b"\0", bytes(64), b"x", b"\1" * 24, table((VCEK_GUID, VCEK))[:-1]]
)
def test_bytes_behind_a_report_that_are_no_table_are_refused(tail: bytes) -> None:
    with pytest.raises(EvidenceError):
        judged(REPORT + tail, VCEK, CHAIN)


def test_a_report_is_found_inside_of_the_answer_of_the_firmware() -> None:
    head = struct.pack("<II", 0, 1184) + bytes(24)
    for size in (0, 4000 - 32 - 1184):
        assert judged(head + REPORT + bytes(size), VCEK, CHAIN).hardware_id
    with pytest.raises(EvidenceError, match="no certificate table"):
        judged(head + REPORT + b"x", VCEK, CHAIN)
    failed = struct.pack("<II", 0x16, 0) + bytes(24) + REPORT
    with pytest.raises(EvidenceError):
        judged(failed, VCEK, CHAIN)


def test_bytes_behind_a_quote_are_refused_and_the_error_states_where_to_cut() -> None:
    with pytest.raises(EvidenceError, match=f"quote.padding at offset {len(QUOTE)}") as raised:
        judged(QUOTE + b"not signed", collateral=COLLATERAL)
    assert f"head -c {len(QUOTE)}" in raised.value.hint


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


def tpm_document(tpm: SyntheticTpm, **changed: Any) -> bytes:
    statement = tpm.statement(REPORT_DATA[:32])
    values = [tpm.pcrs["sha256"][number].hex() for number in range(24)]
    public = tpm.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    document = {
        "ak_public": base64.b64encode(public).decode(),
        "tpm_quote": {
            "message": base64.b64encode(statement).decode(),
            "signature": base64.b64encode(tpm.sign(statement)).decode(),
            "pcrs": values,
            **changed,
        },
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize("key", [keys.ec_key("tpm ak"), keys.rsa_key("tpm ak")])
def test_the_tpm_quote_of_another_agent_is_read(key: Any) -> None:
    kind = "ecdsa" if key is keys.ec_key("tpm ak") else "rsassa"
    tpm = SyntheticTpm(key=key, scheme=kind)
    document = tpm_document(tpm)
    assert detect_format(document) == "tpm"
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = judged(document, public, bound=REPORT_DATA[:32])
    assert claims.hardware_id == key_digest(key.public_key())
    assert claims.measurements["pcr.14"] == bytes(32)
    # The key came along with the quote: that alone makes nobody believe it.
    with pytest.raises(EndorsementError, match="neither proven"):
        judged(document, bound=REPORT_DATA[:32])
    changes: list[dict[str, Any]] = [{"pcrs": []}, {"pcrs": ["00"] * 24}, {"pcrs": 1}]
    for changed in (*changes, {"message": "x"}, {"a": 1}):
        with pytest.raises(EvidenceError):
            judged(tpm_document(tpm, **changed), public)


def old_azure(document: bytes) -> bytes:
    """Write evidence as it was before it had a version: other names, lists of numbers."""
    now = json.loads(document)
    quote = now["tpm_quote"]
    return json.dumps(
        {
            "quote": {
                "message": list(bytes.fromhex(quote["message"])),
                "signature": list(bytes.fromhex(quote["signature"])),
                "pcrs": [list(bytes.fromhex(value)) for value in quote["pcrs"]],
            },
            "report": list(json_bytes(now["hcl_report"], "hcl_report")),
            "vcek": keys.pem(base64.b64decode(now["vcek"])).decode(),
        }
    ).encode()


def test_azure_evidence_of_each_version_is_read() -> None:
    bound = REPORT_DATA[:32]
    first = azure.evidence(bound)
    second = azure.evidence(bound, user_data=bound.ljust(64, b"\0"))
    for document in (first, second, old_azure(first)):
        assert detect_format(document) == "azure-vtpm"
        assert judged(document, CHAIN, bound=bound).attributes["azure.secure-boot"] is True
        assert any(field.name == "pcrDigest" for field in decode_file(document)[1])


def test_user_data_of_azure_must_be_what_the_quote_is_bound_to() -> None:
    bound = REPORT_DATA[:32]
    other = azure.evidence(bound, user_data=b"x" * 64)
    with pytest.raises(BindingError, match="user-data"):
        judged(other, CHAIN, bound=bound)
    document = json.loads(azure.evidence(bound))
    for version in (2, 3, 0, True, "1"):
        with pytest.raises(EvidenceError):
            judged(json.dumps({**document, "version": version}).encode(), CHAIN, bound=bound)
    with pytest.raises(EvidenceError, match="unknown key"):
        judged(json.dumps({**json.loads(old_azure(azure.evidence(bound))), "version": 1}).encode())


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
def test_collateral_of_other_tools_is_read(form: Any, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("data", "word"),
    [(VCEK, "--endorsement"), (CHAIN, "--endorsement"), (b"HCLA" + bytes(99), "HCL report")],
)
def test_what_is_no_evidence_is_recognised(data: bytes, word: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        detect_format(data)
    assert word in refused.value.hint


def test_a_tdreport_is_distinguished_from_a_quote_with_its_version() -> None:
    report = (REPORTED / "tdreport_td15.bin").read_bytes()
    for version, data in ((1, report), (0, report[:2] + b"\0" + report[3:])):
        with pytest.raises(EvidenceError) as refused:
            detect_format(data)
        assert f"a TDREPORT (type 0x81, version {version})" in refused.value.hint
    with pytest.raises(EvidenceError) as refused:
        detect_format(b"\x81\1" + report[2:])
    assert "known formats" in refused.value.hint


def test_an_attestation_behind_its_size_states_how_to_cut_it() -> None:
    message = (REPORTED / "p384.msg").read_bytes()
    assert detect_format(message) == "tpm"
    with pytest.raises(EvidenceError) as refused:
        detect_format(struct.pack(">H", len(message)) + message)
    assert refused.value.hint.endswith("tail -c +3")


def test_bytes_behind_a_report_that_are_no_table_are_counted_and_state_where_to_cut() -> None:
    data = (REPORTED / "snp_report_and_20_bytes.bin").read_bytes()
    with pytest.raises(EvidenceError) as refused:
        to_evidence(data)
    assert str(refused.value).startswith(
        "report.end at offset 1184: 20 bytes behind the report are no certificate table"
    )
    assert refused.value.hint.endswith("head -c 1184")
    assert to_evidence(data[:1184]).quote == data[:1184]


def bare_signatures(tpm: SyntheticTpm) -> dict[str, bytes]:
    assert isinstance(tpm.key, ec.EllipticCurvePrivateKey)
    return {
        "RSA": (REPORTED / "raw_rsa_signature.sig").read_bytes(),
        "ECDSA": tpm.key.sign(b"statement", ec.ECDSA(hashes.SHA256())),
    }


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_a_bare_signature_beside_a_tpm_quote_is_named(kind: str) -> None:
    data = bare_signatures(SyntheticTpm())[kind]
    pieces = ["p384.ak.pem", "p384.pcrs", "p384.sig"]
    files = tuple(Input(name=name, data=(REPORTED / name).read_bytes()) for name in pieces)
    message = Input(name="p384.msg", data=(REPORTED / "p384.msg").read_bytes())
    assert gather(message, endorsements=files)[1].tpm_aks
    bare = Input(name="quote.sig", data=data)
    for given in ((*files[:2], bare), (bare, *files)):
        with pytest.raises(EvidenceError) as refused:
            gather(message, endorsements=given)
        assert str(refused.value).startswith(f"quote.sig: a bare {kind} signature: a TPMT_SIG")
        assert "tpm2_quote -f tss" in refused.value.hint


def test_an_hcl_report_alone_is_decoded() -> None:
    report = azure.hcl_report(keys.rsa_key("azure ak").public_key())
    kind, found = decode_file(report)
    assert kind == "hcl-report"
    digest = hashlib.sha384(b"").hexdigest()
    assert digest not in {field.value for field in found}
    assert {"report_size", "MEASUREMENT", "keys.HCLAkPub"} <= {field.name for field in found}


@pytest.mark.parametrize("data", [VCEK, ders(CHAIN)[0], ders(CHAIN)[1], AMD.crl()])
def test_what_is_parsed_late_fails_early(data: bytes) -> None:
    """Libraries read parts of a certificate or list when they are first asked for."""
    for at in range(min(len(data), 700)):
        altered = bytearray(data)
        altered[at] ^= 0xFF
        with contextlib.suppress(EvidenceError, VerificationError):
            judged(REPORT, bytes(altered), VCEK, CHAIN)
        with contextlib.suppress(EvidenceError, VerificationError):
            evidence = replace(to_evidence(REPORT), endorsements=(bytes(altered), VCEK, CHAIN))
            trust = TrustAnchors(amd_ark_keys=frozenset({AMD.root_key}))
            verify(evidence, binding=None, trust=trust, now=keys.AT)
