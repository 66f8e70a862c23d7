"""The compression of a job's updates at the client, after the privacy of the job.

What compression removes from an update is kept and added to the next one, where the job asks for
``error_feedback``. It is state of the client, bound to rounds like that of the app: a round that is
run again starts from what was there before it (:mod:`edge.client.flower.app_state`).
"""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from edge.client.flower.app_state import Call, StateHistory
from fedlearn.app.array_records import arrays_of, records_of
from fedlearn.app.flower import COMPRESSED, packed
from fedlearn.compression.bounded import encode_within
from fedlearn.compression.codec import Encoded, Residual, encode
from fedlearn.errors import UpdateRejected
from fedlearn.job.spec import JobSpec
from fedlearn.update import arrays as update

__all__ = ["UpdateCompressor"]


class UpdateCompressor:
    """Encodes the updates of one job at one site. Not thread-safe.

    :param residual: what compression removed before; ``residual`` is what it has removed so far.
    """

    def __init__(self, spec: JobSpec, residual: Residual | None = None) -> None:
        self._spec = spec.compression
        self._clip = None if spec.privacy is None else spec.privacy.clip
        self._history = StateHistory[Residual]()
        self.residual: Residual = residual or {}

    def content(self, content: RecordDict, asked: RecordDict, call: Call) -> RecordDict:
        """Return the answer to training with its update encoded; others are returned as they are.

        :param content: the answer, with arrays that are not packed.
        :param asked: the question. Its first ArrayRecord is the model of the round.
        :raises UpdateRejected: for arrays that are not one update of this model.
        :raises PrivacyError: when the encoded update cannot be within the clip norm.
        """
        arrays, models = records_of(content, ArrayRecord), records_of(asked, ArrayRecord)
        if not arrays or not models:
            return content
        if len(arrays) > 1:
            raise UpdateRejected(
                f"the answer has {len(arrays)} ArrayRecords; with [compression] an update is one"
            )
        self.residual = self._history.before(call, self.residual)
        name, record = next(iter(arrays.items()))
        reference = arrays_of(next(iter(models.values())))
        encoded = self._encoded(arrays_of(record), reference)
        self.residual = encoded.residual
        found = RecordDict(dict(content.items()))
        found[name] = packed(update.document(encoded.arrays), COMPRESSED)
        return found

    def _encoded(
        self, arrays: dict[str, update.Array], reference: dict[str, update.Array]
    ) -> Encoded:
        if self._clip is not None:
            return encode_within(arrays, reference, self._spec, self._clip)
        return encode(arrays, reference, self._spec, residual=self.residual)
