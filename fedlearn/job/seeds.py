"""All random numbers of a job are derived from its seed, by name.

``derive(seed, "round", 3, "server")`` is HKDF-SHA256 (RFC 5869) over the seed, with the
labels as ``info``: two names never share numbers, and adding a name changes no other.
Node numbers are derived from the digest of the job and the site in the same way, so that a job
that is run again or resumed has the same nodes in the same order.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.length_prefixed import pack

__all__ = ["derive", "node_number", "seed_generators"]

_SALT: Final = b"fedlearn-seed/1"
_NODE: Final = b"fedlearn-node/1"
_RESERVED_NODES: Final = 2
"""Flower reserves 0 (no node) and 1 (the coordinator)."""


def derive(seed: int, *labels: str | int | bytes, length: int = 32) -> bytes:
    """Return ``length`` bytes for one purpose.

    :param seed: the job's seed, from 0 below 2^64.
    :param labels: the purpose; each is length-prefixed, so different lists are different inputs.
    :raises ValueError: for a seed or a label that is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError("a seed is a whole number from 0 below 2^64")
    info = b"".join(_prefixed(label) for label in labels)
    return HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(
        seed.to_bytes(8, "big")
    )


def node_number(job_digest: bytes, site: str) -> int:
    """Return the node number of a site in a job: positive, below 2^63."""
    body = _NODE + _prefixed(job_digest) + _prefixed(site)
    number = int.from_bytes(hashlib.sha256(body).digest()[:8], "big") >> 1
    return max(number, _RESERVED_NODES)


def seed_generators(material: bytes) -> None:
    """Seed the global generators of ``random``, numpy and, where it is loaded, torch.

    :param material: at least 32 bytes from :func:`derive`.
    :raises ValueError: for less.
    """
    if len(material) < 32:
        raise ValueError("at least 32 bytes are needed to seed the generators")
    random.seed(int.from_bytes(material, "big"))
    np.random.seed(np.frombuffer(material[:32], dtype="<u4"))
    torch = sys.modules.get("torch")
    if torch is not None:
        seed = int.from_bytes(material[:8], "big") >> 1
        # torch.manual_seed() seeds this generator and those of accelerators, for which it imports
        # torch's compiler: a second and 70 MB.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available() or torch.xpu.is_available():
            torch.manual_seed(seed)


def _prefixed(label: str | int | bytes) -> bytes:
    if isinstance(label, int):
        if not 0 <= label < 2**64:
            raise ValueError("a numeric label is a whole number from 0 below 2^64")
        kind, body = b"i", label.to_bytes(8, "big")
    elif isinstance(label, str):
        kind, body = b"s", label.encode()
    else:
        kind, body = b"b", label
    return kind + pack(body)
