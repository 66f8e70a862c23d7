"""A clip that follows the norms of the updates (Andrew et al. 2021, arXiv:1905.03871). Pure.

The clip of the next round is

    ``C' = C * exp(-clip_rate * (b - clip_quantile))``

where ``b`` estimates the part of the sites whose updates were within ``C``. Each client reports
one bit. The aggregator counts the bits as -1/2 and +1/2, so that a site's part of the count has
half of the sensitivity, adds Gaussian noise of standard deviation ``clip_noise``, and divides by
the public number of sites of the round. The updates get more noise than ``noise_multiplier``, so
that both releases together cost what the accountant counts
(:attr:`fedlearn.privacy.spec.PrivacySpec.update_multiplier`).

The exponential is correctly rounded, so the clip is the same on every machine.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from decimal import Context, Decimal
from typing import Any, Final

import numpy as np

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy.chain import GridNoise
from fedlearn.privacy.spec import PrivacySpec

__all__ = ["WITHIN", "checked_clip", "next_clip", "taken_bit"]

WITHIN: Final = "within-clip"
"""The metric by which a client reports its bit; it ends at the aggregator."""

_FARTHEST: Final = 2.0**40
"""By which factor a clip may move away from the first one: noise alone moves it, too."""

_EXACT: Final = Context(prec=28)


def next_clip(
    spec: PrivacySpec,
    clip: float,
    *,
    within: int,
    answered: int,
    divisor: float,
    secret: bytes,
    purpose: bytes,
) -> float:
    """Return the clip of the next round.

    :param within: how many of the ``answered`` updates were within ``clip``.
    :param divisor: the public number of sites of the round.
    :param purpose: separates the rounds of the job.
    :raises PrivacyError: for counts that contradict each other, or a spec without adaptive clip.
    """
    if spec.clip_quantile is None or spec.clip_noise is None:
        raise PrivacyError("the clip of this job does not follow the updates")
    if not 0 <= within <= answered or not divisor > 0:
        raise PrivacyError(f"{within} of {answered} updates within the clip, divided by {divisor}")
    noise = GridNoise(
        multiplier=2 * spec.clip_noise,
        sensitivity=spec.sensitivity / spec.clip / 2,
        secret=secret,
        purpose=purpose,
    )
    centred = np.array([within - answered / 2])
    part = float(noise.apply({"within": centred})["within"][0]) / divisor + 0.5
    exponent = Decimal(-spec.clip_rate * (part - spec.clip_quantile))
    factor = float(_EXACT.exp(min(max(exponent, Decimal(-50)), Decimal(50))))
    return min(max(clip * factor, spec.clip / _FARTHEST), spec.clip * _FARTHEST)


def taken_bit(records: Mapping[str, MutableMapping[str, Any]]) -> int:
    """Take the bit of a client out of the metrics of its reply, so that nothing else has it.

    :raises UpdateRejected: unless there is exactly one, 0 or 1.
    """
    found = [record.pop(WITHIN) for record in records.values() if WITHIN in record]
    if len(found) != 1 or type(found[0]) is not int or found[0] not in (0, 1):
        raise UpdateRejected(
            f"with an adaptive clip a reply states {WITHIN} as 0 or 1",
            hint="the client did not apply the privacy of its job",
        )
    return int(found[0])


def checked_clip(spec: PrivacySpec, value: object) -> float:
    """Return the clip of a round, as a client receives it.

    :raises PrivacyError: for another number than the job's where its clip does not follow the
        updates, and for one that no round can have.
    """
    if spec.clip_quantile is None:
        if value is not None:
            raise PrivacyError("the clip of this job does not follow the updates")
        return spec.clip
    far = spec.clip / _FARTHEST, spec.clip * _FARTHEST
    if not isinstance(value, float) or not (math.isfinite(value) and far[0] <= value <= far[1]):
        raise PrivacyError(f"{value!r} is not the clip of a round of this job")
    return value
