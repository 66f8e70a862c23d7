"""Records that were decoded from a document: they are passed on as it, until they are changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fedlearn.app.array_records import (
    ArrayView,
    DocumentRecord,
    arrays_of,
    document_of,
    documented,
    record_of_document,
)
from fedlearn.app.flower import Packer, flatten, unpack
from fedlearn.errors import UpdateRejected
from fedlearn.sandbox.memory_file import FilePart, MemoryFile
from fedlearn.update import arrays as update
from tests.fakes.exchange import message

LARGE: dict[str, update.Array] = {
    "w": np.arange(40_000, dtype=np.float32),
    "b": np.ones((2, 3), np.float64),
}


def record(arrays: dict[str, update.Array] = LARGE) -> DocumentRecord:
    return record_of_document(update.document(arrays), max_bytes=1 << 20)


def no_map(self: MemoryFile) -> memoryview:
    raise AssertionError("the file is mapped")


def test_a_record_is_passed_on_as_its_document_and_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = record()
    assert isinstance(found.document, FilePart)
    monkeypatch.setattr(MemoryFile, "map", no_map)
    packer = Packer()
    contents = [packer.content(RecordDict({"a": found})) for _ in range(3)]
    flat = flatten([message(each, to=2) for each in contents])
    assert [part for part in flat.objects.values() if len(part) > 1000] == [found.document]
    assert document_of(found) is found.document
    assert documented(found) is found


CHANGES: dict[str, Callable[[ArrayRecord], object]] = {
    "set": lambda found: found.__setitem__("b", Array(np.zeros(1, np.float32))),
    "delete": lambda found: found.__delitem__("w"),
    "pop": lambda found: found.pop("w"),
    "clear": lambda found: found.clear(),
    "update": lambda found: found.update({"w": Array(np.zeros(2, np.int64))}),
    "taken": lambda found: found.to_numpy_ndarrays(keep_input=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_was_changed_is_encoded_as_it_is_now(change: str) -> None:
    found = record()
    before = bytes(document_of(found))
    CHANGES[change](found)
    assert found.document is None
    now = update.decode(document_of(found))
    assert list(now) == list(found)
    assert bytes(document_of(found)) != before
    again = documented(found)
    assert isinstance(again, DocumentRecord)
    assert bytes(again.document or b"") == update.encode(arrays_of(found))


def test_a_copy_of_a_record_is_one_of_its_own() -> None:
    found = record()
    for other in (found.copy(), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert type(other) is ArrayRecord
        assert other["w"].numpy().tolist() == LARGE["w"].tolist()
        other["w"] = Array(np.zeros(1, np.float32))
    assert found.document is not None
    shared = copy.deepcopy(found.document)
    assert isinstance(shared, FilePart)
    del found
    assert update.decode(shared)["b"].tolist() == LARGE["b"].tolist()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(shared)


def test_what_an_app_converts_is_copied_once_and_may_be_written_to() -> None:
    found = record()
    arrays = [found["w"].numpy(), *found.to_numpy_ndarrays()]
    tensors = found.to_torch_state_dict()
    for array in arrays:
        array[...] = 7
    for tensor in tensors.values():
        tensor.fill_(torch.tensor(9))
    assert all("made" not in array.__dict__ for array in found.values())  # Flower's own format
    assert arrays_of(found)["w"].tolist() == LARGE["w"].tolist()
    view = found["w"]
    assert isinstance(view, ArrayView)
    with pytest.raises(ValueError, match="read-only"):
        view.view[0] = 1


def test_arrays_that_have_no_document_are_left_as_they_are() -> None:
    found = ArrayRecord({"x": Array("custom", (1,), "pickle", b"\x80\x04N.")})
    assert documented(found) is found
    with pytest.raises(UpdateRejected, match="not a numpy array"):
        document_of(found)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_document_that_is_not_one_is_refused(large: bool) -> None:
    arrays = LARGE if large else {"w": np.ones(3, np.float32)}
    arrays = {**arrays, "n": np.array([1.0, np.nan], np.float32)}
    packed = Packer().content(RecordDict({"a": record(arrays)}))
    assert isinstance(packed["a"]["packed"].data, FilePart) is large
    assert list(unpack(packed, max_bytes=1 << 20)["a"]) == list(arrays)
    with pytest.raises(UpdateRejected, match="n: contains NaN or infinity"):
        unpack(packed, max_bytes=1 << 20, finite=True)
    with pytest.raises(UpdateRejected, match="at most 50 are accepted"):
        unpack(packed, max_bytes=50)
