"""Identifiers of algorithms in TPM 2.0 (``TPM_ALG_ID``, Part 2, 6.3)."""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = [
    "ALG_ECC",
    "ALG_ECDSA",
    "ALG_NULL",
    "ALG_RSA",
    "ALG_RSAES",
    "DIGEST_SIZES",
    "HASH_IDS",
    "HASH_NAMES",
    "MAX_DIGEST_BYTES",
    "MAX_RSA_BYTES",
    "SIGNATURE_SCHEMES",
]

HASH_NAMES: Final[dict[int, str]] = {
    0x0004: "sha1",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
}
"""The supported hashes, as ``hashlib`` names."""

HASH_IDS: Final = {name: number for number, name in HASH_NAMES.items()}
DIGEST_SIZES: Final = {name: hashlib.new(name).digest_size for name in HASH_NAMES.values()}
"""Bytes of a digest, by ``hashlib`` name."""

ALG_RSA: Final = 0x0001
ALG_NULL: Final = 0x0010
ALG_RSAES: Final = 0x0015
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
SIGNATURE_SCHEMES: Final = {0x0014: "rsassa", 0x0016: "rsapss", ALG_ECDSA: "ecdsa"}
"""The supported signature schemes."""

MAX_DIGEST_BYTES: Final = 64
MAX_RSA_BYTES: Final = 512
