"""The state of a client after one call of its app, sealed for the next client of the same site.

::

    file   = "fedlearn-client-state/1\\n" | u32be(len name) | name | salt (16) | chunks
    name   = JSON {"job": run, "phase": number, "round": number, "site": site}, canonical
    chunk  = AES-256-GCM(key, nonce, plaintext of at most 1 MiB, AAD = SHA-256 of all before chunks)
    key    | prefix = HKDF-SHA256(state key, salt, info = "fedlearn/client-state-file/1\\0", 32 + 7)
    nonce  = prefix | u32be index | 1 for the last chunk, else 0
    plain  = u32be(count) | for each part u64be(len part) | part

The salt is random for each file, so that a file discloses its name and its length only, and its
digest is that of random bytes: whoever reports the digest tells nothing about the state.

The *state key* of a job at a site comes from both: ``HKDF-SHA256(secret of the coordinator, salt =
seed of the site's commitment, info = "fedlearn/client-state-key/1\\0" | LP(run) | LP(site))``, 32
bytes. The coordinator releases its secret to an admitted client only, and the site its seed.
Neither the disk nor the coordinator alone opens a state.

The page is docs/adr/0047-algorithms.md.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import UnsealError
from attestation.length_prefixed import pack
from fedlearn.sealing.keys import KEY_BYTES, hpke_open, hpke_seal, nonce

__all__ = [
    "STATE_SECRET_BYTES",
    "StateName",
    "open_secret",
    "open_state",
    "release_secret",
    "seal_state",
    "state_key",
    "state_name",
]

STATE_SECRET_BYTES: Final = 32
_MAGIC: Final = b"fedlearn-client-state/1\n"
_FILE: Final = b"fedlearn/client-state-file/1\0"
_KEY: Final = b"fedlearn/client-state-key/1\0"
_SITE: Final = b"fedlearn/client-state-secret/1\0"
_RELEASE: Final = b"fedlearn/client-state-release/1\0"
_SALT_BYTES: Final = 16
_PREFIX_BYTES: Final = 7
_TAG_BYTES: Final = 16
_CHUNK: Final = 1024 * 1024
_MAX_NAME: Final = 4096
_MAX_PARTS: Final = 1_000_000
_SIZE: Final = struct.Struct(">I")
_LONG: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateName:
    """Whose state it is, and the call after which the client had it.

    ``job``    the id of the run
    ``phase``  of the round: training, query or evaluation
    """

    job: str
    site: str
    round: int
    phase: int

    @property
    def title(self) -> str:
        """The name in words."""
        return f"job {self.job}, site {self.site}, round {self.round}, phase {self.phase}"


def release_secret(root: bytes, public_key: bytes, *, job: str, site: str) -> bytes:
    """Wrap the coordinator's part of the key of a site's states for an attested X25519 key.

    :param root: the secret of the job, at least 32 bytes. Each site gets another one from it.
    :raises ValueError: when ``public_key`` is not an X25519 public key.
    """
    names = pack(job.encode(), site.encode())
    hkdf = HKDF(hashes.SHA256(), STATE_SECRET_BYTES, salt=None, info=_SITE + names)
    return hpke_seal(hkdf.derive(root), public_key, info=_RELEASE + names)


def open_secret(sealed: bytes, private_key: X25519PrivateKey, *, job: str, site: str) -> bytes:
    """Open what :func:`release_secret` made, inside the TEE.

    :raises UnsealError: when it was made for another key, job or site.
    """
    info = _RELEASE + pack(job.encode(), site.encode())
    return hpke_open(sealed, private_key, info=info)


def state_key(secret: bytes, seed: bytes, *, job: str, site: str) -> bytes:
    """Return the key of the states of a job at a site.

    :param secret: what the coordinator released, 32 bytes.
    :param seed: the seed of the site's commitment.
    :raises UnsealError: when the secret has another length, or there is no seed.
    """
    if len(secret) != STATE_SECRET_BYTES or not seed:
        raise UnsealError("the secret of a client's state or the seed of its site is missing")
    info = _KEY + pack(job.encode(), site.encode())
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=seed, info=info).derive(secret)


def seal_state(parts: Sequence[bytes | memoryview], name: StateName, key: bytes) -> bytes:
    """Return a file with the parts of a state."""
    plain = _SIZE.pack(len(parts)) + b"".join(
        piece for part in parts for piece in (_LONG.pack(len(part)), part)
    )
    written = json.dumps(asdict(name), sort_keys=True, separators=(",", ":")).encode()
    head = _MAGIC + _SIZE.pack(len(written)) + written + secrets.token_bytes(_SALT_BYTES)
    aead, prefix = _keys(key, head)
    bound = hashlib.sha256(head).digest()
    starts = range(0, len(plain), _CHUNK)
    return head + b"".join(
        aead.encrypt(
            nonce(prefix, index, last=index == len(starts) - 1),
            plain[start : start + _CHUNK],
            bound,
        )
        for index, start in enumerate(starts)
    )


def state_name(data: bytes) -> StateName:
    """Return the name that a file states. It is not authentic before the file was opened.

    :raises UnsealError: when it is not such a file.
    """
    return _head(data)[0]


def open_state(data: bytes, name: StateName, key: bytes) -> list[bytes]:
    """Return the parts of a state.

    :raises UnsealError: for another name, another key, or altered bytes.
    """
    found, head = _head(data)
    if found != name:
        raise UnsealError(f"it is the state of {found.title}, and not of {name.title}")
    aead, prefix = _keys(key, head)
    bound = hashlib.sha256(head).digest()
    step = _CHUNK + _TAG_BYTES
    starts = range(len(head), len(data), step)
    try:
        plain = b"".join(
            aead.decrypt(
                nonce(prefix, index, last=index == len(starts) - 1),
                data[start : start + step],
                bound,
            )
            for index, start in enumerate(starts)
        )
    except InvalidTag:
        raise UnsealError(
            "it does not open: it was altered, or sealed for another job or site"
        ) from None
    return list(_parts(plain))


def _parts(plain: bytes) -> Iterator[bytes]:
    if len(plain) < _SIZE.size:
        raise UnsealError("the state is cut off")
    (count,) = _SIZE.unpack_from(plain)
    if count > _MAX_PARTS:
        raise UnsealError(f"a state has at most {_MAX_PARTS} parts, not {count}")
    place = _SIZE.size
    for _ in range(count):
        if len(plain) < place + _LONG.size:
            raise UnsealError("the state is cut off")
        (size,) = _LONG.unpack_from(plain, place)
        place += _LONG.size
        if len(plain) < place + size:
            raise UnsealError("the state is cut off")
        yield plain[place : place + size]
        place += size
    if place != len(plain):
        raise UnsealError("the state has bytes after its end")


def _head(data: bytes) -> tuple[StateName, bytes]:
    begin = len(_MAGIC) + _SIZE.size
    if not data.startswith(_MAGIC) or len(data) < begin:
        raise UnsealError("it is not a sealed state of a client")
    (size,) = _SIZE.unpack_from(data, len(_MAGIC))
    end = begin + size + _SALT_BYTES
    if size > _MAX_NAME or len(data) < end:
        raise UnsealError("it is not a sealed state of a client")
    try:
        document = json.loads(data[begin : begin + size])
        name = StateName(
            job=document["job"],
            site=document["site"],
            round=document["round"],
            phase=document["phase"],
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnsealError("it is not a sealed state of a client") from None
    texts = isinstance(name.job, str) and isinstance(name.site, str)
    if not texts or type(name.round) is not int or type(name.phase) is not int:
        raise UnsealError("it is not a sealed state of a client")
    return name, data[:end]


def _keys(key: bytes, head: bytes) -> tuple[AESGCM, bytes]:
    if len(key) != KEY_BYTES:
        raise UnsealError(f"a state key has {KEY_BYTES} bytes, not {len(key)}")
    salt = head[-_SALT_BYTES:]
    made = HKDF(hashes.SHA256(), KEY_BYTES + _PREFIX_BYTES, salt=salt, info=_FILE).derive(key)
    return AESGCM(made[:KEY_BYTES]), made[KEY_BYTES:]
