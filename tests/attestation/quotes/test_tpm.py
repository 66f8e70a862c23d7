"""TPM structures and the quote container: what they take, and everything that they refuse."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, TypedDict

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.tpm import MAX_TPM_QUOTE_BYTES, TpmQuote
from attestation.quotes.tpm_keys import PublicArea, load_public_key, spki
from attestation.quotes.tpm_structures import QuoteStatement, TpmSignature
from tests.fakes.synthetic_tpm import SyntheticTpm, binding, public_area


class Pieces(TypedDict):
    """A quote as ``tpm2_quote`` writes it, each file's bytes."""

    attest: bytes
    signature: bytes
    ak: bytes
    pcr_values: bytes


def read(vectors: Path, name: str) -> bytes:
    return (vectors / "swtpm" / name).read_bytes()


@pytest.fixture
def pieces(vectors: Path) -> Pieces:
    return {
        "attest": read(vectors, "attest.bin"),
        "signature": read(vectors, "sig.bin"),
        "ak": read(vectors, "ak.pem"),
        "pcr_values": read(vectors, "pcrs.bin"),
    }


def test_a_real_quote_is_read_field_by_field(vectors: Path, pieces: Pieces) -> None:
    quote = TpmQuote.assemble(**pieces)
    statement = quote.statement
    assert statement.extra_data == read(vectors, "qualifying_data.bin")
    assert statement.pcr_digest == hashlib.sha256(pieces["pcr_values"]).digest()
    assert [(s.bank, s.pcrs) for s in statement.selection] == [
        ("sha256", (0, 1, 2, 3, 4, 5, 6, 7, 14))
    ]
    assert statement.reset_count == 1
    assert statement.safe is True
    assert quote.pcrs["sha256"][14] == pieces["pcr_values"][-32:]
    assert quote.signature.scheme == "ecdsa"


def test_pieces_are_distinguished_in_any_order(vectors: Path, pieces: Pieces) -> None:
    beside = (pieces["pcr_values"], pieces["ak"], pieces["signature"])
    whole = TpmQuote.assemble(**pieces)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
        evidence = Evidence(
            tee=Tee.TPM,
            quote=pieces["attest"],
            endorsements=tuple(beside[i] for i in order),
        )
        assert TpmQuote.from_evidence(evidence) == whole


def serialized(values: bytes) -> bytes:
    """PCR values of one SHA-256 bank as ``tpm2_quote`` writes them by default."""
    digests = [values[i : i + 32] for i in range(0, len(values), 32)]
    lists = [digests[i : i + 8] for i in range(0, len(digests), 8)]
    packed = b"".join(
        struct.pack("<I", len(part))
        + b"".join(struct.pack("<H64s", len(d), d) for d in part)
        + bytes(66 * (8 - len(part)))
        for part in lists
    )
    selection = struct.pack("<IHB4s", 1, 0x0B, 3, b"\xff\x40\0\0").ljust(132, b"\0")
    return selection + struct.pack("<I", len(lists)) + packed


def test_pcr_values_in_the_format_of_the_tool_are_read(pieces: Pieces) -> None:
    def parse(values: bytes) -> TpmQuote:
        beside = (pieces["signature"], pieces["ak"], values)
        return TpmQuote.from_evidence(
            Evidence(tee=Tee.TPM, quote=pieces["attest"], endorsements=beside)
        )

    packed = serialized(pieces["pcr_values"])
    assert parse(packed) == TpmQuote.assemble(**pieces)
    for altered in (packed[:-1], packed + bytes(532), packed[:-1] + b"\1", b"\2" + packed[1:]):
        with pytest.raises(EvidenceError):
            parse(altered)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_piece_is_named(pieces: Pieces, missing: int) -> None:
    beside = [pieces["signature"], pieces["ak"], pieces["pcr_values"]]
    del beside[missing]
    evidence = Evidence(tee=Tee.TPM, quote=pieces["attest"], endorsements=tuple(beside))
    names = ("quote signature", "attestation key", "PCR values")
    with pytest.raises(EvidenceError, match=names[missing]):
        TpmQuote.from_evidence(evidence)


def test_a_piece_that_comes_twice_is_refused(pieces: Pieces) -> None:
    other = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    evidence = Evidence(
        tee=Tee.TPM,
        quote=pieces["attest"],
        endorsements=(pieces["signature"], pieces["ak"], pieces["pcr_values"], other),
    )
    with pytest.raises(EvidenceError, match="a second attestation key"):
        TpmQuote.from_evidence(evidence)


def test_the_container_has_one_encoding() -> None:
    quote = SyntheticTpm().quote(b"x" * 32, scope="job-1", ek=b"certificate")
    again = TpmQuote.from_bytes(quote.to_bytes())
    assert again == quote
    assert again.to_bytes() == quote.to_bytes()
    bare = SyntheticTpm().quote(b"x" * 32, ak=spki(quote.ak))
    assert TpmQuote.from_bytes(bare.to_bytes()) == bare


def test_the_container_is_refused_truncated_at_every_length() -> None:
    data = SyntheticTpm().quote(b"x" * 32, scope="job-1").to_bytes()
    for length in range(len(data)):
        if data[:length] == quote_without_scope(data):
            continue
        with pytest.raises(EvidenceError):
            TpmQuote.from_bytes(data[:length])
    with pytest.raises(EvidenceError):
        TpmQuote.from_bytes(data + b"\0")


