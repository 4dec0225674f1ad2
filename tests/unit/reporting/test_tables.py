import math

import pytest

from synq.reporting.tables import ablation_table, accuracy_table, readable, remarks


def metrics(seed, selected, bits="w4a4", seconds=10.0, method="synq", published="", remark=""):
    return {
        "model": "net",
        "bits": bits,
        "method": method,
        "published": published,
        "remark": remark,
        "seed": seed,
        "images": 160,
        "test_images": 200,
        "weight_bytes": 1500,
        "teacher": {"top1": 98.0, "weight_bytes": 9000},
        "calibrated": {"top1": 80.0},
        "last": {"top1": selected - 1},
        "selected": {"top1": selected, "other": 100 - selected, "lost": 9, "gained": 1},
        "best_on_test": {"top1": selected + 1},
        "seconds": {"finetune": seconds},
    }


def test_answers_that_differ_are_a_share_of_the_test_images():
    table = accuracy_table([metrics(0, 90.0), metrics(1, 92.0), metrics(2, 94.0)])
    (row,) = table.to_dict("records")
    assert (row["other_answers_mean"], row["other_answers_std"]) == pytest.approx((4.0, 1.0))


def test_mean_and_sample_deviation_over_seeds():
    table = accuracy_table([metrics(0, 90.0), metrics(1, 92.0), metrics(2, 94.0)])
    (row,) = table.to_dict("records")
    assert row["seeds"] == 3
    assert row["selected_mean"] == pytest.approx(92)
    assert row["selected_std"] == pytest.approx(2)
    assert row["full_precision"] == 98
    assert row["weight_bytes"] == 1500
    assert row["finetune_seconds"] == pytest.approx(10)


def test_exports_are_shown_with_the_worst_agreement_of_the_seeds():
    export = {"onnx_bytes": 227_700, "agreement": 100.0}
    other = {"onnx_bytes": 227_700, "agreement": 99.375}
    entries = [{**metrics(0, 90.0), "export": export}, {**metrics(1, 92.0), "export": other}]
    # A model that is not exported, in the same table.
    table = accuracy_table([*entries, metrics(0, 80.0, bits="w3a3")])
    shown = readable(table)
    assert shown["onnx kB"].tolist() == ["227.7", ""]
    assert shown["onnx agrees"].tolist() == ["99.38", ""]
    assert "onnx kB" not in readable(accuracy_table([metrics(0, 90.0)]))


def test_top1_in_the_runtime_is_a_mean_as_that_in_torch_is():
    runs = [
        {**metrics(seed, 0), "export": {"onnx_bytes": 9, "agreement": 100.0, "runtime_top1": top1}}
        for seed, top1 in enumerate((90.0, 91.0, 95.0))
    ]
    table = accuracy_table([*runs, metrics(0, 80.0, bits="w3a3")])
    shown = readable(table)
    assert shown["onnx top-1"].tolist() == ["92.00 ± 2.65", ""]
    assert "runtime top1" not in shown
    assert table["runtime_top1_std"].tolist()[0] == pytest.approx(2.6458, abs=1e-4)


def test_what_the_runtime_computes_and_how_much_reads_codes_is_told():
    work = {"scope": "everything", "multiply_adds_share": 0.987, "bit_operations": 5000}
    work |= {"peak_activation_bytes": 70}
    where = {"name": "conv.input", "share": 0.125}
    export = {"onnx_bytes": 9, "agreement": 100.0, "test_agreement": 97.5, "runtime_top1": 90.25}
    entry = {**metrics(0, 90.0), **work, "export": {**export, "first_difference": where}}
    table = accuracy_table([entry, metrics(0, 80.0, bits="w3a3")])
    shown = readable(table)
    assert shown["onnx agrees"].tolist() == ["97.50", ""]
    assert shown["onnx top-1"].tolist() == ["90.25", ""]
    assert shown["codes"].tolist() == ["everything, 99 %", "calls"]
    assert table["bit_operations"].tolist()[0] == 5000
    assert table["peak_activation_bytes"].tolist()[0] == 70
    assert "openvino agrees" not in shown
    (line,) = remarks(table)
    assert "other codes begin at conv.input (0.12 % of them)" in line


