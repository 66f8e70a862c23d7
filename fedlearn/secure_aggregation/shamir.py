"""Shares of a secret, of which enough recover it and fewer disclose nothing.

Shamir 1979 (doi:10.1145/359168.359176), over the integers modulo the prime ``2^256 + 297``: the
secret is the value at 0 of a polynomial of degree ``threshold - 1`` with random coefficients, and a
share its value at another point.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice
from typing import Final

from fedlearn.errors import UpdateRejected

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "evaluate", "recover", "split"]

PRIME: Final = 2**256 + 297
"""The least prime above 2^256, so that every secret of 32 bytes is below it."""

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
_MOST_ATTEMPTS: Final = 500


def split(secret: bytes, points: Collection[int], threshold: int) -> dict[int, bytes]:
    """Return one share for each point, of which ``threshold`` recover the secret.

    :raises ValueError: for a secret of another size, a point that is not from 1 on, or a threshold
        that the points do not reach.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points):
        raise ValueError(f"{len(points)} points cannot have a threshold of {threshold}")
    if not all(1 <= point < PRIME for point in points):
        raise ValueError("a point of a share is from 1 on: at 0 is the secret")
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {point: evaluate(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in points}


def evaluate(polynomial: Sequence[int], point: int) -> int:
    """Return the value of a polynomial, its coefficients from the lowest on, at a point."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, int], at: int = 0) -> int:
    """Return the value at a point of the polynomial of least degree through the shares."""
    coefficients = _lagrange(tuple(shares), at)
    return sum(map(int.__mul__, coefficients, shares.values())) % PRIME


@lru_cache(maxsize=256)
def _lagrange(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return what each share counts for the value at a point, which is none of theirs.

    Points are small, so that products of their differences are taken modulo the prime once, and
    all are inverted by one inversion (Montgomery 1987, doi:10.2307/2007888, section 10.3.1).
    """
    whole = math.prod(at - point for point in points) % PRIME
    below = [
        (at - point) * math.prod(point - other for other in points if other != point) % PRIME
        for point in points
    ]
    before = [1]
    for value in below:
        before.append(before[-1] * value % PRIME)
    inverse = whole * pow(before.pop(), -1, PRIME) % PRIME
    found = []
    for value, product in zip(reversed(below), reversed(before), strict=True):
        found.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return tuple(reversed(found))


def recover(
    shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]
) -> tuple[bytes, list[int]]:
    """Return the secret, and the points whose shares are wrong.

    Where the first shares do not give the right secret, others are tried: at most 500 sets of them.

    :param right: whether a secret is the one that was shared.
    :raises UpdateRejected: when there are too few shares, or no set of them gives the secret.
    """
    read = {point: _number(share) for point, share in sorted(shares.items())}
    usable = {point: value for point, value in read.items() if value is not None}
    if len(usable) < threshold:
        raise UpdateRejected(f"{len(usable)} shares of a secret arrived, {threshold} recover it")
    for points in islice(combinations(usable, threshold), _MOST_ATTEMPTS):
        chosen = {point: usable[point] for point in points}
        value = combine(chosen)
        if value >= 2 ** (8 * SECRET_BYTES):
            continue
        secret = value.to_bytes(SECRET_BYTES, "big")
        if right(secret):
            wrong = [
                point
                for point, share in read.items()
                if point not in chosen and (share is None or combine(chosen, point) != share)
            ]
            return secret, wrong
    raise UpdateRejected(
        f"no {threshold} of {len(usable)} shares give the secret that was shared: too many of them "
        "are wrong"
    )


def _number(share: bytes) -> int | None:
    value = int.from_bytes(share, "big")
    return value if len(share) == SHARE_BYTES and value < PRIME else None
