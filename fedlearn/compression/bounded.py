"""Encoding under ``[privacy]``: what the coordinator decodes stays within the clip norm.

A clipped update may leave its bound when its numbers are rounded to a coarser form. The sensitivity
that the noise is computed from is that of the decoded update, and the coordinator refuses one
that is beyond the bound. So the client decodes what it encodes, with the coordinator's own
function, and encodes a smaller difference until the result is within the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedlearn.compression.codec import Encoded, decode, encode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import PrivacyError
from fedlearn.privacy.chain import l2_norm
from fedlearn.privacy.difference import difference
from fedlearn.update.arrays import Array

__all__ = ["encode_within"]

_TRIES: Final = 12


def encode_within(
    update: Mapping[str, Array],
    reference: Mapping[str, Array],
    spec: CompressionSpec,
    clip: float,
) -> Encoded:
    """Return a clipped update, encoded so that what it decodes to is within ``clip`` of the model.

    The first try scales nothing; each further one aims a little lower than the one before.

    :raises UpdateRejected: as :func:`fedlearn.compression.codec.encode` does.
    :raises PrivacyError: when no try is within the bound: numbers of the model are so large that
        the smallest step between two of them exceeds ``clip``.
    """
    scale = 1.0
    for number in range(_TRIES):
        encoded = encode(update, reference, spec, scale=scale)
        norm = l2_norm(difference(decode(encoded.arrays, reference, spec), reference))
        if norm <= clip:
            return encoded
        scale *= clip / norm * (1 - 2.0 ** (number - _TRIES))
    raise PrivacyError(
        f"the encoded update has a norm of {norm:.6g} after {_TRIES} tries; clip is {clip:g}",
        hint='use update = "none" in [compression]',
    )
