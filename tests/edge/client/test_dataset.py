"""What counts as a record of a data mount does not depend on who looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.client.dataset import Tally, records
from fedlearn.errors import ConfigError


def test_lines_rows_and_blocks_are_records(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2\r\n3,4\n")
    np.savez(tmp_path / "b.npz", x=np.arange(6).reshape(3, 2), y=np.zeros(3))
    (tmp_path / "c.bin").write_bytes(bytes(70_000))
    tally = Tally()
    assert len(list(records(tmp_path, tally))) == 2 + (3 + 3) + 2
    blocks = sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix == ".bin")
    assert tally.examples == 2 + (3 + 3) + blocks


def test_a_changed_moved_or_added_record_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    seen = set()
    for content in (b"1\n2\n", b"2\n1\n", b"1\n3\n", b"1\n2\n3\n"):
        file.write_bytes(content)
        seen.add(tuple(records(tmp_path)))
    assert len(seen) == 4


def test_the_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_bytes(b"1\n")
    assert list(records(tmp_path / "one")) == list(records(tmp_path / "two"))


def test_a_missing_mount_states_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as refusal:
        list(records(tmp_path / "nothing"))
    assert "site.toml" in refusal.value.hint


def test_a_link_out_of_the_mount_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "a.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="leads out"):
        list(records(tmp_path / "mount"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ConfigError, match="safe to read"):
        list(records(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "headers"),
    [
        ("a.csv", b"age,score\n40,0.5\n41,0.25\n", 1),
        ("a.csv", b'"age","score"\r\n"40","0.5"\r\n', 1),
        ("a.tsv", b"id\tname\nx\t3\n", 1),
        ("a.csv", b"40,0.5\n41,0.25\n", 0),
        ("a.csv", b"red,round\ngreen,square\n", 0),
        ("a.csv", b"age,score\n", 0),
        ("a.csv", b"a title\n1,2\n", 0),
        ("a.csv", b"", 0),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n', 0),
    ],
)
def test_the_head_of_a_table_is_known_and_stays_a_record(
    tmp_path: Path, name: str, content: bytes, headers: int
) -> None:
    (tmp_path / name).write_bytes(content)
    tally = Tally()
    count = len(list(records(tmp_path, tally)))
    assert count == tally.examples == len(content.splitlines())
    assert tally.headers == headers
