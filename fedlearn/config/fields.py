"""Types of fields that only fedlearn has; the others are in :mod:`attestation.config`."""

from __future__ import annotations

import re
from typing import Final

from attestation.config import FieldType, matching, plain

__all__ = ["NAME", "address", "name"]

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123): jobs, sites and data sets are named in certificates and manifests."""

_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def name() -> FieldType[str]:
    """A name of a job, site or data set (:data:`NAME`)."""
    return matching(NAME, "1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'")


def address(*, port_zero: bool = False) -> FieldType[str]:
    """``host:port``; an IPv6 host is in brackets. Port 0 asks for any free one."""
    least = 0 if port_zero else 1

    def holds(value: str) -> bool:
        found = _ADDRESS.fullmatch(value)
        return found is not None and len(value) <= 300 and least <= int(found[2]) <= 65_535

    expected = f'an address "host:port" with a port from {least} to 65535'
    json = {"pattern": f"^(?:{_ADDRESS.pattern})$", "maxLength": 300}
    return plain(str, holds, expected, json)
