"""What an answer to a stage of secure aggregation must be, before its body is read."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from fedlearn.app.array_records import records_of
from fedlearn.app.flower import SECAGG
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.messages import MAX_BYTES

__all__ = ["checked"]


def checked(content: RecordDict) -> RecordDict:
    """Return the answer to a message of the type :data:`fedlearn.app.flower.SECAGG`.

    :raises UpdateRejected: unless it is one ConfigRecord with a stage, a session and a body.
    """
    fields = records_of(content, ConfigRecord).get(SECAGG, {})
    if (
        len(content) != 1
        or set(fields) != {"stage", "session", "body"}
        or not isinstance(fields["stage"], str)
        or not isinstance(fields["session"], bytes)
        or not isinstance(fields["body"], bytes)
        or len(fields["body"]) > MAX_BYTES
    ):
        raise UpdateRejected("an answer of secure aggregation holds stage, session and body")
    return content
