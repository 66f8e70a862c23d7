"""The digest of fedlearn's own code, as it is installed on this machine.

A coordinator measures it as ``software`` before it serves, and a client before it requests
admission, so that a policy can name the versions that it accepts. In a confidential container the
image digest, which is measured at launch, proves more; on other machines there is only this digest.

``SHA-256("fedlearn-software/1\\0" | for each file: LP(path) | SHA-256(content))``, files of
the four packages in byte order of their paths, compiled files left out; LP(x) = u32be(len x) | x.

The page is docs/how-to/upgrade-without-breaking-policies.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import fedlearn
from attestation.length_prefixed import pack

__all__ = ["software_digest"]

_DOMAIN: Final = b"fedlearn-software/1\0"
_PACKAGES: Final = ("attestation", "edge", "fedlearn", "server")


def software_digest() -> bytes:
    """Return the digest (32 bytes) of the code from which this process was started."""
    root = Path(fedlearn.__file__).resolve().parent.parent
    total = hashlib.sha256(_DOMAIN)
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts or path.suffix == ".pyc":
                continue
            total.update(pack(path.relative_to(root).as_posix().encode()))
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.digest()
