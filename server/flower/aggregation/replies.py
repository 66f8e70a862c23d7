"""What a reply of a site must be before a strategy sees it. Pure: a content in, a content out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedlearn.app.array_records import ArrayView, arrays_of, records_of
from fedlearn.app.flower import unpack
from fedlearn.errors import UpdateRejected
from fedlearn.update import arrays as update

__all__ = ["ReplyChecks", "Spec"]

_MAX_METRICS: Final = 1_024
_MAX_METRIC_NAME: Final = 256
_MOST_EXAMPLES: Final = 2**53

Spec = dict[str, tuple[set[str], tuple[int, ...]]]
"""The arrays of a model by name: the element types that an update may have, and the shape."""


class ReplyChecks:
    """The checks of one job.

    ``weighted_by``  the metric that is a reply's weight
    ``types``        element types of the first model by name: a strategy may average integers
                     into floats, and a client's integers stay welcome

    :param max_bytes: the most bytes that one packed record may unpack to.
    :param any_model: take arrays of other names, types and shapes than the model's.
    :param metrics: let metrics and configuration pass; False leaves arrays and the weight.
    :param counted: metrics that pass all the same, because the strategy counts them.
    """

    def __init__(
        self, *, max_bytes: int, any_model: bool, metrics: bool, counted: tuple[str, ...] = ()
    ) -> None:
        self._max_bytes = max_bytes
        self._any_model = any_model
        self._metrics = metrics
        self._counted = counted
        self.weighted_by = "num-examples"
        self.types: Mapping[str, str] = {}

    def spec(self, content: RecordDict) -> Spec | None:
        """Return what an update must look like; None where no model was sent."""
        records = list(records_of(content, ArrayRecord).values())
        if not records:
            return None
        found: Spec = {}
        for name, array in records[0].items():
            types = {str(array.dtype)}
            if name in self.types:
                types.add(self.types[name])
            found[name] = (types, tuple(array.shape))
        return found

    def checked(
        self,
        content: RecordDict,
        spec: Spec | None,
        *,
        most_examples: int = 0,
        finite: bool = True,
    ) -> RecordDict:
        """Return a reply's content, unpacked and checked.

        :param spec: from :meth:`spec` of what the site was sent; None where that was no model.
        :param most_examples: the largest weight; 0 where the site committed to nothing that
            can be counted, and 2^53 is the bound.
        :param finite: refuse NaN and infinity in the arrays, where a model was sent.
        :raises UpdateRejected: naming what is wrong. Numpy's own errors for arrays that lie
            about themselves come out as they are.
        """
        content = unpack(content, max_bytes=self._max_bytes, finite=finite and spec is not None)
        if not self._metrics:
            content = self._without_metrics(content)
        _check_metrics(content)
        self._check_weight(content, most_examples or _MOST_EXAMPLES)
        if spec is None:
            return content
        records = records_of(content, ArrayRecord)
        for name, record in records.items():
            arrays = arrays_of(record)
            if not all(isinstance(array, ArrayView) for array in record.values()):
                _check_finite(arrays)
            if len(records) == 1 and not self._any_model:
                _check_like(arrays, spec, name)
        return content

    def _without_metrics(self, content: RecordDict) -> RecordDict:
        """Leave the arrays and the weight: a client that has privacy sends nothing else."""
        found = RecordDict()
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                found[name] = record
            elif isinstance(record, MetricRecord):
                passing = (self.weighted_by, *self._counted)
                found[name] = MetricRecord({key: record[key] for key in passing if key in record})
        return found

    def _check_weight(self, content: RecordDict, most: int) -> None:
        """Check that a site claims no more examples than the records that it committed to."""
        for record in records_of(content, MetricRecord).values():
            value = record.get(self.weighted_by, 0)
            if isinstance(value, list) or not 0 <= value <= most:
                raise UpdateRejected(
                    f"{self.weighted_by} is {str(value)[:40]}; it must be a number from 0 to "
                    f"{most}, what the site has committed to",
                    hint="a client reports how many examples it trained on, once each",
                )


def _check_like(arrays: Mapping[str, update.Array], spec: Spec, record: str) -> None:
    if set(arrays) != set(spec):
        odd = sorted(set(arrays) ^ set(spec))[0]
        raise UpdateRejected(f"{record}: the array {odd!r} is in the model or in the update only")
    for name, array in arrays.items():
        types, shape = spec[name]
        if str(array.dtype) not in types:
            raise UpdateRejected(
                f"{name}: is {array.dtype}, the model has {' or '.join(sorted(types))}"
            )
        document = array.ndim == 1 and array.dtype == np.uint8
        if array.shape != shape and not document:
            raise UpdateRejected(f"{name}: has shape {array.shape}, the model has {shape}")


def _check_finite(arrays: Mapping[str, update.Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise UpdateRejected(f"{name}: an array of {array.dtype} is not numbers")
        if not np.isfinite(array).all():
            raise UpdateRejected(f"{name}: contains NaN or infinity")


def _check_metrics(content: RecordDict) -> None:
    """Check that there are few metrics, and that each is a number or a short list of them."""
    values = 0
    for record in records_of(content, MetricRecord).values():
        for name, value in record.items():
            items = value if isinstance(value, list) else [value]
            values += max(1, len(items))
            if len(name) > _MAX_METRIC_NAME or values > _MAX_METRICS:
                raise UpdateRejected(
                    f"a reply has at most {_MAX_METRICS} metric values, with names of at most "
                    f"{_MAX_METRIC_NAME} characters"
                )
            if any(isinstance(item, int) and abs(item) >= 2**63 for item in items):
                raise UpdateRejected(f"the metric {name!r} is beyond 64 bits")
