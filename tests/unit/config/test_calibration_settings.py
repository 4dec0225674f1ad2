"""Bits by layer among the settings: what is taken, and what is refused in one line."""

import pytest
import yaml

from synq.config.calibration import Calibration, kept_bits, size_in_bytes, unmatched
from synq.config.fields import convert, flags
from synq.config.recorded import recorded
from synq.errors import ConfigError


def calibration(text):
    return convert(Calibration, yaml.safe_load(text), "calibration")


def test_a_mapping_of_patterns_becomes_words_in_its_order():
    settings = calibration("keep_bits: {'*.conv1': 8, a=b: 2, output: float}")
    assert settings.keep_bits == ("*.conv1=8", "a=b=2", "output=float")
    assert kept_bits(settings.keep_bits) == {"*.conv1": 8, "a=b": 2, "output": 32}
    assert "*.conv1=8" in flags(settings)
    assert "calibration.keep_bits=*.conv1=8 a=b=2 output=float" in recorded("calibration", settings)


def test_of_a_pattern_that_comes_twice_the_last_place_counts():
    assert list(kept_bits(("a=8", "*=4", "a=2")).items()) == [("*", 4), ("a", 2)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{keep_bits: {a: 9}}", "calibration.keep_bits has 9 bits for 'a'; write 2 to 8, or float"),
        ("{keep_bits: {a: 1}}", "keep_bits has 1 bits for 'a'"),
        ("{keep_bits: {a: true}}", "keep_bits has True bits for 'a'"),
        ("{keep_bits: {a: }}", "keep_bits has None bits for 'a'"),
        ("{keep_bits: {'': 4}}", "keep_bits has '=4'; write a name or pattern and its bits"),
        ("{keep_bits: 8}", "calibration.keep_bits is 8, not a mapping"),
        ("{budget: 1.5}", "calibration.budget is 1.5, not a text"),
        ("{budget: 1.5 mb}", "calibration.budget is '1.5 mb'; write a size with its unit (B, kB,"),
        ("{budget: -1 MB}", "budget is '-1 MB'"),
        ("{budget: 1 MB, average_bits: 3}", "calibration.budget and average_bits are both given"),
        ("{average_bits: 1.5}", "average_bits is 1.5, and the smallest of widths 2; raise the one"),
        ("{average_bits: 3, widths: [4, 8]}", "average_bits is 3, and the smallest of widths 4"),
        ("{average_bits: 9}", "average_bits is 9.0; it must be at most 8"),
        ("{widths: []}", "widths is []; write each of some bits once"),
        ("{widths: [2, 2]}", "widths is [2, 2]"),
        ("{widths: [2, 9]}", "calibration.widths[1] is 9; it must be at most 8"),
        ("{range_search: true, range_source: generator}", "range_source is generator; write range"),
        ("{range_search: true, range_estimator: ema}", "neither range_estimator nor weight_estim"),
        # Weights of the extremes have no clip that could be searched.
        (
            "{range_search: true, range_estimator: minmax, weight_estimator: mse}",
            "calibration.range_search has no L_p error to search for",
        ),
    ],
)
def test_what_is_wrong_is_told(text, line):
    with pytest.raises(ConfigError) as caught:
        calibration(text)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [("900B", 900), ("1.5 MB", 1_500_000), ("120 kB", 120_000), ("2 MiB", 2 * 1024**2)],
)
def test_sizes(size, wanted):
    assert size_in_bytes(size) == wanted


def test_nothing_is_mixed_unless_it_is_asked_for():
    assert not Calibration().mixed
    assert Calibration(budget="1 MB").mixed
    assert Calibration(average_bits=2.5).mixed
    # No width is recorded; this alone has another default than its baseline.
    assert recorded("calibration", Calibration()) == ["calibration.range_power=3.5"]


def test_an_exponent_is_searched_where_some_clip_is():
    searched = calibration(
        "{range_search: true, range_estimator: minmax, weights: learned, weight_estimator: mse}"
    )
    assert searched.has_power
    assert calibration("{range_search: true}").has_power


def test_a_pattern_without_a_match_gets_the_nearest_name():
    names = ["features.stem", "stage1.relu/relu/0", "output"]
    for pattern in ("features.*", "output", "*/relu/?"):
        assert unmatched(pattern, names) == ""
    assert "did you mean features.stem?" in unmatched("features.steem", names)
    assert "synq inspect lists the names" in unmatched("zzz*", names)
