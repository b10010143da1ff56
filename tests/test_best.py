"""The highest values of wide rows, found in two goes on a CPU, are those that sorting finds."""

from __future__ import annotations

import math

import pytest
import torch

from showtell.search.frontier import best


@pytest.mark.parametrize("width", [1, 63, 64, 65, 1792, 1800, 5000])
@pytest.mark.parametrize("count", [1, 6, 7])
@pytest.mark.parametrize("kinds", [3, 40, 10**6])
def test_the_best_of_a_row_are_those_of_a_sorted_list_lower_index_first(width: int, count: int, kinds: int) -> None:
    generator = torch.Generator().manual_seed(width + count)
    values = torch.randint(-kinds, 0, (4, width), generator=generator).double()
    for row, (top, index) in zip(values.tolist(), zip(*best(values, count), strict=True), strict=True):
        expected = sorted(range(width), key=lambda i: (-row[i], i))[:count]
        assert index.tolist() == expected
        assert top.tolist() == [row[i] for i in expected]


def test_few_words_allowed_among_many_are_found_wherever_they_stand() -> None:
    for allowed in ([0], [4999], [63, 64], [4991, 4992, 4999], [10, 20, 30, 40]):
        values = torch.full((1, 5000), -math.inf)
        values[0, allowed] = -torch.arange(1.0, len(allowed) + 1)
        top, index = best(values, 6)
        assert index[0, : len(allowed)].tolist() == allowed
        assert top[0, len(allowed) :].tolist() == [-math.inf] * (6 - len(allowed))
        assert len(set(index[0].tolist())) == 6  # a word isn't offered twice


def test_nan_comes_first_so_that_it_is_noticed() -> None:
    for place in (0, 100, 4999):
        values = torch.zeros(1, 5000)
        values[0, place] = torch.nan
        assert best(values, 3)[0][0, 0].isnan()


def test_views_and_no_rows_at_all_are_fine() -> None:
    wide = torch.rand(3, 6000)
    assert torch.equal(best(wide[:, ::2], 4)[1], best(wide[:, ::2].contiguous(), 4)[1])
    assert best(wide.T.contiguous().T, 4)[1].tolist() == best(wide, 4)[1].tolist()
    assert best(wide[:0], 4)[0].shape == (0, 4)


def test_rows_with_equal_values_are_settled_beside_rows_without() -> None:
    values = torch.rand(6, 5000, generator=torch.Generator().manual_seed(0))
    values[1, [7, 70, 700]] = values[4, [4999, 3, 2500]] = 2.0
    top, index = best(values, 2)
    for row in range(6):
        expected = sorted(range(5000), key=lambda i: (-values[row, i].item(), i))[:2]
        assert index[row].tolist() == expected
        assert top[row].tolist() == [values[row, i].item() for i in expected]
