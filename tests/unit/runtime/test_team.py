"""How several processes share a batch; ``workflow/test_processes.py`` has the processes."""

import pytest

from synq.runtime.team import Team


@pytest.mark.parametrize("count", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_near_equal_and_make_up_the_batch(count, size):
    rows = list(range(count))
    shares = [rows[Team(rank, size).share(count)] for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
