"""Evidence in the forms of other tools is recognised, or refused with what to do."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.decoded import decode_file
from attestation.documents.formats import detect_format, to_evidence
from attestation.encodings import json_bytes, unwrap_text
from attestation.endorsements.offline import Input, gather
from attestation.errors import BindingError, EndorsementError, EvidenceError, VerificationError
from attestation.evidence import Tee
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import azure, keys
from tests.vectors.foreign_forms import (
    AMD,
    CHAIN,
    COLLATERAL,
    QUOTE,
    REPORT,
    REPORT_DATA,
    REPORTED,
    VCEK,
    ders,
    judged,
)


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
def test_the_tpm_quote_of_another_agent_is_read(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
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
