"""Flower's records from and into a torch ``state_dict``, on whatever device it is.

A Flower app may use ``ArrayRecord(model.state_dict())`` and ``to_torch_state_dict()``, as
anywhere. The two functions here do the same with fewer copies, which a large model on a GPU needs:
the record is made as the document that is sent, and a received one is read into the tensors that
will be trained.

>>> import torch
>>> model = torch.nn.Linear(3, 2)
>>> record = record_of_state_dict(model.state_dict())
>>> twin = torch.nn.Linear(3, 2)
>>> load_record(twin.state_dict(), record)
>>> torch.equal(twin.weight, model.weight)
True

The page is docs/how-to/train-on-a-gpu.md.
"""

from __future__ import annotations

from fedlearn.app.array_records import ArrayRecord, arrays_of, record_of_document
from fedlearn.update.torch import State, encode_state_dict, fill_state_dict

__all__ = ["load_record", "record_of_state_dict"]


def record_of_state_dict(state: State) -> ArrayRecord:
    """Return a record with the tensors of ``state``, in its order and element types.

    Each tensor is copied once; the model may be trained on afterwards.

    :raises UpdateRejected: for a value that is not a dense tensor of an element type that can be
        sent.
    """
    document = encode_state_dict(state)
    return record_of_document(document, max_bytes=len(document))


def load_record(state: State, record: ArrayRecord) -> None:
    """Copy a record into the tensors of ``state``, in place: ``model.state_dict()`` for example.

    :raises UpdateRejected: when names, order, element types or shapes differ, or an array is not
        one of numbers; then no tensor was changed.
    """
    fill_state_dict(state, arrays_of(record))
