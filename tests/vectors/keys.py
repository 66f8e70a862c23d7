"""Keys and signatures that come out the same every time, for test vectors and nothing else.

Private keys follow from a name, ECDSA nonces from RFC 6979, and the salt of RSA-PSS from the
message, so that vectors can be made again and compared byte by byte.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2045, 1, 1, tzinfo=dt.UTC)
AT = dt.datetime(2026, 1, 15, 12, tzinfo=dt.UTC)
"""When the vectors are valid."""

_EXPONENT = 65537


def stream(seed: str, size: int) -> bytes:
    """Return ``size`` bytes that follow from ``seed``."""
    return hashlib.shake_256(b"fedlearn test vector/" + seed.encode()).digest(size)


@lru_cache
def ec_key(seed: str, curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    """Return the EC key of ``seed``."""
    kind = ec.SECP256R1() if curve == "P-256" else ec.SECP384R1()
    return ec.derive_private_key(int.from_bytes(stream(seed, 32), "big") >> 1 | 1, kind)


@lru_cache
def rsa_key(seed: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of ``seed``."""
    p, q = _prime(f"{seed}/p", bits // 2), _prime(f"{seed}/q", bits // 2)
    d = pow(_EXPONENT, -1, math.lcm(p - 1, q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=rsa.rsa_crt_dmp1(d, p),
        dmq1=rsa.rsa_crt_dmq1(d, q),
        iqmp=rsa.rsa_crt_iqmp(p, q),
        public_numbers=rsa.RSAPublicNumbers(_EXPONENT, p * q),
    ).private_key()


def _prime(seed: str, bits: int) -> int:
    candidate = int.from_bytes(stream(seed, bits // 8), "big")
    candidate |= (3 << (bits - 2)) | 1
    small = [n for n in range(3, 2000, 2) if all(n % m for m in range(3, int(n**0.5) + 1, 2))]
    while True:
        likely = all(candidate % n for n in small) and math.gcd(candidate - 1, _EXPONENT) == 1
        if likely and all(pow(base, candidate - 1, candidate) == 1 for base in (2, 3, 5, 7)):
            return candidate
        candidate += 2


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> tuple[int, int]:
    """Return r and s over ``data``, with the hash that fits the curve."""
    algorithm = hashes.SHA256() if isinstance(key.curve, ec.SECP256R1) else hashes.SHA384()
    return decode_dss_signature(key.sign(data, ec.ECDSA(algorithm, deterministic_signing=True)))


def sign_p256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return r | s, 64 bytes."""
    r, s = sign_raw(key, data)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def name(common: str, organisation: str) -> x509.Name:
    """Return a name as vendors write them."""
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "US"),
        ]
    )


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    *,
    serial: int,
    authority: bool,
    end: dt.datetime = END,
) -> x509.CertificateBuilder:
    """Return a certificate that lacks only its signature."""
    usage = x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(START)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )


def sign_ec(built: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the certificate in DER."""
    return built.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def sign_pss(built: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> bytes:
    """Return the certificate in DER, signed with RSA-PSS and SHA-384 as AMD does."""
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    made = built.sign(key, hashes.SHA384(), rsa_padding=scheme)
    size = key.key_size // 8
    return made.public_bytes(Encoding.DER)[:-size] + pss(key, made.tbs_certificate_bytes)


def pss(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """Return an RSA-PSS signature whose salt follows from ``data`` (RFC 8017, 9.1.1)."""
    size, digest = key.key_size // 8, hashlib.sha384(data).digest()
    salt = stream(digest.hex(), 48)
    hashed = hashlib.sha384(bytes(8) + digest + salt).digest()
    block = bytes(size - 48 - 48 - 2) + b"\x01" + salt
    masked = bytearray(a ^ b for a, b in zip(block, _mgf(hashed, len(block)), strict=True))
    masked[0] &= 0x7F
    encoded = int.from_bytes(bytes(masked) + hashed + b"\xbc", "big")
    numbers = key.private_numbers()
    return pow(encoded, numbers.d, numbers.public_numbers.n).to_bytes(size, "big")


def _mgf(seed: bytes, size: int) -> bytes:
    blocks = (hashlib.sha384(seed + counter.to_bytes(4, "big")).digest() for counter in range(size))
    found = b""
    while len(found) < size:
        found += next(blocks)
    return found[:size]


def der(tag: int, *parts: bytes) -> bytes:
    """Return one DER element."""
    body = b"".join(parts)
    if len(body) < 128:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def integer(value: int) -> bytes:
    """Return a DER INTEGER."""
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """Return a DER OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return der(0x06, bytes(body))


def pem(*ders: bytes) -> bytes:
    """Return a chain in PEM."""
    return b"".join(
        x509.load_der_x509_certificate(item).public_bytes(Encoding.PEM) for item in ders
    )