def quote_without_scope(data: bytes) -> bytes:
    """The same container before its last, optional field."""
    return data[: data.rindex(b"\x06\0\0\0\x05job-1")]


def test_bounds_hold_before_anything_is_read() -> None:
    for parse in (QuoteStatement.parse, TpmSignature.parse, PublicArea.parse):
        with pytest.raises(EvidenceError, match="at most"):
            parse(bytes(10_000_000))
    with pytest.raises(EvidenceError, match="at most"):
        TpmQuote.from_bytes(b"FLTQ\x01" + bytes(MAX_TPM_QUOTE_BYTES))


def test_fields_out_of_order_or_twice_are_refused() -> None:
    quote = SyntheticTpm().quote(b"x" * 32)
    data = quote.to_bytes()
    first = data[5 : 5 + 5 + len(quote.statement.raw)]
    with pytest.raises(EvidenceError, match="ascend"):
        TpmQuote.from_bytes(data + first)
    with pytest.raises(EvidenceError, match="unknown field"):
        TpmQuote.from_bytes(data + b"\x63\0\0\0\0")
    with pytest.raises(EvidenceError, match="is empty"):
        TpmQuote.from_bytes(data + b"\x06\0\0\0\0")
    with pytest.raises(EvidenceError, match="scope"):
        TpmQuote.from_bytes(data + b"\x06\0\0\0\x03a/b")
    other = spki(quote.ak)
    start = data.index(b"\x05\0\0\x01\x20")
    both = data[:start] + b"\x04" + len(other).to_bytes(4, "big") + other + data[start:]
    with pytest.raises(EvidenceError, match="exactly one"):
        TpmQuote.from_bytes(both)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": 0x8017}, "type"),
        ({"safe": 2}, "clockInfo.safe"),
        ({"digest": bytes(65)}, "pcrDigest"),
        ({"signer": bytes(67)}, "qualifiedSigner"),
    ],
)
def test_statements_that_are_not_quotes_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        QuoteStatement.parse(SyntheticTpm().statement(b"", **change))
    assert caught.value.field == f"attest.{field}"
    assert caught.value.offset is not None


def test_a_bank_that_is_selected_twice_is_refused() -> None:
    tpm = SyntheticTpm()
    tpm.banks = ("sha256", "sha256")
    with pytest.raises(EvidenceError, match="selected twice"):
        QuoteStatement.parse(tpm.statement(b""))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_ecc_keys_come_back(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    area = PublicArea.parse(public_area(key))
    assert area.spki == spki(key)
    assert area.scheme == "ecdsa"


def test_rsa_keys_come_back_and_short_ones_do_not() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    assert PublicArea.parse(public_area(key)).spki == spki(key)
    weak = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(EvidenceError, match="1024"):
        PublicArea.parse(public_area(weak))
    with pytest.raises(EvidenceError, match="1024"):
        load_public_key(spki(weak), "ak")


def test_a_point_off_its_curve_is_refused() -> None:
    data = bytearray(public_area(ec.generate_private_key(ec.SECP256R1()).public_key()))
    data[-1] ^= 1
    with pytest.raises(EvidenceError, match="not a point"):
        PublicArea.parse(bytes(data))


def test_a_key_of_another_kind_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for data in (der, b"", b"nonsense", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"):
        with pytest.raises(EvidenceError):
            load_public_key(data, "ak")


PARSERS = (
    QuoteStatement.parse,
    TpmSignature.parse,
    PublicArea.parse,
    PublicArea.parse_sized,
    TpmQuote.from_bytes,
)


@given(data=st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_our_errors(data: bytes) -> None:
    starts = (
        b"",
        b"\xffTCG\x80\x18",
        b"\0\x18\0\x0b",
        b"\0\x23\0\x0b",
        b"\0\x01\0\x0b",
        b"FLTQ\x01",
    )
    for parse in PARSERS:
        for start in starts:
            try:
                parse(start + data)
            except AttestationError:
                continue


@given(at=st.integers(0, 700), value=st.integers(0, 255), cut=st.integers(0, 700))
@settings(max_examples=300, deadline=None)
def test_no_mutation_of_a_real_quote_raises_anything_but_our_errors(
    at: int, value: int, cut: int, real_container: bytes
) -> None:
    data = bytearray(real_container)
    data[at % len(data)] = value
    mutated = bytes(data[: max(1, len(data) - cut // 3)])
    try:
        assert TpmQuote.from_bytes(mutated).to_bytes() == mutated
    except AttestationError:
        return


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 3),
)
def test_reading_at_once_and_field_by_field_agree(changes: list[tuple[int, int]], cut: int) -> None:
    quote = TpmQuote.from_evidence(SyntheticTpm().evidence(binding()))
    for kind, raw in ((QuoteStatement, quote.statement.raw), (TpmSignature, quote.signature.raw)):
        data = bytearray(raw[: len(raw) - cut])
        for at, value in changes:
            data[at % len(data)] = value
        outcomes: list[object] = []
        for parse in (kind.parse, kind._walk):
            try:
                outcomes.append(parse(bytes(data)))
            except EvidenceError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@pytest.fixture(scope="module")
def real_container() -> bytes:
    return SyntheticTpm().quote(b"x" * 32, scope="job").to_bytes()
