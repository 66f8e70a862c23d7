"""Quotes made without a TPM: the structures of TPM 2.0 around a key of our own.

Where a test needs a quote that no TPM would make (another type, a weak key, SHA-1), or runs
on a machine without ``swtpm``. Real quotes come from a real ``swtpm``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation.binding import Binding, Role
from attestation.evidence import Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record
from attestation.quotes.tpm import TpmQuote

HASHES = {"sha1": 0x04, "sha256": 0x0B, "sha384": 0x0C, "sha512": 0x0D}
RESTRICTED_SIGNING = 0x00050072
ENDORSEMENT = 0x4000000B
CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def binding(
    *,
    role: Role = Role.CLIENT,
    nonce: bytes = b"n" * 32,
    tls_key: bytes = b"tls key",
    node_id: str = "site-a",
    verifier_id: bytes = b"v" * 32,
    workload: bytes = b"w" * 32,
) -> Binding:
    return Binding(
        role=role,
        nonce=nonce,
        verifier_id=verifier_id,
        tls_key=tls_key,
        hpke_key=b"hpke key",
        node_id=node_id,
        workload=workload,
    )


def public_area(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    *,
    attributes: int = RESTRICTED_SIGNING,
    name_hash: str = "sha256",
    scheme: int | None = None,
) -> bytes:
    """Return the TPMT_PUBLIC of a signing key."""
    is_ecc = isinstance(key, ec.EllipticCurvePublicKey)
    head = struct.pack(">HHI", 0x23 if is_ecc else 0x01, HASHES[name_hash], attributes)
    head += sized(b"") + struct.pack(">H", 0x10)
    chosen = scheme if scheme is not None else (0x18 if is_ecc else 0x14)
    head += struct.pack(">HH", chosen, HASHES["sha256"])
    numbers = key.public_numbers()
    if isinstance(numbers, ec.EllipticCurvePublicNumbers):
        width = (numbers.curve.key_size + 7) // 8
        tail = struct.pack(">HH", CURVES[numbers.curve.name], 0x10)
        return (
            head
            + tail
            + sized(numbers.x.to_bytes(width, "big"))
            + sized(numbers.y.to_bytes(width, "big"))
        )
    exponent = 0 if numbers.e == 65537 else numbers.e
    bits = numbers.n.bit_length()
    tail = struct.pack(">HI", bits, exponent)
    return head + tail + sized(numbers.n.to_bytes(bits // 8, "big"))


def qualified_name(area: bytes, parent: int = ENDORSEMENT, name_hash: str = "sha256") -> bytes:
    prefix = struct.pack(">H", HASHES[name_hash])
    name = prefix + hashlib.new(name_hash, area).digest()
    return prefix + hashlib.new(name_hash, struct.pack(">I", parent) + name).digest()


@dataclass
class SyntheticTpm:
    """A key, PCR values by bank and number, and the log that explains PCR 14."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    scheme: str = "ecdsa"
    hash: str = "sha256"
    attributes: int = RESTRICTED_SIGNING
    parent: int = ENDORSEMENT
    banks: tuple[str, ...] = ("sha256",)
    selected: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 14)

    def __post_init__(self) -> None:
        self.pcrs = {bank: {i: bytes(self._size(bank)) for i in range(24)} for bank in self.banks}
        self.log = EventLog.create(self.banks)

    @staticmethod
    def _size(bank: str) -> int:
        return hashlib.new(bank).digest_size

    @property
    def area(self) -> bytes:
        return public_area(self.key.public_key(), attributes=self.attributes)

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        for bank, digest in digests.items():
            value = self.pcrs[bank][pcr] + digest
            self.pcrs[bank][pcr] = hashlib.new(bank, value).digest()

    def measure(self, claim: str, digest: bytes, scope: str = "", pcr: int = 14) -> None:
        measurement = Measurement(claim=claim, digest=digest, scope=scope)
        self.log = record(self.log, measurement, pcr)
        self.extend(pcr, self.log.events[-1].digests)

    def values(self) -> bytes:
        return b"".join(self.pcrs[bank][i] for bank in self.banks for i in self.selected)

    def statement(
        self,
        extra: bytes,
        *,
        kind: int = 0x8018,
        safe: int = 1,
        digest: bytes | None = None,
        signer: bytes | None = None,
    ) -> bytes:
        select = bytes(
            sum(1 << bit for bit in range(8) if 8 * byte + bit in self.selected)
            for byte in range(3)
        )
        if digest is None:
            digest = hashlib.new(self.hash, self.values()).digest()
        if signer is None:
            signer = qualified_name(self.area, self.parent)
        return (
            b"\xffTCG"
            + struct.pack(">H", kind)
            + sized(signer)
            + sized(extra)
            + struct.pack(">QIIBQ", 1000, 3, 1, safe, 0x0102030405060708)
            + struct.pack(">I", len(self.banks))
            + b"".join(struct.pack(">HB", HASHES[b], 3) + select for b in self.banks)
            + sized(digest)
        )

    def sign(self, statement: bytes) -> bytes:
        algorithm = getattr(hashes, self.hash.upper())()
        identifier = HASHES[self.hash]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            scheme = ec.ECDSA(algorithm, deterministic_signing=True)  # for vectors
            r, s = decode_dss_signature(self.key.sign(statement, scheme))
            width = (self.key.curve.key_size + 7) // 8
            numbers = sized(r.to_bytes(width, "big")) + sized(s.to_bytes(width, "big"))
            return struct.pack(">HH", 0x18, identifier) + numbers
        if self.scheme == "rsassa":
            value = self.key.sign(statement, padding.PKCS1v15(), algorithm)
            return struct.pack(">HH", 0x14, identifier) + sized(value)
        pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
        return struct.pack(">HH", 0x16, identifier) + sized(
            self.key.sign(statement, pss, algorithm)
        )

    def quote(
        self, extra: bytes, *, scope: str = "", ak: bytes | None = None, ek: bytes = b""
    ) -> TpmQuote:
        statement = self.statement(extra)
        return TpmQuote.assemble(
            attest=statement,
            signature=self.sign(statement),
            ak=self.area if ak is None else ak,
            pcr_values=self.values(),
            scope=scope,
            ek_certificate=ek,
        )

    def evidence(self, bound: Binding, *, scope: str = "", ek: bytes = b"") -> Evidence:
        quote = self.quote(bound.qualifying_data(), scope=scope, ek=ek)
        return Evidence(tee=Tee.TPM, quote=quote.to_bytes(), event_log=self.log.to_bytes())
