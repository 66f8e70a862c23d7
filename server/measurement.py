"""The digest of a coordinator's configuration, which it measures before it serves anybody.

Who chooses ``server.toml`` chooses whose evidence is genuine and whose policies count. The
coordinator measures it as ``config``, beside ``software``, so that it stands in its evidence and a
policy can pin it (``[[coordinator.reference]]`` with ``claim = "config"``).

``SHA-256("fedlearn-config/1\\0" | LP(document) | for each trust.tpm_ek_roots: SHA-256(content))``,
``LP(x) = u32be(len x) | x``; the document is ``server.toml`` as JSON in one form: keys sorted, no
spaces, ASCII, dates as in RFC 3339. Comments and the order of keys do not matter; paths are part of
it as they are written. Collateral and endorsements are not: they are signed, count only under
roots that are pinned, and are exchanged as they expire. Nor is a passphrase.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["config_digest"]

_DOMAIN: Final = b"fedlearn-config/1\0"


def config_digest(document: Mapping[str, Any], *, roots: Sequence[bytes]) -> bytes:
    """Return the digest (32 bytes) of a configuration.

    :param document: the TOML document of ``server.toml``.
    :param roots: the contents of the files in ``trust.tpm_ek_roots``, in their order.
    """
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_moment
    )
    data = text.encode()
    total = hashlib.sha256(_DOMAIN + struct.pack(">I", len(data)) + data)
    for root in roots:
        total.update(hashlib.sha256(root).digest())
    return total.digest()


def _moment(value: Any) -> str:
    """Dates and times are all that TOML has and JSON has not."""
    return str(value.isoformat())
