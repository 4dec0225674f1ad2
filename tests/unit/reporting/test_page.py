"""A table as HTML: what it is sorted by, and what it says."""

import re

import pytest

from synq.reporting.page import render_table


def keys(cell):
    text = render_table("T", ["a"], [[cell]], [])
    return re.findall(r'data-sort="([^"]*)"', text)


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        ("99.17 ± 0.10", "99.17"),
        ("~187.4", "187.4"),
        ("+0.50 ± 0.10", "0.50"),
        ("-0.50", "-0.50"),
        (3, "3"),
        ("", ""),
        ("w4a4", "w4a4"),
    ],
)
def test_a_cell_is_sorted_by_its_number_or_its_text(cell, key):
    assert keys(cell) == [key]


def test_lines_stand_below_the_table_and_nothing_is_an_element():
    text = render_table("T", ["<b>"], [["<i>"]], ["a <u> line"])
    assert text.index("&lt;i&gt;") < text.index("a &lt;u&gt; line")
    assert not re.search(r"<[biu]>", text)