def test_a_second_runtime_is_shown_where_there_is_one():
    export = {"onnx_bytes": 9, "agreement": 100.0, "openvino_agreement": 99.5}
    runs = [metrics(0, 90.0), metrics(1, 91.0), metrics(0, 80.0, bits="w3a3")]
    exports = [export, {**export, "openvino_agreement": 98.5}, None]
    entries = [{**run, "export": own} for run, own in zip(runs, exports, strict=True)]
    assert readable(accuracy_table(entries))["openvino agrees"].tolist() == ["98.50", ""]
    entries[0]["export"] = {**export, "openvino_test_agreement": 97.0}
    assert readable(accuracy_table(entries))["openvino agrees"].tolist() == ["97.00", ""]


def test_sizes_are_those_of_the_packed_files_where_there_are_any():
    entries = [{**metrics(seed, 90.0), "export": {"packed_bytes": 1612}} for seed in (0, 1)]
    table = accuracy_table([*entries, metrics(0, 80.0, bits="w3a3")])
    shown = readable(table)
    assert shown["packed kB"].tolist() == ["1.6", "~1.5"]
    assert "kB" not in shown
    assert "onnx kB" not in shown
    assert "packed kB" not in readable(accuracy_table([metrics(0, 90.0)]))


def test_other_bits_than_those_of_the_name_have_a_column():
    plain = [metrics(seed, 90.0) for seed in (0, 1)]
    assert not [name for name in readable(accuracy_table(plain)) if name.startswith("bits of")]
    widths = [{"weights": [3.9, 2, 8], "activations": [4, 4, 4]}]
    widths += [{"weights": [4.0, 3, 6], "activations": [4, 4, 4]}]
    mixed = [metrics(seed, 90.0, method="mixed") | {"widths": widths[seed]} for seed in (0, 1)]
    table = accuracy_table([*plain, *mixed])
    assert readable(table)["bits of weights"].tolist() == ["4", "3.95 (2 to 8)"]
    assert "bits of activations" not in readable(table)
    assert table["weights_bits_average"].tolist() == pytest.approx([4, 3.95])
    kept = metrics(0, 90.0, "w3a3") | {"widths": {"weights": [3, 3, 3], "activations": [9, 3, 32]}}
    shown = readable(accuracy_table([kept]))
    assert shown["bits of activations"].tolist() == ["9.00 (3 to 32)"]
    # A uniform width that is not the name's is shown, too.
    other = metrics(0, 90.0, "w3a3") | {"widths": {"weights": [8, 8, 8], "activations": [3, 3, 3]}}
    assert readable(accuracy_table([other]))["bits of weights"].tolist() == ["8"]


def test_rows_keep_the_order_of_the_grid_and_one_seed_has_no_deviation():
    table = accuracy_table([metrics(0, 90.0), metrics(0, 80.0, bits="w3a3")])
    assert table["bits"].tolist() == ["w4a4", "w3a3"]
    assert math.isnan(table["selected_std"][0])
    assert readable(table)["selected"].tolist() == ["90.00", "80.00"]


def test_unknown_seconds_are_an_empty_cell():
    table = accuracy_table([metrics(0, 90.0, seconds=math.nan)])
    assert readable(table)["finetune s"].tolist() == [""]


def test_readable_table_says_mean_and_deviation():
    table = accuracy_table([metrics(0, 90.0), metrics(1, 92.0)])
    shown = readable(table)
    assert shown["selected"].tolist() == ["91.00 ± 1.41"]
    assert shown["kB"].tolist() == ["1.5"]


