"""A table as HTML: what it is sorted by, and what it says."""

import re

import pytest

from synq.reporting.page import Run, facts_of, render_table


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


def facts(export=None, **more):
    names = {"model": "net", "bits": "w8a8", "method": "int8", "seed": "0"}
    top1 = {"top1": 97.0, "epoch": 2, "other": 12, "lost": 7, "gained": 1}
    kept = dict.fromkeys(("calibrated", "selected", "last", "best_on_test"), top1)
    metrics = {
        **kept,
        "teacher": {"top1": 98.0, "weight_bytes": 12_000},
        "test_images": 599,
        "images": 320,
        "image_set": "natural",
        "seconds": {"finetune": 12.3, "export": float("nan")},
        "remark": "",
        "export": export and {"packed_bytes": 2000, "onnx_bytes": 3000, "images": 320, **export},
        **more,
    }
    return facts_of(Run(names, metrics))


def test_answers_that_differ_are_told_where_there_is_a_test_set():
    assert facts()["shipped, it names"] == (
        "another class than the original on 2.00 % of the test images: of 599, 7 became wrong and "
        "1 became right"
    )
    assert "shipped, it names" not in facts(teacher={"top1": None, "weight_bytes": 12_000})


def test_what_was_measured_on_is_said():
    unknown = {"top1": None, "weight_bytes": 12_000}
    assert facts()["measured on"] == "599 test images"
    assert facts(teacher=unknown)["measured on"] == "599 held-out synthetic images"
    on = {"measured_on": "real images without labels"}
    assert facts(teacher=unknown, **on)["measured on"] == "599 real images without labels"


def test_each_runtime_that_ran_is_reported_and_no_other():
    plain = {"agreement": 100.0, "test_agreement": 99.5, "test_images": 599, "runtime_top1": 97.0}
    found = facts(plain)
    assert found["ONNX Runtime and torch agree"] == (
        "on 100.00 % of 320 images of the training, and 99.50 % of 599 test images"
    )
    assert found["top-1 of these in ONNX Runtime"] == "97.00 %"
    assert not [name for name in found if "OpenVINO" in name]
    both = {**plain, "openvino_agreement": 98.0, "openvino_test_agreement": None}
    assert facts(both)["OpenVINO and torch agree"] == "on 98.00 % of 320 images of the training"
    assert not [name for name in facts() if "agree" in name]


@pytest.mark.parametrize("scope", ["everything", "calls"])
@pytest.mark.parametrize("bits", ["w8a8", "w7a8"])
def test_integers_of_8_bits_say_what_a_processor_needs_that_clips_sums(bits, scope):
    found = facts({"agreement": 100.0}, bits=bits, scope=scope)
    told = [text for text in found.values() if "session.x64quantprecision: 1" in text]
    assert len(told) == (bits == "w8a8" and scope == "everything")


def test_what_an_image_costs_is_reported_where_it_is_known():
    work = {"multiply_adds_share": 0.996, "bit_operations": 648_323, "activation_bytes": None}
    found = facts(**work, peak_activation_bytes=8192)
    assert found["multiply-adds on codes"] == "99.6 %"
    assert found["bit operations of an image"] == "648,323"
    assert found["bytes of activations at once"] == "8,192"
    assert "bytes of all activations" not in found
