"""Noise that is correlated over rounds, so that the noise of a sum of rounds partly cancels.

A model is the sum of the changes of its rounds. Independent noise adds up in that sum; noise that
later rounds subtract again does not. Matrix factorisation mechanisms choose the correlation so
that the privacy is that of independent noise (Choquette-Choo et al. 2023, arXiv:2306.08153, BandMF;
used in production as DP-FTRL, Kairouz et al. 2021, arXiv:2103.00039). With the standard normal
vectors ``z_t`` of the rounds and a banded lower-triangular Toeplitz matrix C, round t gets

    ``zeta_t = (C^-1 z)_t = (z_t - c_1 zeta_(t-1) - ... - c_(b-1) zeta_(t-b+1)) / c_0``

The releases are post-processing of ``C x + z``. A site that takes part at most every b-th round
moves C x by disjoint columns of norm 1, so each of its rounds costs one Gaussian release with the
noise multiplier, as with independent noise. That holds for rounds that depend on earlier releases,
too (Denisov et al. 2022, arXiv:2202.08312, theorem 2.1).

``c`` are the first b coefficients of ``(1 - x)^(-1/2)``, divided by their norm: the banded square
root factorisation (Kalinin and Lampert 2024, arXiv:2405.13763). They have a closed form and are
close to the numerically optimal ones.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError
from fedlearn.privacy.noise import GaussianStream, round_bytes

__all__ = ["BandedNoise", "coefficients", "error_of_sums"]


def coefficients(bands: int) -> tuple[float, ...]:
    """Return ``c_0`` to ``c_(bands-1)``, of norm 1.

    >>> [round(each, 4) for each in coefficients(3)]
    [0.848, 0.424, 0.318]
    """
    found = [1.0]
    for k in range(1, bands):
        found.append(found[-1] * (2 * k - 1) / (2 * k))
    norm = math.sqrt(math.fsum(each * each for each in found))
    return tuple(each / norm for each in found)


def error_of_sums(bands: int, rounds: int) -> float:
    """Return the root mean square error of the sums of the first 1, 2, ... ``rounds`` rounds.

    In units of the standard deviation of independent noise; one band is independent noise.

    >>> round(error_of_sums(1, 50), 3), round(error_of_sums(4, 50), 3)
    (5.05, 3.009)
    """
    c, inverse = coefficients(bands), [0.0] * rounds
    for t in range(rounds):
        before = math.fsum(c[k] * inverse[t - k] for k in range(1, min(bands, t + 1)))
        inverse[t] = ((1.0 if t == 0 else 0.0) - before) / c[0]
    squares = np.square(np.cumsum(inverse))
    return math.sqrt(float(np.mean(np.cumsum(squares))))


@dataclass(slots=True)
class BandedNoise:
    """The noise of the rounds of one job. Not thread-safe.

    What is needed of earlier rounds is made again from their digests, so that only ``digests``
    have to be kept; the last ``bands - 1`` vectors are held to make it fast.

    ``bands``    rounds between two of the same site, at least
    ``secret``   of the job
    ``digests``  of the sums of the rounds so far, in hexadecimal
    """

    bands: int
    secret: bytes = field(repr=False)
    digests: list[str] = field(default_factory=list)
    _held: dict[int, tuple[str, NDArray[np.float64]]] = field(default_factory=dict, repr=False)

    def next(self, round: int, digest: bytes, count: int) -> NDArray[np.float64]:  # noqa: A002
        """Return ``count`` numbers of noise for a round, and note its sum.

        ``digest`` is that of the sum: another sum in its place gets independent ``z``.

        :raises PrivacyError: when it is not the round after the last one. A round that is run
            again needs the digests of the rounds before it, and no more.
        """
        if round != len(self.digests) + 1:
            raise PrivacyError(
                f"round {round} does not follow round {len(self.digests)}: correlated noise needs "
                "all rounds of a job, one after the other",
                hint='use noise = "independent" for a job whose app starts several strategies',
            )
        self.digests.append(digest.hex())
        last = self._known_before(round)
        for number in range(last + 1, round + 1):
            self._hold(number, count)
        return self._held[round][1]

    def _known_before(self, round: int) -> int:  # noqa: A002
        """Return the last round below ``round`` from which one can go on."""
        needed = range(max(1, round - self.bands + 1), round)
        if all(self._holds(number) for number in needed):
            return round - 1
        self._held.clear()
        return 0

    def _holds(self, number: int) -> bool:
        return number in self._held and self._held[number][0] == self.digests[number - 1]

    def _hold(self, number: int, count: int) -> None:
        digest = self.digests[number - 1]
        stream = GaussianStream(self.secret, b"banded" + round_bytes(number), bytes.fromhex(digest))
        made = stream.standard_normal(count)
        c = coefficients(self.bands)
        for k in range(1, min(self.bands, number)):
            earlier = self._held[number - k][1]
            if earlier.size != count:
                raise PrivacyError("the model has another size than in an earlier round")
            made -= c[k] * earlier
        made /= c[0]
        self._held[number] = (digest, made)
        self._held.pop(number - self.bands, None)
