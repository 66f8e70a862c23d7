"""The filters that the site demands for an update, applied before it leaves the client.

They come after the app, and before the privacy and the compression of the job, which has no part in
them. The client runs them outside the app's process, in the code that its evidence measures; which
ones is stated by the site's agent. So they protect a site from the jobs of others, and not the
coordinator from a site: each reply names them, and the coordinator records the names.

The page is docs/how-to/site-filters.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict
from numpy.typing import NDArray

from attestation.length_prefixed import pack
from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.config.filters import FilterSpec, order_fault
from fedlearn.errors import ConfigError, JobError, UpdateRejected
from fedlearn.job.spec import JobSpec
from fedlearn.privacy.chain import Clip, GridNoise
from fedlearn.privacy.difference import add_back, add_back_towards, difference
from fedlearn.privacy.noise import SECRET_BYTES
from fedlearn.update.arrays import check_like

__all__ = ["UpdateFilters"]

Delta = dict[str, NDArray[np.float64]]

_ENLARGE: Final = frozenset({"gaussian", "sign"})
"""The filters after which a bound of the norm does not hold any more."""


class UpdateFilters:
    """The filters of one site for the updates of one job.

    :param secret: of the noise, 32 bytes; by default they are random. The same update of the same
        round gets the same noise from it, so that a round that is run again discloses no more.
    :raises JobError: when the job does not accept updates that were filtered.
    :raises ConfigError: when the filters cannot be in this order.
    """

    def __init__(
        self, spec: JobSpec, filters: Sequence[FilterSpec], *, secret: bytes = b""
    ) -> None:
        self.names = [each.kind for each in filters]
        if filters and spec.aggregation.site_filters == "refuse":
            raise JobError(
                f"this site filters what leaves it ({', '.join(self.names)}), and the job has "
                '[aggregation] site_filters = "refuse"',
                hint="the job does not run here; its owner may accept filters",
            )
        for place, fault in order_fault(filters):
            raise ConfigError(f"filters[{place}]: {fault}", key="privacy.filters")
        self._filters = filters
        self._job = spec.digest()
        self._secret = secret or secrets.token_bytes(SECRET_BYTES)

    def content(self, answer: RecordDict, asked: RecordDict, round_: int, kind: str) -> RecordDict:
        """Return an answer of the app with its update filtered.

        :param answer: the records of the app, with arrays that are not packed.
        :param asked: what it was sent, likewise.
        :raises UpdateRejected: when arrays are not one update of the model, contain NaN or
            infinity, or leave in an answer to anything but training, or when there is a
            ConfigRecord, which no filter reads.
        """
        updates = records_of(answer, ArrayRecord)
        if records_of(answer, ConfigRecord):
            raise UpdateRejected(
                "the site filters what leaves it, and a ConfigRecord cannot be filtered",
                hint="answer with one ArrayRecord and one MetricRecord",
            )
        if not updates:
            return answer
        models = list(records_of(asked, ArrayRecord).values())
        if kind.split(".")[0] != MessageType.TRAIN or not models or len(updates) != 1:
            raise UpdateRejected(
                "the site filters what leaves it: arrays leave as one update, in the answer to a "
                "message to train that holds a model",
                hint="a strategy that sends other arrays cannot have this site",
            )
        found = RecordDict(dict(answer.items()))
        for name, record in updates.items():
            found[name] = self._filtered(record, models[0], round_)
        return found

    def _filtered(self, record: ArrayRecord, model: ArrayRecord, round_: int) -> ArrayRecord:
        update, reference = arrays_of(record), arrays_of(model)
        ordered = {name: update[name] for name in reference if name in update}
        check_like(ordered | update, reference)
        delta, norm = difference(ordered, reference), 0.0
        for name, array in delta.items():
            if not np.isfinite(array).all():
                raise UpdateRejected(
                    f"{name}: contains NaN or infinity",
                    hint="training diverged; lower the learning rate",
                )
        for place, each in enumerate(self._filters):
            if each.kind == "clip" and each.norm is not None:
                norm = each.norm
            delta = self._applied(each, delta, norm, purpose=pack(self._job, _u32(round_, place)))
        bounded = _ENLARGE.isdisjoint(self.names)
        return record_of((add_back_towards if bounded else add_back)(delta, reference))

    def _applied(self, each: FilterSpec, delta: Delta, norm: float, *, purpose: bytes) -> Delta:
        if each.norm is not None:
            return Clip(each.norm).apply(delta)
        if each.sigma is not None:
            noise = GridNoise(
                multiplier=each.sigma, sensitivity=norm, secret=self._secret, purpose=purpose
            )
            return noise.apply(delta)
        if each.fraction is not None:
            return {name: _largest(array, each.fraction) for name, array in delta.items()}
        if each.percentile is not None and each.limit is not None:
            return _above(delta, each.percentile, each.limit)
        step = each.step or 0.0
        return {name: np.sign(array) * step for name, array in delta.items()}


def _u32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def _largest(array: NDArray[np.float64], fraction: float) -> NDArray[np.float64]:
    """Keep the numbers with the largest magnitudes, one at least; of equals the first."""
    flat = array.reshape(-1)
    kept = max(1, round(fraction * flat.size))
    if kept >= flat.size:
        return array
    found = np.zeros_like(flat)
    places = np.argsort(-np.abs(flat), kind="stable")[:kept]
    found[places] = flat[places]
    return found.reshape(array.shape)


def _above(delta: Delta, percentile: float, limit: float) -> Delta:
    """Keep the numbers from a percentile of all magnitudes on, each within the limits."""
    sizes = [np.abs(array).reshape(-1) for array in delta.values()]
    least = float(np.percentile(np.concatenate(sizes), percentile)) if sizes else 0.0
    return {
        name: np.where(np.abs(array) >= least, np.clip(array, -limit, limit), 0.0)
        for name, array in delta.items()
    }
