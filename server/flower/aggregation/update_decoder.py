"""Decoding of compressed updates, before they are checked as every other update is."""

from __future__ import annotations

from typing import Final

from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.app.flower import COMPRESSED
from fedlearn.compression.codec import decode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import JobError, UpdateRejected
from fedlearn.update import arrays as update

__all__ = ["UpdateDecoder"]

_MAX_PARTS: Final = 2 * update.DEFAULT_MAX_TENSORS
"""An encoded array has at most two parts."""


class UpdateDecoder:
    """The decoding of one job's updates, by its ``[compression]``. Without a state.

    :param max_bytes: the most bytes that an encoded update may have.
    """

    def __init__(self, spec: CompressionSpec, *, max_bytes: int) -> None:
        self._spec = spec
        self._max_bytes = max_bytes

    def check_model(self, model: ArrayRecord) -> None:
        """Check the first model of a job. :raises JobError: when none of its arrays travels."""
        if self._spec.active and not self._spec.names(model):
            raise JobError(
                f"no array of the model matches {', '.join(map(repr, self._spec.arrays))}; it has "
                f"{', '.join(list(model)[:5])}",
                hint="correct `arrays` in [compression] of the job",
            )

    def reference(self, message: Message) -> ArrayRecord | None:
        """Return the model of a question to train; None where the answer is not compressed."""
        train = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        records = records_of(message.content, ArrayRecord) if train and self._spec.active else {}
        return next(iter(records.values()), None)

    def decoded(self, content: RecordDict, model: ArrayRecord) -> tuple[RecordDict, int]:
        """Return a reply with its updates decoded, and how many bytes the encoding saved.

        :param model: what the site was sent.
        :raises UpdateRejected: for an update that is not in the form of the job, or is malformed.
        """
        found, saved = RecordDict(), 0
        reference = arrays_of(model)
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                only = next(iter(record.values()), None)
                if only is None or len(record) > 1 or only.stype != COMPRESSED:
                    raise UpdateRejected(
                        f"{name}: is not encoded as the job's [compression] declares "
                        f"({self._spec.title})",
                        hint="the client did not apply the compression of its job",
                    )
                parts = update.decode(
                    only.data, max_bytes=self._max_bytes, max_tensors=_MAX_PARTS, finite=True
                )
                arrays = decode(parts, reference, self._spec)
                saved += max(0, sum(each.nbytes for each in arrays.values()) - len(only.data))
                record = record_of(arrays)
            found[name] = record
        return found, saved