def test_published_numbers_stand_beside_ours_where_the_benchmark_is_theirs():
    ours = [
        metrics(0, 90.0, published="resnet20-cifar10"),
        metrics(0, 90.0, published="resnet20-cifar10", method="synq-paper"),
        metrics(0, 90.0, published="resnet20-cifar10", method="mine"),
        metrics(0, 90.0, published="resnet20-cifar10", bits="w5a5"),
    ]
    shown = readable(accuracy_table(ours))
    assert shown["published"].tolist() == ["92.76", "92.76", "", ""]
    assert "published" not in readable(accuracy_table([metrics(0, 90.0)]))


def test_ablation_takes_differences_seed_by_seed():
    full = [metrics(0, 90.0), metrics(1, 80.0)]
    other = [metrics(0, 88.0, method="none"), metrics(1, 79.0, method="none")]
    table = ablation_table([*other, *full], "synq").set_index("method")
    assert table.loc["none", "selected_difference_mean"] == pytest.approx(-1.5)
    # The seeds differ by ten points; their differences by one.
    assert table.loc["none", "selected_difference_std"] == pytest.approx(0.5**0.5)
    assert table.loc["synq", "last_difference_mean"] == 0
    shown = readable(table.reset_index())
    assert shown["selected difference"].tolist() == ["-1.50 ± 0.71", "+0.00 ± 0.00"]


def test_ablation_leaves_a_seed_without_its_partner_out():
    entries = [metrics(0, 90.0), metrics(0, 88.0, method="none"), metrics(1, 50.0, method="none")]
    table = ablation_table(entries, "synq").set_index("method")
    assert table.loc["none", "selected_difference_mean"] == pytest.approx(-2)
    assert readable(table.reset_index())["seeds"].tolist() == [1, 2]


def test_a_warning_is_told_once_a_model():
    entries = [
        metrics(seed, 90.0, bits, remark="odd") for seed in (0, 1) for bits in ("w3a3", "w4a4")
    ]
    assert remarks(accuracy_table(entries)) == ["net: odd"]
    assert remarks(accuracy_table([metrics(0, 90.0)])) == []
    late = [metrics(0, 90.0), metrics(1, 90.0, remark="odd")]
    assert remarks(accuracy_table(late)) == ["net: odd"]


def test_without_a_test_set_there_is_no_full_precision():
    entry = metrics(0, 90.0) | {"teacher": {"top1": None, "weight_bytes": 9000}}
    assert readable(accuracy_table([entry]))["full precision"].tolist() == [""]


def with_ceiling(*entries):
    ceilings = {"plus": "plus-real", "other": "nowhere"}
    return accuracy_table(entries, ceilings)


def test_the_image_gap_is_the_ceilings_last_minus_the_own_seed_by_seed():
    table = with_ceiling(
        metrics(0, 80.0, method="plus"),
        metrics(1, 60.0, method="plus"),
        metrics(2, 10.0, method="plus"),  # without its ceiling
        metrics(0, 83.0, method="plus-real"),
        metrics(1, 62.0, method="plus-real"),
        metrics(3, 99.0, method="plus-real"),
        metrics(0, 50.0, method="other"),
        metrics(0, 50.0, method="plus", bits="w3a3"),
    )
    rows = table.set_index(["bits", "method"])
    assert rows.loc[("w4a4", "plus"), "image_gap_mean"] == pytest.approx(2.5)
    assert rows.loc[("w4a4", "plus"), "image_gap_std"] == pytest.approx(0.5**0.5)
    shown = readable(table)
    assert shown["image gap"].tolist() == ["+2.50 ± 0.71", "", "", ""]


def test_without_a_ceiling_in_the_table_there_is_no_image_gap():
    table = with_ceiling(metrics(0, 80.0, method="plus"), metrics(0, 50.0, method="other"))
    assert "image gap" not in readable(table)
    assert "image_gap_mean" not in table
    assert "image gap" not in readable(accuracy_table([metrics(0, 80.0, method="plus")]))
