import pytest

from synq.data.rows import evenly_spread


@pytest.mark.parametrize(
    ("count", "most", "rows"),
    [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (7, 1, [0]), (10, 4, [0, 3, 6, 9])],
)
def test_rows_are_evenly_spread_over_the_set(count, most, rows):
    assert evenly_spread(count, most).tolist() == rows
