"""What is said of a quantization, and what follows from it."""

import pytest

from synq.reporting.verdict import (
    accepted,
    markdown,
    shares,
    verdicts,
)

EXPORT = {"packed_bytes": 2000, "onnx_bytes": 3000, "agreement": 100.0}


def part(name, reason="", adds=100, role="layer", calls=1):
    return {"name": name, "role": role, "calls": calls, "multiply_adds": adds, "reason": reason}


def inspection(*parts, calls=()):
    # What the network alone would quantize; a run of a wider scope has more.
    return {
        "parts": list(parts),
        "quantized_inputs": {"multiply_adds_share": 0.3},
        "functional_layers": [{"module": module, "function": "F.linear"} for module in calls],
    }


def run(seed=0, top1=97.0, full=98.0, export=EXPORT, epochs=2, ends=0, **changes):
    return {
        "model": "net",
        "bits": "w4a3",
        "method": "synq",
        "seed": seed,
        "images": 160,
        "image_set": "hard",
        "test_images": 1000,
        "weight_bytes": 1900,
        "multiply_adds_share": 0.5,
        "remark": "",
        "teacher": {"top1": full, "weight_bytes": 12_000},
        "calibrated": {"top1": 80.0, "other": 200, "lost": 180, "gained": 0},
        "selected": {"top1": top1, "other": 30, "lost": 20, "gained": 10},
        "settings": {"calibration": {"ends_bits": ends}, "finetune": {"epochs": epochs}},
        "export": export,
        **changes,
    }


def judged(*runs, points=None, parts=(), real=()):
    (found,) = verdicts(
        runs, {"net": inspection(*parts)} if parts else {}, points=points, real=real
    )
    return found


def test_the_loss_is_a_mean_over_seeds_with_their_deviation():
    found = judged(run(0, 96.0), run(1, 97.0), run(2, 98.0))
    assert found["lost"] == pytest.approx(1)
    assert found["deviation"] == pytest.approx(1)
    assert found["words"]["lost"].startswith("lost 1.00 ± 1.00 points: top-1 is 97.00 % (mean of ")
    assert "(mean of 3 seeds) and was 98.00 %; 1000 test images" in found["words"]["lost"]
    better = judged(run(0, 98.21, 97.71))["words"]["lost"]
    assert better.startswith(
        "gained 0.50 points: top-1 is 98.21 % (mean of 1 seed) and was 97.71 %"
    )


def test_answers_that_differ_are_told_beside_the_accuracy():
    found = judged(run(), run(1))
    assert found["words"]["changed"] == (
        "names another class than the original on 3.00 % of the test images: of 1000, 20 became "
        "wrong and 10 became right (means over the seeds)"
    )
    assert f"- It {found['words']['changed']}.\n" in markdown([found])
    assert "(means" not in judged(run())["words"]["changed"]


def test_a_training_that_lowers_the_accuracy_but_not_the_agreement_is_told_so():
    def doubt(other):
        calibrated = {"top1": 99.5, "other": other, "lost": 15, "gained": 10}
        (found,) = (d for d in judged(run(calibrated=calibrated))["doubts"] if "gained" in d)
        return found

    assert "99.50 % calibrated; `finetune" in doubt(30)
    assert "calibrated, though it names another class than the original on 3.00 %, not 4.00;" in (
        doubt(40)
    )


def test_a_training_that_ends_below_what_is_not_trained_is_told_so():
    def doubts(**other):
        runs = [run(), run(1), run(method="untrained", epochs=0, **other)]
        trained, untrained = verdicts(runs, {}, points=None)
        assert not [doubt for doubt in untrained["doubts"] if "trains nothing" in doubt]
        return [doubt for doubt in trained["doubts"] if "trains nothing" in doubt]

    told = ["untrained, which trains nothing, has 99.50 %, and this 97.00 %"]
    assert doubts(top1=99.5) == told
    assert doubts(top1=97.0) == doubts(top1=97.5, bits="w8a8") == doubts(top1=97.5, model="n") == []


@pytest.mark.parametrize(
    ("points", "judgement", "ok"),
    [(1.0, "within", True), (1.5, "within", True), (0.9, "over", False), (None, "none", True)],
)
def test_a_tolerance_judges_and_none_does_not(points, judgement, ok):
    found = judged(run(), points=points)
    assert found["judgement"] == judgement
    assert accepted([found]) is ok
    assert ("- To ship: " in markdown([found])) is ok
    assert ("not judged" in found["words"]["judged"]) is (points is None)


def test_without_a_test_set_nothing_is_accepted_and_no_accuracy_is_told():
    found = judged(run(full=None), points=1.0)
    assert found["judgement"] == "unmeasured"
    assert not accepted([found])
    assert found["words"]["lost"].startswith("names another class than the original on 3.00 % of")
    assert "test images" not in markdown([found])
    assert "- Its files: `" in markdown([found])


