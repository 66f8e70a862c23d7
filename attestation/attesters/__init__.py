"""Attesters: they collect evidence from hardware and services of this machine.

The page is docs/contributing/add-an-attester.md.
"""

from __future__ import annotations

from typing import Protocol

from attestation.binding import Bound
from attestation.evidence import Evidence, Tee

__all__ = ["Attester"]


class Attester(Protocol):
    """A source of evidence about this machine."""

    @property
    def tee(self) -> Tee:
        """The kind of evidence that :meth:`collect` returns."""
        ...

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` (32 bytes) under ``claim`` into a runtime register and its log.

        :raises AttesterError: when the environment has no register that can be extended.
        """
        ...

    def collect(self, binding: Bound) -> Evidence:
        """Return evidence over ``binding`` and everything measured so far.

        :raises AttesterError: when evidence cannot be made now; trying again may help.
        """
        ...
