"""One field of a structure as its specification names it, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attestation.errors import EvidenceError
from attestation.evidence import Origin

__all__ = ["Field", "Layout", "integer", "read_layout"]

Layout = tuple[tuple[str, int, int], ...]
"""Rows of name, offset and size in bytes. A name that starts with ``#`` is a little-endian
integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """``section`` is the structure, ``name`` the field, both as their specification names them.

    ``origin`` is the source of the value of a field that becomes a claim.
    """

    section: str
    name: str
    value: str
    origin: Origin | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return the field as JSON-ready values."""
        return {
            "section": self.section,
            "name": self.name,
            "value": self.value,
            "origin": self.origin.value if self.origin is not None else None,
        }


def integer(data: bytes) -> int:
    """Read a little-endian integer."""
    return int.from_bytes(data, "little")


def read_layout(section: str, layout: Layout, data: bytes) -> Iterator[Field]:
    """Yield the fields of a fixed layout.

    :raises EvidenceError: when ``data`` ends inside of a field.
    """
    for name, offset, size in layout:
        part = data[offset : offset + size]
        if len(part) != size:
            raise EvidenceError(
                f"needs {size} bytes, {len(part)} are left", field=name, offset=offset
            )
        number = name.startswith("#")
        value = str(integer(part)) if number else part.hex()
        yield Field(section=section, name=name.removeprefix("#"), value=value)