@pytest.mark.parametrize(
    ("points", "judgement", "ok"), [(3.0, "within", True), (2.9, "unlabelled", False)]
)
def test_without_labels_no_more_is_lost_than_there_are_other_answers(points, judgement, ok):
    found = judged(run(full=None, measured_on="real images without labels"), points=points)
    assert (found["judgement"], accepted([found])) == (judgement, ok)
    text = markdown([found])
    assert "names another class than the original on 3.00 % of 1000 real images without lab" in text
    assert "the 1000 real images without labels were used to measure alone" in text
    assert ("allows (where all other answers were right before)" in text) is ok
    assert ("no label says which of the other answers were right before" in text) is not ok


def test_a_runtime_that_answers_otherwise_on_test_images_is_doubted():
    def doubts(**changes):
        found = judged(run(export={**EXPORT, **changes}), run(1))
        return [doubt for doubt in found["doubts"] if "ONNX Runtime" in doubt]

    assert doubts() == doubts(test_agreement=100.0) == []
    text = "ONNX Runtime names another class than torch on 0.50 % of the {} that were tried"
    assert doubts(test_agreement=99.5) == [text.format("test images")]
    assert doubts(agreement=99.5) == [text.format("images of the training")]


def test_a_loss_close_to_what_is_allowed_is_doubted_and_a_far_one_is_not():
    def close(found):
        return [doubt for doubt in found["doubts"] if doubt.startswith("too close")]

    (doubt,) = close(judged(run(), run(1), points=1.1))
    assert doubt.endswith("and is less than two of these from what is allowed")
    assert not close(judged(run(), run(1), points=5.0))
    assert not close(judged(run(), run(1)))


def test_what_is_quantized_is_a_share_of_the_layers_that_are_called():
    parts = [part("a"), part("b", "a gate", 300), part("c", calls=0), part("r", role="activation")]
    found = shares(inspection(*parts), 0.5)
    assert (found["layers"], found["of"], found["left"]) == (1, 2, ["b"])
    assert found["multiply_adds"] == pytest.approx(0.25)
    verdict = judged(run(), parts=parts)
    assert verdict["words"]["quantized"] == (
        "weights of 4 bits, activations of 3: 1 of 2 layers, 25 % of the layers' multiply-adds; "
        "inputs are quantized for 50 % of them, and the others read floats "
        "(`calibration.scope: calls`; `inputs` would quantize them)"
    )
    wide = judged(run(scope="everything", multiply_adds_share=0.9), parts=parts)
    assert "the others read floats (`calibration.scope: everything`)" in wide["words"]["quantized"]
    whole = judged(run(scope="inputs", multiply_adds_share=1.0), parts=parts)
    assert whole["words"]["quantized"].endswith("inputs are quantized for 100 % of them")
    assert "1 layer in full precision: b" in verdict["doubts"]


def test_a_share_is_not_rounded_up_to_all_of_it():
    parts = [part("a", adds=99_999), part("b", "a gate", 1)]
    assert "99.9 % of the layers' multiply-adds" in judged(run(), parts=parts)["words"]["quantized"]


def test_layers_that_the_run_keeps_in_full_precision_are_not_counted_as_quantized():
    calibration = {"ends_bits": 0, "keep_bits": ["fc=float"]}
    kept = run(
        float_layers=["fc"],
        widths={"weights": [15.95, 4, 32], "activations": [3, 3, 3]},
        settings={"calibration": calibration, "finetune": {"epochs": 2}},
    )
    found = judged(kept, parts=[part("a"), part("fc", adds=300)])
    assert found["words"]["quantized"].startswith(
        "weights of 4 to 32 (full precision) bits (15.95 on average), activations of 3 bits: "
        "1 of 2 layers, 25 % of the layers' multiply-adds; "
    )
    assert "1 layer in full precision: fc" in found["doubts"]


def test_weights_that_functions_use_are_not_counted_as_quantized():
    found = shares(inspection(part("a"), calls=["block"]), 1.0)
    assert (found["layers"], found["of"]) == (1, 2)
    assert found["multiply_adds"] is None
    assert found["left"] == ["block (F.linear)"]


def test_other_bits_of_the_ends_are_said():
    words = judged(run(ends=8))["words"]["quantized"]
    assert "weights of 4 bits (the first and the last layer 8)" in words


