"""Who is whose neighbour in a round.

The clients are put in the order of ``SHA-256(digest | position)``, where the digest is that of the
roster, and each one is the neighbour of the ``k / 2`` before and after it in that circle. Every
client computes this from the roster by itself, so the coordinator does not choose neighbours; it
chooses the roster (Bell et al. 2020, section 4.1, has a random graph of the server).
"""

from __future__ import annotations

import hashlib

from fedlearn.secure_aggregation.spec import SecAggSpec

__all__ = ["Graph"]


class Graph:
    """The neighbours of each of ``count`` clients, which are numbered from 0 on."""

    def __init__(self, spec: SecAggSpec, digest: bytes, count: int) -> None:
        self._count = count
        self.degree = min(spec.neighbours or count - 1, count - 1)
        self.threshold = max(self.degree // 2 + 1, _ceil(spec.threshold * self.degree))
        self._complete = self.degree == count - 1
        if self._complete:
            return
        self._circle = sorted(
            range(count), key=lambda each: hashlib.sha256(digest + each.to_bytes(4, "big")).digest()
        )
        self._place = {client: place for place, client in enumerate(self._circle)}

    def neighbours(self, client: int) -> list[int]:
        """Return the neighbours of a client, in the order of their numbers."""
        if self._complete:
            return [each for each in range(self._count) if each != client]
        place, half = self._place[client], self.degree // 2
        around = [*range(place - half, place), *range(place + 1, place + half + 1)]
        return sorted(self._circle[each % self._count] for each in around)


def _ceil(value: float) -> int:
    """Return the next whole number; 2 / 3 of 3 is 2, whatever a float makes of it."""
    return -int(-(value - 1e-9) // 1)
