"""No subject is in two parts, or in training and in test data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.data import partition
from fedlearn.data.groups import check_no_leak, hold_out, parts_of_groups
from fedlearn.errors import ConfigError


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(st.integers(0, 30), min_size=2, max_size=200),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
def test_a_group_is_kept_or_held_out_as_a_whole(groups: list[int], share: float, seed: int) -> None:
    subjects = np.array(groups)
    kept, held = hold_out(len(groups), share, seed=seed, groups=subjects)
    assert sorted([*kept, *held]) == list(range(len(groups)))
    assert not set(subjects[kept]) & set(subjects[held])
    assert len(kept) >= 1
    if share and len(set(groups)) > 1:
        assert len(held) >= 1


def test_without_groups_the_share_is_of_examples() -> None:
    kept, held = hold_out(1000, 0.2, seed=1)
    assert (len(kept), len(held)) == (800, 200)
    other = hold_out(1000, 0.2, seed=1, stream=2)[1]
    assert not np.array_equal(held, other)
    assert len(hold_out(10, 0.0, seed=1)[1]) == 0


def test_parts_of_groups_leak_no_subject() -> None:
    subjects = np.repeat(np.arange(200), 3)
    labels = np.repeat(np.arange(200) % 4, 3)
    made = parts_of_groups(
        subjects,
        labels,
        lambda count, most: partition.label_count(np.asarray(most), 8, classes=2, seed=1),
    )
    assert sorted(np.concatenate(made)) == list(range(600))
    check_no_leak(made, subjects)
    assert all(len(np.unique(labels[part])) == 2 for part in made)


def test_a_group_has_its_most_frequent_label() -> None:
    seen: list[tuple[int, np.ndarray]] = []

    def record(count: int, labels: np.ndarray | None) -> partition.Parts:
        assert labels is not None
        seen.append((count, labels))
        return (np.arange(count),)

    parts_of_groups(np.array([5, 5, 5, 6, 6]), np.array([1, 2, 2, 9, 3]), record)
    assert seen[0][0] == 2
    assert seen[0][1].tolist() == [2, 3]


def test_a_subject_in_two_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 groups have examples in more than one part, b for"):
        check_no_leak((np.array([0, 1]), np.array([2])), np.array(["a", "b", "b"]))


def test_a_missing_subject_or_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 of 2 groups are missing"):
        hold_out(2, 0.5, seed=1, groups=np.array(["a", ""]))
    with pytest.raises(ConfigError, match="a share of 1 is held out"):
        hold_out(2, 1.0, seed=1)