def test_the_file_to_ship_is_the_first_seed_s_and_how_much_smaller_it_is():
    found = judged(run(3, 90.0), run(4, 99.0))
    folder = "runs/net/w4a3/synq/seed3"
    assert found["ship"] == [f"{folder}/student.packed.safetensors", f"{folder}/student.onnx"]
    assert found["times_smaller"] == 6
    assert found["words"]["size"] == "6.0 times smaller: 2.0 kB packed, of 12.0 kB"
    without = judged(run(3, export=None))
    assert without["ship"] == [f"{folder}/student.safetensors"]
    assert "no such file was written" in without["words"]["size"]


def test_a_runtime_that_answers_otherwise_is_doubted():
    other = {**EXPORT, "openvino_agreement": 98.5}
    (doubt,) = [line for line in judged(run(), run(1, export=other))["doubts"] if "torch" in line]
    assert doubt.startswith("OpenVINO names another class than torch on 1.50 % of")
    assert not [line for line in judged(run())["doubts"] if "torch" in line]


@pytest.mark.parametrize(
    ("scope", "share", "reason", "whole"),
    [
        ("everything", 1.0, "", True),
        ("calls", 1.0, "", False),
        ("everything", 0.9, "", False),
        ("everything", 1.0, "a gate", False),
    ],
)
def test_a_file_whose_every_tensor_has_codes_is_said_to_be_computed_in_integers(
    scope, share, reason, whole
):
    found = judged(
        run(scope=scope, multiply_adds_share=share), parts=[part("a"), part("b", reason)]
    )
    words = found["words"]["ship"]
    assert words.endswith("student.onnx`, which computes its layers in integers") is whole


def test_what_was_never_looked_at_is_true_of_the_images():
    assert "160 synthetic images, and no real one" in judged(run())["words"]["unseen"]
    few = judged(run(image_set="few-shot"), real=["few-shot"])["words"]["unseen"]
    assert "160 real images that the user gave" in few
    assert "no real one" not in few
    assert judged(run(epochs=0))["words"]["unseen"].startswith("calibrated on")


def test_doubts_are_the_remarks_and_what_the_numbers_say():
    doubts = judged(run(remark="odd", top1=70.0, export={**EXPORT, "agreement": 99.5}))["doubts"]
    assert doubts[0] == "odd"
    assert any("one seed" in doubt for doubt in doubts)
    assert any("fine-tuning gained nothing" in doubt for doubt in doubts)
    assert any("on 0.50 %" in doubt for doubt in doubts)
    assert judged(run(0), run(1))["doubts"] == []


def less(top1, **changes):
    """A run that is right less often after its training, on 1,000 images."""
    calibrated = {"top1": 97.0, "other": 20, "lost": 15, "gained": 5}
    return run(top1=top1, calibrated=calibrated, **changes)


def test_a_training_that_lost_more_than_chance_may_is_told_with_what_to_do():
    (doubt,) = [own for own in judged(less(92.0))["doubts"] if "fine-tuning" in own]
    assert doubt.startswith("fine-tuning gained nothing: it is 92.00 % trained, and was 97.00 % ")
    assert doubt.endswith("`untrained` may be better")


def test_a_training_whose_loss_chance_may_have_made_is_not_advised_against():
    (doubt,) = [own for own in judged(less(96.9))["doubts"] if "fine-tuning" in own]
    assert doubt.startswith("fine-tuning gained nothing that 1000 test images could show: it is ")
    # 25 images at most became wrong by it, and 25 right.
    assert "known to ± 0.71 points or better" in doubt
    assert "epochs" not in doubt
    assert not [own for own in judged(less(97.0))["doubts"] if "fine-tuning" in own]


def test_what_several_seeds_differ_by_counts_too():
    alike = judged(less(96.0, seed=0), less(96.0, seed=1))["doubts"]
    assert any("known to ± 0.71" in doubt for doubt in alike)
    apart = judged(less(93.0, seed=0), less(97.0, seed=1))["doubts"]
    assert any("known to ± 2.12" in doubt for doubt in apart)


@pytest.mark.parametrize(("best", "sure"), [(97.1, False), (99.9, True)])
def test_what_is_not_trained_and_better_is_told_and_how_surely(best, sure):
    other = run(top1=best, method="untrained", epochs=0)
    found, _ = verdicts([run(), other], {}, points=None)
    (doubt,) = [own for own in found["doubts"] if own.startswith("untrained, which trains")]
    assert f"has {best:.2f} %, and this 97.00 %" in doubt
    assert ("known to" in doubt) is not sure


def test_groups_keep_the_order_of_the_runs_and_have_a_line_each():
    found = verdicts([run(bits="w8a8"), run(), run(1)], {}, points=1.0)
    assert [verdict["bits"] for verdict in found] == ["w8a8", "w4a3"]
    told = [verdict["line"] for verdict in found]
    assert told[1].startswith("net at w4a3 by synq: accepted; lost 1.00")
    assert markdown(found).count("\n## ") == 2
