"""Each layer alone as a command, and students whose widths are chosen from it."""

import json
import shutil

import pandas
import pytest
import torch
from small_results import RUN, SHARDS, TEACHER

import synq
from synq import cli
from synq.config.calibration import Calibration
from synq.config.fingerprint import factory_digest, stage_digest
from synq.finetuning.resume import begun
from synq.io.artifacts import read_checkpoint, read_json, write_checkpoint
from synq.io.shards import ShardSet
from synq.models.teacher import read_teacher
from synq.quantization.convert import layers_of, packed_bytes
from synq.quantization.student import read_student
from synq.stages import finetune, sensitivity

CPU = torch.device("cpu")
pytestmark = pytest.mark.xdist_group("small results")  # which one process makes, once

PLACE = "models/net/sensitivity/w3a2/mine/seed0.json"
NAMES = ["--method", "mine", "--image-set", "hard", "--seed", "0", "--device", "cpu"]


def words(made, *more, bits="w3a2"):
    shards = ["--shard-folder", str(made), "--shards", *SHARDS]
    return ["--teacher", str(made / TEACHER), *shards, "--bits", bits, *NAMES, *map(str, more)]


@pytest.fixture(scope="module")
def measured(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("measured") / "results"
    shutil.copytree(made, root)
    assert cli.main(["sensitivity", *words(made, "--output", root / PLACE)]) == 0
    return root


def test_every_layer_is_in_the_files_the_most_sensitive_first(measured):
    found = read_json(measured / PLACE, "sensitivity")
    losses = [layer["divergence"] for layer in found["layers"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0
    rows = {layer["layer"]: layer for layer in found["layers"]}
    network = read_teacher(measured / TEACHER, CPU)
    student, _ = read_student(measured / RUN / "student.safetensors", network)
    assert rows.keys() == layers_of(student).keys()
    last, first = rows["output"], rows["features.init_block.conv"]
    assert (last["parameters"], last["bytes"], last["multiply_adds"]) == (640, 240, 640)
    # What the network reads stays in full precision, and so does what a pooling gives.
    assert first["input_divergence"] is last["input_divergence"] is None
    inner = rows["features.stage1.unit1.body.conv2.conv"]
    assert inner["input_divergence"] > 0
    assert first["divergence"] == first["weight_divergence"]
    table = pandas.read_csv((measured / PLACE).with_suffix(".csv"))
    assert table["layer"].tolist() == [layer["layer"] for layer in found["layers"]]
    text = (measured / PLACE).with_suffix(".md").read_text("utf-8")
    assert text.splitlines()[2].startswith(f"| {table['layer'][0]} ")
    assert "net, w3a2, mine, seed 0: each layer alone" in text
    assert found["images"] == 6


def test_from_python_it_is_the_same_on_the_same_images(measured, tmp_path):
    wanted = read_json(measured / PLACE, "sensitivity")
    network = read_teacher(measured / TEACHER, CPU)
    shards = ShardSet([measured / shard for shard in SHARDS], network.sha256)
    images = synq.ImageSet(shards.images(torch.arange(len(shards))), shards.labels)
    about = {"image_shape": network.image_shape, "mean": network.mean, "std": network.std}
    few = {"device": "cpu", "progress": False, "method": "none", "bits": "w3a2"}
    found = synq.sensitivity(network.model, images, **about, **few)
    assert json.loads(json.dumps(found.record["calibration"])) == wanted["calibration"]
    assert found.layers == wanted["layers"]
    text = (measured / PLACE).with_suffix(".md").read_text("utf-8")
    assert str(found).splitlines()[:-1] == text.splitlines()[:-1]
    found.draw(tmp_path / "layers.svg")
    assert "<svg" in (tmp_path / "layers.svg").read_text("utf-8")
    wide = synq.sensitivity(network.model, images, **about, **{**few, "bits": "w8a8"})
    assert wide.layers[0]["divergence"] < found.layers[0]["divergence"]
    with pytest.raises(synq.UserError, match="the images are"):
        synq.sensitivity(
            network.model, synq.ImageSet(torch.rand(2, 1, 9, 9), images.labels[:2]), **about, **few
        )


def test_a_folder_with_it_is_verified(measured, monkeypatch, capsys):
    monkeypatch.chdir(measured.parent)
    assert cli.main(["verify", "results"]) == 0
    record = read_json(measured / PLACE, "sensitivity")
    path = measured / PLACE
    whole = path.read_text("utf-8")
    try:
        path.write_text(whole.replace(record["layers"][0]["layer"], "another"), "utf-8")
        assert cli.main(["verify", "results"]) == 1
        assert f"results/{PLACE} does not match its checksum" in capsys.readouterr().out
    finally:
        path.write_text(whole, "utf-8")


def test_a_figure_is_the_same_file_for_the_same_numbers(measured, tmp_path):
    paths = [tmp_path / "one.svg", tmp_path / "other.svg"]
    for path in paths:
        arguments = ["--sensitivity", str(measured / PLACE), "--output", str(path)]
        assert cli.main(["sensitivity-figure", *arguments]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    text = paths[0].read_text("utf-8")
    assert "features.init_block.conv" in text
    assert "<svg" in text


def trained(made, root, *more):
    output = ["--output", root / "student.safetensors", "--snapshots", root / "all.safetensors"]
    arguments = words(made, *output, "--epochs", "1", "--holdout", "0", "--cam", "off", *more)
    return cli.main(["finetune", *arguments])


def loaded(made, root):
    network = read_teacher(made / TEACHER, CPU)
    return read_student(root / "student.safetensors", network)


def test_a_budget_is_kept_and_the_student_is_made_of_its_file_alone(made, tmp_path, capsys):
    kept = ["output=8", "features.init_block.conv=float", "features.stage1.*.activ=4"]
    assert trained(made, tmp_path, "--budget", "125 kB", "--keep-bits", *kept) == 0
    assert "layers by the bits of their weights" in capsys.readouterr().out
    student, record = loaded(made, tmp_path)
    assert packed_bytes(student) == record["weight_bytes"] <= 125_000
    # The largest layer alone takes 4.6 kB with every bit.
    assert record["weight_bytes"] > 120_000
    bits = {name: layer.weight_quantizer.bits for name, layer in layers_of(student).items()}
    assert (bits["output"], bits["features.init_block.conv"]) == (8, 32)
    assert all(record["recipe"]["keep"][name] == own for name, own in bits.items())
    average, least, most = record["widths"]["weights"]
    assert (least, most) == (min(bits.values()), 32)
    counts = {name: layer.weight.numel() for name, layer in layers_of(student).items()}
    assert average == sum(counts[n] * b for n, b in bits.items()) / sum(counts.values())
    assert record["widths"]["activations"][1:] == [2, 4]
    with torch.no_grad():
        assert torch.isfinite(student(torch.zeros(1, 1, 16, 16))).all()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--keep-bits", "outpt=8"], "names 'outpt', but no layer and no activation of the"),
        (["--budget", "20 kB"], "calibration.budget is 20 kB, and the smallest size with widths"),
        (["--average-bits", "3", "--keep-bits", "*=8"], "leave no layer whose width could be"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_training(made, tmp_path, capsys, flags, line):
    capsys.readouterr()
    assert trained(made, tmp_path, *flags) == 2
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_keeps_the_widths_that_it_began_with(made, tmp_path, monkeypatch):
    assert trained(made, tmp_path, "--average-bits", "3") == 0
    tensors, record = read_checkpoint(tmp_path / "student.safetensors", "student")
    # As if it had been killed after its first student.
    end = ("selected", "last", "history", "weight_bytes", "widths", "epoch", "kind", "format")
    own = {key: value for key, value in record.items() if key not in end}
    place = tmp_path / "student.work" / "epoch-0000.safetensors"
    code = stage_digest("finetune") + factory_digest(read_teacher(made / TEACHER, CPU).factory)
    write_checkpoint(place, "student", tensors, {**own, "code": code, "epoch": 0})
    assert begun(tmp_path / "student.safetensors", {**own, "recipe": None}, code) == own["recipe"]
    assert begun(tmp_path / "student.safetensors", {**own, "seed": 1}, code) is None
    assert begun(tmp_path / "other.safetensors", own, code) is None

    def not_again(*_):
        raise AssertionError

    monkeypatch.setattr(finetune, "losses_alone", not_again)
    assert trained(made, tmp_path, "--average-bits", "3") == 0
    assert loaded(made, tmp_path)[1]["recipe"] == record["recipe"]


def test_an_average_is_not_exceeded(made, tmp_path):
    assert trained(made, tmp_path, "--average-bits", "2.5", "--widths", "2", "4", "8") == 0
    student, record = loaded(made, tmp_path)
    assert 2.45 < record["widths"]["weights"][0] <= 2.5
    bits = {layer.weight_quantizer.bits for layer in layers_of(student).values()}
    assert bits <= {2, 4, 8}
    # Those of activations are the run's.
    assert record["widths"]["activations"] == [2, 2, 2]


def test_sensitivities_have_the_settings_of_the_calibration():
    assert cli.COMMANDS["sensitivity"].settings == {"calibration": Calibration}
    assert callable(sensitivity.draw)
