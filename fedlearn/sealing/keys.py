"""Content keys: their sources, their wraps, and the keys that are derived from them.

HPKE is RFC 9180 in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import UnsealError
from attestation.length_prefixed import pack
from fedlearn.sealing.header import Header

__all__ = [
    "KEY_BYTES",
    "ContentKey",
    "KeySource",
    "PrivateKey",
    "RandomKey",
    "SealingKey",
    "StreamKeys",
    "derive",
    "hpke_open",
    "hpke_seal",
    "nonce",
    "open_released",
    "release_to",
    "wrap_info",
]

KEY_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
_PREFIX_BYTES: Final = 7
_STREAM: Final = b"fedlearn/flsw1/stream\0"
_WRAP: Final = b"fedlearn/flsw1/wrap\0"
_RELEASE: Final = b"fedlearn/key-release/1\0"
_SUITE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_NONCE_TAIL: Final = struct.Struct(">IB")


class SealingKey(Protocol):
    """Provides the content key of a file that is being written."""

    @property
    def key_id(self) -> str:
        """The header's name of the key; empty when only wraps contain it."""
        ...

    def content_key(self, file_id: bytes) -> bytes:
        """Return 32 bytes, different for each file id."""
        ...


class KeySource(Protocol):
    """Provides the content key of a file that is being opened."""

    def content_key_of(self, header: Header) -> bytes:
        """Return the content key.

        :raises UnsealError: stating why this source does not have it.
        """
        ...


@dataclass(frozen=True, slots=True)
class RandomKey:
    """A fresh content key for each file, which only the file's wraps contain."""

    key_id: str = ""

    def content_key(self, file_id: bytes) -> bytes:
        """Return 32 random bytes."""
        return AESGCM.generate_key(256)


@dataclass(frozen=True, slots=True)
class ContentKey:
    """A content key that a key service released."""

    value: bytes = field(repr=False)

    def content_key_of(self, header: Header) -> bytes:
        """Return the key."""
        return self.value


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key, which opens the wrap that was made for it."""

    key: X25519PrivateKey = field(repr=False)

    def content_key_of(self, header: Header) -> bytes:
        """Return the content key from the wrap for this key.

        :raises UnsealError: when there is no such wrap, or it was altered.
        """
        mine = self.key.public_key().public_bytes_raw()
        for wrap in header.wraps:
            if wrap.recipient == mine:
                try:
                    key = hpke_open(wrap.sealed, self.key, info=wrap_info(header.core))
                except UnsealError:
                    raise UnsealError(
                        "the wrap for this key does not open: the header or the wrap was altered"
                    ) from None
                if len(key) != KEY_BYTES:
                    raise UnsealError("the content of the wrap for this key is not a key")
                return key
        names = ", ".join(wrap.recipient.hex()[:16] for wrap in header.wraps) or "no key"
        raise UnsealError(
            f"sealed for {names}, not for this key ({mine.hex()[:16]})",
            hint="use the private key of a recipient, or ask the coordinator that sealed it",
        )


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys with which one file is encrypted and authenticated."""

    aead: AESGCM = field(repr=False)
    prefix: bytes = field(repr=False)
    mac: bytes = field(repr=False)


def derive(content_key: bytes, header: Header) -> StreamKeys:
    """Derive the keys of one file; they depend on its whole header except the wraps."""
    if len(content_key) != KEY_BYTES:
        raise UnsealError(f"a content key has {KEY_BYTES} bytes, not {len(content_key)}")
    length = KEY_BYTES + _PREFIX_BYTES + KEY_BYTES
    hkdf = HKDF(hashes.SHA256(), length, salt=header.file_id, info=_STREAM + header.core)
    okm = hkdf.derive(content_key)
    return StreamKeys(
        aead=AESGCM(okm[:KEY_BYTES]),
        prefix=okm[KEY_BYTES : KEY_BYTES + _PREFIX_BYTES],
        mac=okm[KEY_BYTES + _PREFIX_BYTES :],
    )


def nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    """Return the nonce of one chunk, 12 bytes."""
    return prefix + _NONCE_TAIL.pack(index, last)


def wrap_info(core: bytes) -> bytes:
    """Return the HPKE info of a content key in a header."""
    return _WRAP + core


def hpke_seal(secret: bytes, public_key: bytes, *, info: bytes) -> bytes:
    """Encrypt ``secret`` to a raw X25519 public key.

    :raises ValueError: when the key is not one, or is of small order.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an X25519 public key has {PUBLIC_KEY_BYTES} bytes")
    return _SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(public_key), info=info)


def hpke_open(sealed: bytes, private_key: X25519PrivateKey, *, info: bytes) -> bytes:
    """Decrypt what :func:`hpke_seal` made.

    :raises UnsealError: for another key, another info, or altered bytes.
    """
    try:
        return _SUITE.decrypt(sealed, private_key, info=info)
    except (InvalidTag, ValueError) as error:
        raise UnsealError("does not open with this key and this info") from error


def release_to(content_key: bytes, public_key: bytes, *, model: str, file_id: bytes) -> bytes:
    """Wrap a content key for the holder of an attested key, for one file only.

    :raises ValueError: when ``public_key`` is not an X25519 public key.
    """
    return hpke_seal(content_key, public_key, info=_release_info(model, file_id))


def open_released(
    sealed: bytes, private_key: X25519PrivateKey, *, model: str, file_id: bytes
) -> ContentKey:
    """Open what :func:`release_to` made, inside the TEE.

    :raises UnsealError: when it was made for another key, model or file.
    """
    try:
        return ContentKey(hpke_open(sealed, private_key, info=_release_info(model, file_id)))
    except UnsealError:
        raise UnsealError(
            "the released key was made for another key, model or file, or was altered"
        ) from None


def _release_info(model: str, file_id: bytes) -> bytes:
    return _RELEASE + pack(model.encode(), file_id)
