"""The state of a client on a disk that somebody else can write to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge.client.flower.app_state import Call
from edge.client.flower.state_store import StateStore
from fedlearn.errors import StoreError

KEY = bytes(range(32))


def store(folder: Path, *, job: str = "alpha", site: str = "north", key: bytes = KEY) -> StateStore:
    return StateStore(folder, job=job, site=site, key=lambda: key, most=10_000)


def calls(made: StateStore, rounds: int) -> list[str]:
    """Keep a state after each training; return the digests."""
    return [
        made.save(Call.of(number, "train"), [b"head", f"state {number}".encode()])
        for number in range(1, rounds + 1)
    ]


def test_the_next_client_finds_each_state_that_the_coordinator_may_name(tmp_path: Path) -> None:
    digests = calls(store(tmp_path / "s"), 6)
    again = store(tmp_path / "s")
    for number in (3, 4, 5, 6):
        assert again.load(digests[number - 1]) == [b"head", f"state {number}".encode()]
    assert len(list((tmp_path / "s").iterdir())) == 4
    with pytest.raises(StoreError, match="set back to an older one"):
        again.load(digests[0])


def test_a_round_that_is_run_again_takes_no_state_away(tmp_path: Path) -> None:
    made = store(tmp_path)
    first = made.save(Call.of(1, "train"), [b"first"])
    second = made.save(Call.of(1, "train"), [b"second"])
    assert (made.load(first), made.load(second)) == ([b"first"], [b"second"])


def test_the_key_is_asked_for_once_and_not_before_it_is_needed(tmp_path: Path) -> None:
    asked: list[int] = []

    def key() -> bytes:
        asked.append(1)
        return KEY

    made = StateStore(tmp_path, job="alpha", site="north", key=key, most=1000)
    assert asked == []
    made.load(made.save(Call.of(1, "train"), []))
    assert asked == [1]


# The attacker: whoever can write to the disk of the site


def test_an_altered_file_is_refused_and_named(tmp_path: Path) -> None:
    digest = calls(store(tmp_path), 1)[0]
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=rf"Found: {path.name} \(altered or renamed\)"):
        store(tmp_path).load(digest)


def test_a_folder_that_was_set_back_is_refused_and_what_it_has_is_named(tmp_path: Path) -> None:
    made = store(tmp_path / "s")
    calls(made, 2)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    newest = made.save(Call.of(3, "train"), [b"state 3"])
    shutil.rmtree(tmp_path / "s")
    shutil.copytree(tmp_path / "old", tmp_path / "s")
    with pytest.raises(StoreError, match=r"\(of round 2\); .*\(of round 1\)"):
        store(tmp_path / "s").load(newest)


def test_an_old_file_under_the_name_of_the_newest_is_refused(tmp_path: Path) -> None:
    made = store(tmp_path)
    calls(made, 2)
    old, new = sorted(tmp_path.iterdir())
    digest = made.save(Call.of(2, "train"), [b"newer"])
    newest = next(path for path in tmp_path.iterdir() if path not in {old, new})
    newest.write_bytes(old.read_bytes())
    with pytest.raises(StoreError, match=rf"{newest.name} \(altered or renamed\)"):
        store(tmp_path).load(digest)


@pytest.mark.parametrize("other", [{"site": "south"}, {"job": "beta"}])
def test_the_state_of_another_site_or_job_is_refused_and_named(
    tmp_path: Path, other: dict[str, str]
) -> None:
    site, job = other.get("site", "north"), other.get("job", "alpha")
    digest = calls(store(tmp_path / "s"), 1)[0]
    calls(store(tmp_path / "other", site=site, job=job), 1)
    shutil.rmtree(tmp_path / "s")
    shutil.copytree(tmp_path / "other", tmp_path / "s")
    named = "job alpha, site south" if "site" in other else "job beta, site north"
    with pytest.raises(StoreError, match=rf"\(of {named}, round 1"):
        store(tmp_path / "s").load(digest)
    # Nor does it open where the coordinator would name its digest.
    theirs = calls(store(tmp_path / "s", site=site, job=job), 1)[0]
    with pytest.raises(StoreError, match="it is the state of"):
        store(tmp_path / "s").load(theirs)


def test_a_state_under_another_key_does_not_open(tmp_path: Path) -> None:
    digest = calls(store(tmp_path), 1)[0]
    with pytest.raises(StoreError, match="does not open"):
        store(tmp_path, key=bytes(32)).load(digest)


def test_a_folder_that_was_emptied_or_filled_with_other_files_is_refused(tmp_path: Path) -> None:
    digest = calls(store(tmp_path / "s"), 1)[0]
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StoreError, match="Found: nothing"):
        store(tmp_path / "s").load(digest)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.sealed").write_bytes(b"x")
    (tmp_path / "s" / "b.sealed").write_bytes(bytes(20_000))
    with pytest.raises(StoreError, match=r"larger than 10000 bytes.*not a sealed state"):
        store(tmp_path / "s").load(digest)


@pytest.mark.parametrize("digest", ["", "../secret", "A" * 64, "*"])
def test_what_is_no_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(StoreError, match="is not the SHA-256 of a state"):
        store(tmp_path).load(digest)


def test_a_disk_that_does_not_take_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be kept in"):
        store(tmp_path / "file").save(Call.of(1, "train"), [])
