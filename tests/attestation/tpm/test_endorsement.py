"""Paths from an endorsement key's certificate to a root, with files as operators have them.

``reported/NUVO_2111.pem`` is a root of Nuvoton's whose name is not encoded as DER demands:
OpenSSL reads it, ``cryptography`` does not.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from attestation.errors import EndorsementError
from attestation.tpm.endorsement import check_ek_certificate, unreadable_certificates

NOW = datetime(2026, 11, 1, tzinfo=UTC)
MALFORMED = (Path(__file__).parents[1] / "reported" / "NUVO_2111.pem").read_bytes()
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
ROOT_KEY, OTHER_KEY, MIDDLE_KEY, LEAF_KEY = (
    ec.generate_private_key(ec.SECP256R1()) for _ in range(4)
)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def make(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = True,
    days: int = 900,
    path_length: int | None = None,
    issuer_at: str = "",
) -> x509.Certificate:
    built = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1000))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    )
    if not ca:
        built = built.add_extension(x509.ExtendedKeyUsage([EK_USAGE]), critical=False)
    if issuer_at:
        access = x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS,
            x509.UniformResourceIdentifier(issuer_at),
        )
        built = built.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    return built.sign(signer, hashes.SHA256())


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


ROOT = make("Root A", "Root A", ROOT_KEY, ROOT_KEY)
OTHER = make("Root B", "Root B", OTHER_KEY, OTHER_KEY)
MIDDLE = make("Inter", "Root A", MIDDLE_KEY, ROOT_KEY)
LEAF = make("", "Inter", LEAF_KEY, MIDDLE_KEY, ca=False)

FILES: dict[str, tuple[list[bytes], list[bytes]]] = {
    "an unreadable root beside a good one": ([der(MIDDLE)], [der(ROOT), MALFORMED]),
    "an unreadable root in the same file": ([der(MIDDLE)], [MALFORMED + pem(ROOT)]),
    "an unreadable intermediate in the same file": ([MALFORMED + pem(MIDDLE)], [der(ROOT)]),
    "a bundle of roots": ([der(MIDDLE)], [pem(OTHER) + pem(ROOT)]),
    "a bundle of intermediates": ([pem(OTHER) + pem(MIDDLE)], [der(ROOT)]),
    "text before a root": ([der(MIDDLE)], [b"Certificate:\n    Data:\n" + pem(ROOT)]),
    "text before an intermediate": ([b"Certificate:\n" + pem(MIDDLE)], [der(ROOT)]),
    "another intermediate of that name first": (
        [der(make("Inter", "Root B", MIDDLE_KEY, OTHER_KEY)), der(MIDDLE)],
        [der(ROOT)],
    ),
    "an expired intermediate of that key first": (
        [der(make("Inter", "Root A", MIDDLE_KEY, ROOT_KEY, days=-1)), der(MIDDLE)],
        [der(ROOT)],
    ),
    "an expired root of that key first": (
        [der(MIDDLE)],
        [der(make("Root A", "Root A", ROOT_KEY, ROOT_KEY, days=-1)), der(ROOT)],
    ),
    "intermediates that issued each other": (
        [
            der(make("Inter", "Loop", MIDDLE_KEY, OTHER_KEY)),
            der(make("Loop", "Inter", OTHER_KEY, MIDDLE_KEY)),
            der(MIDDLE),
        ],
        [der(ROOT)],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_path_is_found(case: str) -> None:
    intermediates, roots = FILES[case]
    found = check_ek_certificate(der(LEAF), intermediates, roots=roots, now=NOW)
    assert found == LEAF_KEY.public_key()


@pytest.mark.parametrize("case", FILES)
def test_without_the_root_the_same_files_give_no_path(case: str) -> None:
    intermediates, roots = FILES[case]
    stranger = make("Root A", "Root A", LEAF_KEY, LEAF_KEY)
    left = [
        item.replace(der(ROOT), der(stranger)).replace(pem(ROOT), pem(stranger)) for item in roots
    ]
    with pytest.raises(EndorsementError, match=r"no trusted root|expired on"):
        check_ek_certificate(der(LEAF), intermediates, roots=left, now=NOW)


def test_the_refusal_names_the_root_that_was_not_read() -> None:
    with pytest.raises(
        EndorsementError, match="not read: trusted root 2, certificate 1: not a certificate"
    ):
        check_ek_certificate(der(LEAF), [der(MIDDLE)], roots=[der(OTHER), MALFORMED], now=NOW)


def test_the_refusal_names_few_of_many_roots_that_were_not_read() -> None:
    with pytest.raises(EndorsementError, match=r"certificate 4: [^;]*; and 96 more$"):
        check_ek_certificate(der(LEAF), [], roots=[MALFORMED * 100], now=NOW)


def test_a_path_of_the_wrong_length_is_not_made_good_by_another_of_that_name() -> None:
    short = make("Root A", "Root A", ROOT_KEY, ROOT_KEY, path_length=0)
    with pytest.raises(EndorsementError, match="no trusted root"):
        check_ek_certificate(der(LEAF), [der(MIDDLE)], roots=[der(short)], now=NOW)


def test_signatures_to_check_are_bounded() -> None:
    crowd = [der(make("Inter", "Inter", MIDDLE_KEY, MIDDLE_KEY)) for _ in range(600)]
    with pytest.raises(EndorsementError, match="more than 512 signatures"):
        check_ek_certificate(der(LEAF), crowd, roots=[der(OTHER)], now=NOW)


def test_unreadable_certificates_are_named_by_their_place() -> None:
    bundle = pem(ROOT) + MALFORMED + pem(OTHER)
    assert unreadable_certificates(bundle) == ("certificate 2: not a certificate in DER or PEM",)
    assert unreadable_certificates(pem(ROOT)) == unreadable_certificates(der(ROOT)) == ()


def test_the_refusal_names_the_certificate_that_is_missing_and_where_it_is() -> None:
    leaf = make("", "Inter", LEAF_KEY, MIDDLE_KEY, ca=False, issuer_at="http://maker.example/i.crt")
    middle = make("Inter", "Root A", MIDDLE_KEY, ROOT_KEY, issuer_at="https://maker.example/r.crt")
    for above, name_, at in (
        ([], "CN=Inter", "http://maker.example/i.crt"),
        ([der(middle)], "CN=Root A", "https://maker.example/r.crt"),
    ):
        with pytest.raises(EndorsementError, match=f"no trusted root for {name_}$") as refused:
            check_ek_certificate(der(leaf), above, roots=[der(OTHER)], now=NOW)
        assert refused.value.hint.endswith(f"; the next is at {at}")
    odd = make("", "Inter", LEAF_KEY, MIDDLE_KEY, ca=False, issuer_at="file:///etc/passwd")
    with pytest.raises(EndorsementError) as refused:
        check_ek_certificate(der(odd), [], roots=[der(OTHER)], now=NOW)
    assert "passwd" not in refused.value.hint
