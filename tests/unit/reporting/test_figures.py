"""Figures of made numbers: what is drawn is what was given."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy
import pytest

from synq.data.spectrum import radial_amplitude
from synq.reporting import figures
from synq.reporting.gallery import (
    losses,
    of_ablation,
    of_attention,
    of_confusion,
    of_difficulty,
    of_images,
    of_run,
    of_sensitivity,
    overall,
)


def texts(figure):
    """All words of a figure, whose file is XML."""
    text = figures.svg(figure)
    ElementTree.fromstring(text)
    return re.findall(r">([^<>\n]+)</text>", text)


def test_accuracy_has_each_method_with_its_deviation_and_leaves_gaps_out():
    points = {"synq": [(98.0, 0.5), None, (90.0, 1.0)], "best": [(99.0, 0.1), (98.0, 0.1), None]}
    figure = figures.accuracy_by_bits(["w4a4", "w3a3", "w2a2"], points, full=99.5, real=["best"])
    (axes,) = figure.axes
    bars = {container.get_label(): container for container in axes.containers}
    assert bars["synq"].lines[0].get_ydata().tolist() == [98, 90]
    assert bars["synq"].lines[0].get_xdata().tolist() == [0, 2]
    assert bars["best (real images)"].lines[0].get_linestyle() == "--"
    (low, high) = bars["synq"].lines[2][0].get_segments()[1]
    assert (low[1], high[1]) == (89, 91)
    assert {"W2A2", "full precision", "synq"} <= set(texts(figure))


def test_no_line_is_drawn_of_a_full_precision_that_is_not_known():
    figure = figures.accuracy_by_bits(["w4a4"], {"synq": [(98.0, 0.0)]}, full=None)
    assert "full precision" not in texts(figure)


def test_the_front_has_what_nothing_beats():
    points = [(3.0, 90.0), (1.0, 70.0), (2.0, 60.0), (2.0, 80.0), (4.0, 90.0)]
    assert figures.pareto(points) == [(1.0, 70.0), (2.0, 80.0), (3.0, 90.0)]
    figure = figures.size_and_accuracy(
        [("synq", "W4A4", 187.0, 99.0), ("synq", "W2A2", 120.0, 97.0)], full=(1095.0, 99.5)
    )
    assert {"W4A4", "W2A2", "full precision"} <= set(texts(figure))


def test_the_amplitude_of_a_wave_is_at_its_frequency():
    wave = numpy.cos(2 * numpy.pi * 4 * numpy.arange(16) / 16)
    images = numpy.broadcast_to(wave, (2, 1, 16, 16)) + 7
    frequencies, amplitudes = radial_amplitude(images)
    assert frequencies[amplitudes.argmax()] == pytest.approx(4 / 16)
    others = numpy.delete(amplitudes, amplitudes.argmax())
    assert others == pytest.approx(numpy.zeros(len(others)))
    assert "noise" in texts(figures.spectra({"noise": (frequencies, amplitudes + 1)}))


def test_images_are_a_row_a_kind_and_a_column_a_class():
    images = numpy.random.default_rng(0).random((3, 1, 4, 4))
    figure = figures.picture_rows({"synthetic": images, "filtered": images / 2}, ["a", "b", "c"])
    (axes,) = figure.axes
    drawn = numpy.asarray(axes.images[0].get_array())
    # The second row and column begin behind four pixels and a gap, which is transparent.
    assert drawn[5:9, 5:9, 0] == pytest.approx(images[1, 0] / 2)
    assert (drawn[..., 3] == 0).sum() == 9 * 14 - 6 * 16
    assert {"synthetic", "filtered", "a", "b", "c"} <= set(texts(figure))


def test_training_curves_begin_where_a_term_does():
    figure = figures.training_curves({"held_out": [0.5, 0.4], "cam": [None, 0.1], "off": [0, 0]})
    curves = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert curves == {"held out": [0, 1], "cam": [1]}
    texts(figure)


def test_of_many_classes_those_that_lost_most_are_shown():
    names = [str(number) for number in range(100)]
    lost = [0.0] * 100
    lost[42] = 30.0
    figure = figures.losses_of_classes(names, {"calibrated": [9.0] * 100, "shipped": lost})
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == "42"
    assert len(labels) == figures.LABELLED
    assert "the 20 that lost most" in texts(figure)


def test_seconds_stand_behind_one_another_and_unknown_ones_are_nothing():
    figure = figures.stage_seconds(["a", "b"], {"images": [2, 3], "export": [1, float("nan")]})
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert bars == [(0, 2), (0, 3), (2, 1), (3, 0)]
    texts(figure)


def test_the_same_numbers_give_the_same_file():
    first, second = (figures.svg(figures.training_curves({"total": [2, 1]})) for _ in range(2))
    assert first == second


def test_an_inlined_figure_has_its_own_ids_and_the_page_s_ink():
    text = figures.svg(figures.spectra({"noise": (numpy.array([0.1]), numpy.array([1.0]))}))
    placed = figures.inline(text, "one", 'noise & "more" <')
    root = ElementTree.fromstring(placed)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(name.startswith("one-") for name in ids)
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', placed)
    assert used
    assert set(used) <= set(ids)
    assert "currentColor" in placed
    assert figures.INK not in placed
    assert root.get("aria-label") == 'noise & "more" <'
    assert root.get("width") is None


def test_a_class_has_lost_what_it_had_right_before():
    found = {"images": [10, 4, 0], "teacher": [9, 4, 0], "calibrated": [5, 4, 0]}
    lost = losses({**found, "selected": [10, 3, 0]})
    assert lost == {"calibrated": [40, 0, 0], "shipped": [-10, 25, 0]}
    # Without a test set the original is right on all of them.
    assert losses({**found, "teacher": None, "selected": [10, 4, 0]})["calibrated"] == [50, 0, 0]


def run(seed, bits="w4a4", full=99.0):
    return {
        **{"model": "net", "bits": bits, "method": "synq", "seed": seed, "image_set": "hard"},
        "teacher": {"top1": full, "weight_bytes": 9000},
        "selected": {"top1": 95.0 + seed, "epoch": 1},
        "weight_bytes": 1500,
        "seconds": {"finetune": 10.0},
        "epochs": [{"epoch": 0, "held_out": 2.0, "top1": 90.0}, {"epoch": 1, "held_out": 1.0}],
        "per_class": {"images": [5], "teacher": [5], "calibrated": [3], "selected": [4]},
    }


def test_what_is_said_below_a_figure_is_true_of_the_runs():
    drawn = {d.name: d for d in overall([run(0), run(1), run(0, "w2a2")], [])}
    assert set(drawn) == {"accuracy-net", "size-net", "seconds-net"}
    assert "over the seeds" in drawn["accuracy-net"].caption
    (alone, *_) = overall([run(0, full=None)], [])
    assert "One seed" in alone.caption
    assert "agreement with the original [%]" in texts(alone.figure)


def test_a_run_has_its_curves_and_classes_where_there_are_any():
    assert [d.name for d in of_run("r", run(0))] == ["r-training", "r-classes"]
    untrained = {**run(0), "epochs": [{"epoch": 0, "held_out": 2.0}], "per_class": None}
    assert list(of_run("r", untrained)) == []


def test_maps_stand_below_their_images_and_say_whose_they_are():
    images = numpy.random.default_rng(0).random((2, 4, 8, 8))  # of four channels: the first
    drawn = of_attention(run(3), images, {"original": images[:, :1]}, ["0", "1"])
    assert "the student W4A4 by synq of seed 3, before (calibrated) and after" in drawn.caption
    untrained = {**run(3), "selected": {"top1": 95.0, "epoch": 0}}
    other = of_attention(untrained, images, {"original": images[:, :1]}, ["0", "1"])
    assert "shipped as it was calibrated" in other.caption
    assert {"image", "original"} <= set(texts(drawn.figure))


@pytest.mark.parametrize("real", [True, False])
def test_images_that_are_not_filtered_are_not_said_to_be(real):
    images = numpy.random.default_rng(0).random((2, 1, 8, 8))
    spectrum, pictures = of_images(run(0), images, None, ["0", "1"], real=real)
    assert "filtered" not in pictures.caption
    assert pictures.caption.startswith("Real" if real else "Synthetic")
    assert "filtered" not in texts(spectrum.figure)


def test_difficulties_are_counted_beside_their_threshold():
    figure = figures.difficulties(numpy.array([0.01, 0.02, 0.62]), 0.3)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert (heights[0], heights[12], sum(heights)) == (2, 1, 3)
    assert "threshold 0.3" in texts(figure)


def test_errors_stand_in_the_order_of_the_network_with_the_names_of_its_layers():
    errors = {"calibrated": {"first": 0.2, "last": 0.4}, "shipped": {"first": 0.1, "last": 0.0}}
    figure = figures.errors_of_layers(errors)
    lines = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert lines == {"calibrated": [0.2, 0.4], "shipped": [0.1, 0.0]}
    assert {"first", "last"} <= set(texts(figure))
    many = {f"layer{number}": 0.1 for number in range(500)}
    assert len(figures.errors_of_layers({"shipped": many}).axes[0].get_yticks()) <= 60


def test_confusions_are_a_square_of_few_classes_and_the_largest_pairs_of_many():
    few = numpy.array([[5.0, 2.0], [-1.0, 0.0]])
    figure = figures.confusions(few, ["a", "b"])
    assert numpy.asarray(figure.axes[0].images[0].get_array()).tolist() == [[0, 2], [-1, 0]]
    assert {"+2.0", "-1.0"} <= set(texts(figure))
    many = numpy.zeros((50, 50))
    many[7, 3], many[3, 3] = 4, 9
    figure = figures.confusions(many, [str(number) for number in range(50)])
    assert texts(figure).count("7 as 3") == 1
    assert len(figure.axes[0].patches) <= figures.LABELLED


def test_a_confusion_is_the_mean_over_the_seeds_less_that_of_full_precision():
    counted = [{"0": {"1": 3}}, {"0": {"1": 1}, "1": {"0": 1}}]
    per_class = {"images": [5, 5]}
    runs = [
        {**run(seed), "confusion": own, "per_class": per_class, "test_images": 10}
        for seed, own in enumerate(counted)
    ]
    (drawn,) = of_confusion([*runs, run(2)], {"0": {"1": 1}})
    found = numpy.asarray(drawn.figure.axes[0].images[0].get_array())
    assert found.tolist() == [[0, 1], [0.5, 0]]
    assert "mean of 2 seeds" in drawn.caption


def test_classes_are_called_as_the_export_has_it():
    names = ["cat", "a very long name of a class"]
    export = {"packed_bytes": 9, "names": names}
    more = {"confusion": {"0": {"1": 3}}, "per_class": {**run(0)["per_class"], "images": [5, 5]}}
    more["per_class"] |= {"teacher": [5, 4], "calibrated": [5, 4], "selected": [5, 4]}
    (drawn,) = of_confusion([{**run(0), **more, "test_images": 10, "export": export}], {})
    assert {"cat", "a very long nam…"} <= set(texts(drawn.figure))
    (*_, lost) = of_run("r", {**run(0), **more, "export": export})
    assert "cat" in texts(lost.figure)
    # Of a run without an export, or of an older one, they have their numbers.
    for export in (None, {"packed_bytes": 9}):
        (drawn,) = of_confusion([{**run(0), **more, "test_images": 10, "export": export}], {})
        assert {"0", "1"} <= set(texts(drawn.figure))


@pytest.mark.parametrize(("labels", "weight"), [("easy", 1.0), ("easy", 0.0), ("all", 1.0)])
def test_a_threshold_that_plays_no_part_is_said_to_play_none(labels, weight):
    settings = {"difficulty_threshold": 0.5, "hard_labels": labels, "ce_weight": weight}
    drawn = of_difficulty({**run(0), "settings": {"finetune": settings}}, numpy.zeros(3))
    assert ("plays no part" in drawn.caption) == ((labels, weight) != ("easy", 1.0))


def test_an_ablation_is_drawn_against_the_method_that_the_table_names():
    common = {"model": "net", "bits": "w4a4", "compared_with": "synq"}
    rows = [
        {**common, "method": name, "selected_difference_mean": mean, "selected_difference_std": std}
        for name, mean, std in [("none", 0.0, math.nan), ("synq", 0.0, 0.0), ("cam", -2.0, 1.0)]
    ]
    (drawn,) = of_ablation(rows)
    assert [bar.get_width() for bar in drawn.figure.axes[0].patches] == [0, -2]
    assert "without parts of synq" in drawn.title
    assert list(of_ablation(rows[1:2])) == []


def test_a_sensitivity_says_how_many_layers_it_shows():
    layer = {"divergence": 0.2, "weight_divergence": 0.1}
    found = {
        **{"model": "net", "bits": "w2a2", "method": "synq", "seed": 0, "image_set": "hard"},
        "images": 8,
        "layers": [{"layer": f"layer{number}", **layer} for number in range(70)],
    }
    drawn = of_sensitivity(found)
    assert "the 60 most sensitive of 70 layers" in drawn.caption
    assert "layer59" in texts(drawn.figure)
