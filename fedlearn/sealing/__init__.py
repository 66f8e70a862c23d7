"""Sealed weights: the FLSW format, versions 1 (unsigned) and 2 (signed).

::

    offset  bytes
    0       4      "FLSW"
    4       1      version, 1 or 2
    5       4      u32 big-endian H, length of the header, at most 8 MiB
    9       H      header, canonical JSON (sorted keys, no spaces, ASCII, integers only)
    9+H     32     HMAC-SHA-256 of everything before it
    41+H           chunks: AES-256-GCM ciphertext and 16 bytes of tag each
    end-64  64     version 2 alone: r and s of an ECDSA signature on P-256, s in the lower half

Each tensor is divided into chunks of its own, so one tensor can be opened alone. Plaintext chunks
have ``header.chunk`` bytes except the last one of a tensor; an empty tensor has none. Offsets,
counts and the size of the file follow from the header and are not stored.

::

    core     = SHA-256 of the canonical header without "wraps"
    key | prefix | mac key = HKDF-SHA-256(content key, salt = file id,
                                          info = "fedlearn/flsw1/stream\\0" | core), 32 | 7 | 32
    nonce    = prefix | u32 big-endian index of the chunk in the file | 1 for the last, else 0
    AAD      = core

Version 2 is version 1 with one more key in its header, ``signer`` (DER SubjectPublicKeyInfo in
hex), and with the signature, which is made with SHA-256 over
"fedlearn/flsw2/signature\0" | SHA-256("fedlearn/flsw2/digest\0" | the file up to the signature).
The labels of keys and wraps are those of version 1.

The content key is one per file: 32 random bytes, or derived by a key service from the file
id (``header.key`` then names the service's key). ``header.wraps`` holds it for recipients:
HPKE (RFC 9180, base mode, DHKEM(X25519), HKDF-SHA-256, AES-256-GCM) with
info = "fedlearn/flsw1/wrap\\0" | core.

What is guaranteed: without the content key nothing about the values of a tensor is disclosed;
any change of any byte, a chunk from another place or file, and a file that is too short or too
long raise an :class:`~attestation.errors.UnsealError` that states the fault. *Who* sealed a file is
known only if :meth:`SealedReader.check_signer` found the signature of a pinned key, or if the
file's digest is recorded in a trusted place: with a recipient's public key, anybody can make a file
of version 1, or one of version 2 with a key of their own, that opens. What is not hidden: the
header, that is names, types and shapes of tensors, model, version, round and metadata.

The page is docs/reference/sealed-model.md.
"""

from __future__ import annotations

from fedlearn.sealing.header import (
    CHUNK_BYTES,
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Header,
    Scalar,
    TensorSpec,
    Wrap,
)
from fedlearn.sealing.keys import (
    ContentKey,
    KeySource,
    PrivateKey,
    RandomKey,
    SealingKey,
    hpke_open,
    hpke_seal,
    open_released,
    release_to,
)
from fedlearn.sealing.reader import SealedFile, SealedReader, open_sealed, read_header
from fedlearn.sealing.signature import FileSigner, signer_digest
from fedlearn.sealing.writer import Sealed, SealedWriter, Tensor, seal

__all__ = [
    "CHUNK_BYTES",
    "ITEM_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "ContentKey",
    "FileSigner",
    "Header",
    "KeySource",
    "PrivateKey",
    "RandomKey",
    "Scalar",
    "Sealed",
    "SealedFile",
    "SealedReader",
    "SealedWriter",
    "SealingKey",
    "Tensor",
    "TensorSpec",
    "Wrap",
    "hpke_open",
    "hpke_seal",
    "open_released",
    "open_sealed",
    "read_header",
    "release_to",
    "seal",
    "signer_digest",
]
