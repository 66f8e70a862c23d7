"""Pruned sorting networks: what they sort, and that they hold no comparator for nothing."""

from __future__ import annotations

import numpy as np
import pytest

from server.flower.aggregation.robust.networks import MOST_ROWS, pruned, sort_rows


@pytest.mark.parametrize("count", range(1, 12))
def test_every_input_of_zeros_and_ones_is_sorted(count: int) -> None:
    # The zero-one principle (Knuth 3, section 5.3.4, theorem Z): then every input is.
    inputs = (np.arange(1 << count)[None, :] >> np.arange(count)[:, None] & 1).astype(np.uint8)
    expected = np.sort(inputs, axis=0)
    for first in range(count):
        for last in range(first + 1, count + 1):
            rows = inputs.copy()
            found = sort_rows(rows, np.empty(rows.shape[1], np.uint8), first, last)
            np.testing.assert_array_equal(found, expected[first:last])


@pytest.mark.parametrize("count", [12, 20, 33, MOST_ROWS, MOST_ROWS + 1, 150])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1"])
def test_columns_of_many_rows_are_sorted(count: int, dtype: str) -> None:
    rows = np.random.default_rng(count).integers(0, 200, (count, 97)).astype(dtype)
    expected = np.sort(rows, axis=0)
    spare = np.empty(rows.size if count > MOST_ROWS else 97, dtype)
    for first, last in (((count - 1) // 2, count // 2 + 1), (count // 5, count - count // 5)):
        found = sort_rows(rows.copy(), spare, first, last)
        np.testing.assert_array_equal(found, expected[first:last])


def test_a_network_has_only_what_its_ranks_depend_on() -> None:
    whole, middle = pruned(20, 0, 20), pruned(20, 9, 11)
    assert all(each.smaller and each.larger for each in whole)
    assert len(whole) == 97
    halves = sum(each.smaller + each.larger for each in middle)
    assert halves == 144  # of 194
    assert pruned(1, 0, 1) == ()
