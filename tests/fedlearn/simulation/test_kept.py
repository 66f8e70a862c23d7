"""What a simulation keeps on disk: memories of clients, and the last checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.client.flower.replies import Memory
from fedlearn.errors import StoreError
from fedlearn.simulation.kept import checkpoints, memories
from fedlearn.simulation.kept.memories import Memories
from server.flower.job_plan import Checkpoint


def memory(value: int, size: int = 10) -> Memory:
    return Memory((b"head", bytes([value]) * size), {"w": np.full(3, value, np.float32)})


def parts(found: Memory) -> list[bytes]:
    return [bytes(part) for part in found.state]


def test_the_newest_memory_of_each_client_is_returned(tmp_path: Path) -> None:
    kept = Memories(tmp_path)
    kept.put(3, memory(1))
    kept.put(3, memory(2))
    kept.put(9000, Memory())
    assert parts(kept.get(3)) == parts(memory(2))
    assert kept.get(3).residual["w"].tolist() == [2.0] * 3
    assert parts(kept.get(4)) == []
    assert len(kept) == 1  # a client without a memory costs nothing
    kept.put(3, Memory())
    assert parts(kept.get(3)) == []


def test_memories_beyond_the_bound_are_read_from_the_file(tmp_path: Path) -> None:
    kept = Memories(tmp_path, cache_bytes=2_000)
    for client in range(50):
        kept.put(client, memory(client, 200))
    assert kept._cached <= 2_000
    assert [parts(kept.get(client))[1][0] for client in range(50)] == list(range(50))
    assert kept._cached <= 2_000


def test_what_came_after_the_checkpoint_is_gone_after_a_kill(tmp_path: Path) -> None:
    kept = Memories(tmp_path)
    kept.put(1, memory(1))
    position = kept.sync()
    kept.put(1, memory(2))
    kept.put(2, memory(3))
    again = Memories(tmp_path, position)
    assert parts(again.get(1)) == parts(memory(1))
    assert parts(again.get(2)) == []


def test_an_outdated_log_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "_COMPACT_BYTES", 10_000)
    kept = Memories(tmp_path)
    for number in range(100):
        kept.put(number % 3, memory(number, 1_000))
    before = kept.sync()
    kept.committed()
    assert before[1] < 5_000
    assert [path.name for path in tmp_path.iterdir()] == [before[0]]
    again = Memories(tmp_path, before)
    assert [parts(again.get(client)) for client in range(3)] == [
        parts(memory(number, 1_000)) for number in (99, 97, 98)
    ]


def test_a_log_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    kept = Memories(tmp_path)
    kept.put(1, memory(1))
    name, size = kept.sync()
    with (tmp_path / name).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(StoreError, match="fewer bytes than its checkpoint names"):
        Memories(tmp_path, (name, size))


KEPT = checkpoints.Kept(
    checkpoint=Checkpoint(round=4, model=b"model", tensors=b"tensors", state={"a": [1, "x"]}),
    memories=("memories-0", 17),
    releases=4,
)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    assert checkpoints.read(file) is None
    checkpoints.write(file, KEPT)
    found = checkpoints.read(file)
    assert found is not None
    assert (found.checkpoint.round, found.checkpoint.state) == (4, {"a": [1, "x"]})
    assert (bytes(found.checkpoint.model), bytes(found.checkpoint.tensors)) == (
        b"model",
        b"tensors",
    )
    assert (found.memories, found.releases, found.clock) == (("memories-0", 17), 4, None)


@pytest.mark.parametrize("keep", [0, 10, 30, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "checkpoint"
    checkpoints.write(file, KEPT)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match="is not a checkpoint of a simulation"):
        checkpoints.read(file)
