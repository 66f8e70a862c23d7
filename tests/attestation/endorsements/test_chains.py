"""One link of a chain: who issued it, under which name, with which algorithm."""

from __future__ import annotations

import datetime as dt
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestation.endorsements.chains import Certificate, check_issued, load_certificate
from attestation.errors import EndorsementError, EvidenceError
from tests.vectors import keys

ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
RSA = rsa.generate_private_key(65537, 2048)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *,
    authority: bool = False,
    pss: bool = False,
) -> Certificate:
    built = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(keys.AT - dt.timedelta(days=1))
        .not_valid_after(keys.AT + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else None
    signed = built.sign(by, hashes.SHA256(), rsa_padding=scheme)
    return load_certificate(signed.public_bytes(Encoding.DER), "test")


ROOT_KEY = keys.ec_key("a root of one test")
LEAF_KEY = keys.ec_key("a leaf of one test")
ROOT = issue("root", ROOT_KEY, "root", ROOT_KEY, authority=True)
RSA_ROOT = issue("root", RSA, "root", RSA, authority=True)


@pytest.mark.parametrize("pss", [True, False])
def test_a_link_holds_each_time_that_it_is_asked(pss: bool) -> None:
    under_rsa = issue("leaf", LEAF_KEY, "root", RSA, pss=pss)
    under_ec = issue("leaf", LEAF_KEY, "root", ROOT_KEY)
    for _ in range(2):
        check_issued(under_ec, ROOT, step="test")
        check_issued(under_rsa, RSA_ROOT, step="test")


def test_a_look_alike_issuer_is_refused_each_time() -> None:
    leaf = issue("leaf", LEAF_KEY, "root", ROOT_KEY)
    check_issued(leaf, ROOT, step="test")
    other = keys.ec_key("another root of one test")
    for stranger in (issue("root", other, "root", other, authority=True), RSA_ROOT):
        for _ in range(2):
            with pytest.raises(EndorsementError, match="did not sign"):
                check_issued(leaf, stranger, step="test")


def test_an_issuer_that_is_no_authority_or_has_another_name_is_refused() -> None:
    leaf = issue("leaf", LEAF_KEY, "root", ROOT_KEY)
    with pytest.raises(EndorsementError, match="not an authority"):
        check_issued(leaf, issue("root", ROOT_KEY, "root", ROOT_KEY), step="test")
    with pytest.raises(EndorsementError, match="was issued by"):
        check_issued(leaf, issue("other", ROOT_KEY, "other", ROOT_KEY, authority=True), step="test")


def test_an_algorithm_outside_of_the_signature_must_be_the_one_inside() -> None:
    """RFC 5280, section 4.1.1.2: only the inner one is signed."""
    der = issue("leaf", LEAF_KEY, "root", ROOT_KEY).der
    outer = der.rindex(ECDSA_SHA256)
    assert der.count(ECDSA_SHA256) == 2
    altered = der[:outer] + ECDSA_SHA384 + der[outer + len(ECDSA_SHA256) :]
    with pytest.raises(EndorsementError, match="did not sign"):
        check_issued(load_certificate(altered, "test"), ROOT, step="test")


def test_every_altered_byte_of_a_signature_is_refused() -> None:
    leaf = issue("leaf", LEAF_KEY, "root", ROOT_KEY)
    check_issued(leaf, ROOT, step="test")
    start = len(leaf.der) - len(leaf.parsed.signature)
    for at in range(start + 4, len(leaf.der)):
        altered = bytearray(leaf.der)
        altered[at] ^= 1
        try:
            changed = load_certificate(bytes(altered), "test")
        except EvidenceError:
            continue
        with pytest.raises(EndorsementError):
            check_issued(changed, ROOT, step="test")


def test_a_signature_has_no_unused_bits() -> None:
    """Nobody signs their count, and ``cryptography`` ignores it where the bits are zero."""
    evens = (issue("leaf", LEAF_KEY, "root", ROOT_KEY) for _ in range(64))
    leaf = next(item for item in evens if item.parsed.signature[-1] % 2 == 0)
    der = bytearray(leaf.der)
    der[-len(leaf.parsed.signature) - 1] = 1
    assert x509.load_der_x509_certificate(bytes(der)).signature == leaf.parsed.signature
    with pytest.raises(EvidenceError, match="not a well-formed certificate"):
        load_certificate(bytes(der), "test")


def test_a_malformed_name_prints_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        country = x509.NameAttribute(NameOID.COUNTRY_NAME, "Atlantis", _validate=False)
    built = keys.builder(
        x509.Name([country]),
        x509.Name([country]),
        keys.ec_key("warned").public_key(),
        serial=1,
        authority=True,
    )
    der = keys.sign_ec(built, keys.ec_key("warned"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_certificate(der, "test").self_issued
