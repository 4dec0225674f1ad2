import math

import pytest

from synq.reporting.changes import Changes, changed, standard_error


def test_changes_in_words():
    text = changed(Changes(2, 1, 1), 4)
    assert text == (
        "another class than the original on 50.00 % of the test images: of 4, 1 became wrong and "
        "1 became right"
    )


def test_the_standard_error_is_that_of_a_paired_difference_and_never_nothing():
    # Where nothing is gained it is the binomial one of what is lost.
    share = 0.1
    assert standard_error(1000, 0, 10_000) == pytest.approx(
        100 * math.sqrt(share * (1 - share) / 10_000), rel=1e-2
    )
    # Of as many images lost as gained, each is a step of one image up or down.
    assert standard_error(50, 50, 10_000) == pytest.approx(100 * math.sqrt(100) / 10_000, rel=1e-2)
    assert 0 < standard_error(0, 0, 100) < 1
