"""The digest of a coordinator's configuration, which it measures before it serves requests.

``server.toml`` decides whose evidence is genuine, whose policies count, and who may open the root
key. The coordinator measures it as ``config``, beside ``software``, so that it is part of its
evidence and a policy can pin it (``[[coordinator.reference]]`` with ``claim = "config"``).

``SHA-256("fedlearn-config/1\\0" | JSON)``; the JSON is an object in one form (keys sorted, no
spaces, ASCII, dates as in RFC 3339) of

- ``document``: ``server.toml``, of which comments and the order of keys do not matter; paths are
  part of it as they are written;
- ``tpm_ek_roots``: the SHA-256 of each file in ``trust.tpm_ek_roots``, in their order;
- ``protectors``: what the root key was protected with when the coordinator was initialized, as
  its sealed store has it: kinds, and of a recovery key its public half.

Collateral and endorsements are not part of it: they are signed, count only under roots that are
pinned, and are exchanged as they expire. Nor is a passphrase.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["config_digest"]

_DOMAIN: Final = b"fedlearn-config/1\0"


def config_digest(
    document: Mapping[str, Any], *, roots: Sequence[bytes], protectors: Sequence[str]
) -> bytes:
    """Return the digest (32 bytes) of a configuration.

    :param document: the TOML document of ``server.toml``.
    :param roots: the contents of the files in ``trust.tpm_ek_roots``, in their order.
    :param protectors: of the root key, as :func:`server.state_directory.protector_names` names
    them.
    """
    value = {
        "document": document,
        "tpm_ek_roots": [hashlib.sha256(root).hexdigest() for root in roots],
        "protectors": sorted(protectors),
    }
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_moment
    )
    return hashlib.sha256(_DOMAIN + text.encode()).digest()


def _moment(value: Any) -> str:
    """Dates and times are all that TOML has and JSON has not."""
    return str(value.isoformat())
