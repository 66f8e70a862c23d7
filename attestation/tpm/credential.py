"""Credential activation: proof that an attestation key is in the TPM of an endorsement key.

The relying party encrypts a secret to the endorsement key (EK) so that only its TPM opens it, and
only while it holds an object with the Name of the attestation key (AK). The Name covers the AK's
public part and its attributes. This module implements ``TPM2_MakeCredential`` in software
(TPM 2.0 Part 1, section 24 and annexes B.10.4 and C.6.4), with RSA 2048 and ECC EKs; the
site answers with ``TPM2_ActivateCredential`` (:class:`attestation.attesters.tpm.TpmAttester`).

::

    site     identity = attester.identity()                    not proven yet
    server   challenge = challenge_identity(identity, roots=..., now=...)
             send challenge.blob, keep challenge
    site     answer = attester.activate(blob)
    server   proven = challenge.prove(answer)                  ProvenKey(ak, ek)

``proven.ak`` then belongs in ``TrustAnchors.tpm_aks`` and ``{proven.ak: proven.ek}`` in
``TrustAnchors.tpm_ek_of``.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from attestation.errors import EndorsementError, EvidenceError
from attestation.length_prefixed import pack
from attestation.quotes.cursor import Cursor
from attestation.quotes.tpm_keys import ObjectAttribute, PublicArea, spki
from attestation.tpm.endorsement import check_ek_certificate

__all__ = [
    "ActivationChallenge",
    "ProvenKey",
    "TpmIdentity",
    "challenge_identity",
    "check_credential",
    "make_credential",
]

SECRET_BYTES: Final = 32
_MAX_IDENTITY_BYTES: Final = 64 * 1024
_MAX_CHAIN: Final = 4
_MAX_CREDENTIAL_BYTES: Final = 2048
_MAX_PART_BYTES: Final = 600
_MAGIC: Final = b"FLTI\x01"
_TOOL_HEADER: Final = bytes.fromhex("badcc0de00000001")
"""The header that ``tpm2_activatecredential`` expects before the two structures."""

_STEP: Final = "credential activation"
_ALG_AES: Final = 0x0006
_ALG_CFB: Final = 0x0043
_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_FIXED: Final = (
    ObjectAttribute.FIXED_TPM | ObjectAttribute.FIXED_PARENT | ObjectAttribute.SENSITIVE_DATA_ORIGIN
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmIdentity:
    """The keys that a site reports for its TPM; nothing is proven yet.

    Encoding: ``"FLTI" | u8 version = 1``, then each ``u32be length | value``: the EK and the
    AK as ``TPMT_PUBLIC``, the EK certificate (empty if none), and up to 4 certificates above.
    """

    ek: PublicArea
    ak: PublicArea
    ek_certificate: bytes = b""
    chain: tuple[bytes, ...] = ()

    @property
    def ek_digest(self) -> bytes:
        """SHA-256 of the SPKI of the endorsement key."""
        return hashlib.sha256(self.ek.spki).digest()

    @property
    def ak_digest(self) -> bytes:
        """SHA-256 of the SPKI of the attestation key."""
        return hashlib.sha256(self.ak.spki).digest()

    def to_bytes(self) -> bytes:
        """Return the encoding."""
        fields = (self.ek.raw, self.ak.raw, self.ek_certificate, *self.chain)
        return _MAGIC + pack(*fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> TpmIdentity:
        """Parse an encoding of at most 64 KiB.

        :raises EvidenceError: naming field and offset.
        """
        read = Cursor(data, "tpm_identity", limit=_MAX_IDENTITY_BYTES)
        if read.take(min(len(_MAGIC), read.remaining), "magic") != _MAGIC:
            raise read.fail("not a TPM identity of version 1", "magic", offset=0)
        names = ("ek", "ak", "ek_certificate", *(f"chain[{i}]" for i in range(_MAX_CHAIN)))
        fields: list[bytes] = []
        for name in names:
            if len(fields) >= 3 and not read.remaining:
                break
            fields.append(read.sized(name, limit=_MAX_IDENTITY_BYTES, prefix=4))
        read.finish()
        return cls(
            ek=PublicArea.parse(fields[0]),
            ak=PublicArea.parse(fields[1]),
            ek_certificate=fields[2],
            chain=tuple(fields[3:]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenKey:
    """An AK and the EK of the same TPM: SHA-256 of each SubjectPublicKeyInfo.

    ``endorsement`` is the reason why the EK is trusted: ``certificate``, ``pinned`` or
    ``insecure-first-use``.
    """

    ak: bytes
    ek: bytes
    endorsement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationChallenge:
    """``blob`` goes to the site; the rest stays here until it answers. Use it once."""

    blob: bytes
    proven: ProvenKey
    secret: bytes = field(repr=False)

    def prove(self, answer: bytes) -> ProvenKey:
        """Return the keys that the site's TPM has just proven.

        :raises EndorsementError: when the answer is not the secret in the challenge.
        """
        if not hmac.compare_digest(answer, self.secret):
            raise EndorsementError(
                "the TPM of this endorsement key does not hold this attestation key", step=_STEP
            )
        return self.proven


def challenge_identity(
    identity: TpmIdentity,
    *,
    now: datetime,
    roots: Sequence[bytes] = (),
    intermediates: Sequence[bytes] = (),
    pinned: frozenset[bytes] = frozenset(),
    insecure_first_use: bool = False,
) -> ActivationChallenge:
    """Check the keys of ``identity`` and make a challenge that only their TPM can answer.

    The EK is trusted when its SHA-256 is ``pinned``, or when its certificate chains to one of
    ``roots``, files of certificates. With ``insecure_first_use`` any EK is trusted: the answer then
    proves that AK and EK belong together, but not that they are in a TPM, because software can
    emulate one.

    :raises EndorsementError: when the EK is not trusted, or a key is of the wrong kind.
    """
    _check_kind(identity.ek, "endorsement key", signs=False)
    _check_kind(identity.ak, "attestation key", signs=True)
    ek = identity.ek_digest
    if ek in pinned:
        endorsement = "pinned"
    elif identity.ek_certificate and roots:
        above = (*identity.chain, *intermediates)
        key = check_ek_certificate(identity.ek_certificate, above, roots=roots, now=now)
        if spki(key) != identity.ek.spki:
            raise EndorsementError("the certificate is for another key", step="endorsement key")
        endorsement = "certificate"
    elif insecure_first_use:
        endorsement = "insecure-first-use"
    else:
        raise EndorsementError(
            f"{ek.hex()} is not pinned and has no certificate under a trusted root",
            step="endorsement key",
            hint="pin this endorsement key, or add its manufacturer's root certificate",
        )
    secret = secrets.token_bytes(SECRET_BYTES)
    ak = identity.ak_digest
    return ActivationChallenge(
        blob=make_credential(identity.ek, identity.ak.name, secret),
        proven=ProvenKey(ak=ak, ek=ek, endorsement=endorsement),
        secret=secret,
    )


def _check_kind(area: PublicArea, what: str, *, signs: bool) -> None:
    wanted = _FIXED | ObjectAttribute.RESTRICTED
    wanted |= ObjectAttribute.SIGN if signs else ObjectAttribute.DECRYPT
    mask = wanted | ObjectAttribute.SIGN | ObjectAttribute.DECRYPT
    if area.attributes & mask != wanted:
        use = "signing" if signs else "decryption"
        raise EndorsementError(f"not a restricted {use} key that is fixed to its TPM", step=what)
    if area.name_hash not in _HASHES:
        raise EndorsementError(f"named by {area.name_hash}, which is not accepted", step=what)


def make_credential(ek: PublicArea, name: bytes, secret: bytes) -> bytes:
    """Encrypt ``secret`` to the TPM of ``ek``, which opens it if it has the object ``name``.

    Returns what ``tpm2_activatecredential`` reads: a header of 8 bytes, then
    ``TPM2B_ID_OBJECT`` and ``TPM2B_ENCRYPTED_SECRET``. ``secret`` has at most as many bytes
    as the digest that names ``ek``.

    :raises EvidenceError: when ``ek`` does not protect with AES in CFB mode.
    """
    algorithm, key_bits, mode = ek.symmetric
    if algorithm != _ALG_AES or mode != _ALG_CFB or key_bits not in (128, 192, 256):
        raise EvidenceError("must be AES in CFB mode", field="ek.symmetric")
    if ek.name_hash not in _HASHES:
        raise EvidenceError(f"{ek.name_hash} is not accepted", field="ek.nameAlg")
    digest_bits = hashlib.new(ek.name_hash).digest_size * 8
    if not 1 <= len(secret) <= digest_bits // 8:
        raise ValueError(f"a credential has 1 to {digest_bits // 8} bytes")
    seed, encrypted_seed = _share_seed(ek)
    key = _kdfa(ek.name_hash, seed, b"STORAGE", name, b"", key_bits)
    encryptor = Cipher(AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity_key = _kdfa(ek.name_hash, seed, b"INTEGRITY", b"", b"", digest_bits)
    integrity = hmac.digest(integrity_key, identity + name, ek.name_hash)
    return _TOOL_HEADER + _sized(_sized(integrity) + identity) + _sized(encrypted_seed)


def check_credential(blob: bytes) -> None:
    """Check the form of a challenge, because the tool that reads it does not check lengths.

    :raises EvidenceError: naming field and offset.
    """
    read = Cursor(blob, "credential", limit=_MAX_CREDENTIAL_BYTES)
    if read.take(min(len(_TOOL_HEADER), read.remaining), "header") != _TOOL_HEADER:
        raise read.fail("not a credential of version 1", "header", offset=0)
    inner = Cursor(read.sized("id_object", limit=_MAX_PART_BYTES), "id_object", limit=1024)
    inner.sized("integrity", limit=hashlib.sha512().digest_size)
    inner.take(3, "identity")
    read.sized("secret", limit=_MAX_PART_BYTES)
    read.finish()


def _share_seed(ek: PublicArea) -> tuple[bytes, bytes]:
    """Return a new seed, and the secret from which only the TPM of ``ek`` derives it."""
    size = hashlib.new(ek.name_hash).digest_size
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(size)
        algorithm = _HASHES[ek.name_hash]()
        oaep = padding.OAEP(mgf=padding.MGF1(algorithm), algorithm=algorithm, label=b"IDENTITY\0")
        return seed, ek.key.encrypt(seed, oaep)
    width = (ek.key.curve.key_size + 7) // 8
    while True:
        ephemeral = ec.generate_private_key(ek.key.curve)
        shared = ephemeral.exchange(ec.ECDH(), ek.key)
        point = ephemeral.public_key().public_numbers()
        x, y = point.x.to_bytes(width, "big"), point.y.to_bytes(width, "big")
        # TPMs differ in whether they strip leading zeros here, so a key without any is used.
        if shared[0] and x[0] and y[0]:
            break
    static = ek.key.public_numbers().x.to_bytes(width, "big")
    seed = _kdfe(ek.name_hash, shared, b"IDENTITY", x, static, size * 8)
    return seed, _sized(x) + _sized(y)


def _kdfa(
    name: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int
) -> bytes:
    """KDFa (TPM 2.0 Part 1, 11.4.10.2): the counter mode of NIST SP 800-108 with HMAC."""
    fixed = label + b"\0" + context_u + context_v + struct.pack(">I", bits)
    blocks = -(-bits // (8 * hashlib.new(name).digest_size))
    stream = b"".join(
        hmac.digest(key, struct.pack(">I", number) + fixed, name) for number in range(1, blocks + 1)
    )
    return stream[: bits // 8]


def _kdfe(
    name: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int
) -> bytes:
    """KDFe (TPM 2.0 Part 1, 11.4.10.3): the hash-based KDF of NIST SP 800-56A."""
    fixed = shared + label + b"\0" + party_u + party_v
    blocks = -(-bits // (8 * hashlib.new(name).digest_size))
    stream = b"".join(
        hashlib.new(name, struct.pack(">I", number) + fixed).digest()
        for number in range(1, blocks + 1)
    )
    return stream[: bits // 8]


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
