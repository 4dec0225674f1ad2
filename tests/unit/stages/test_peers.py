"""The methods of other papers, each as the plan has it, with a budget of seconds."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from embedded import NAME, ROOT, embedded_teacher

from synq.config.finetune import Finetune
from synq.config.plan import shard_classes
from synq.config.reading import plan
from synq.errors import ConfigError
from synq.io.artifacts import read_checkpoint
from synq.io.shards import ShardSet
from synq.models.teacher import read_teacher
from synq.quantization.convert import weight_quantizers
from synq.quantization.student import begin_with, read_student, student_at, student_tensors
from synq.stages import finetune as stage
from synq.stages.finetune import TERMINATED, finetune_student, training_images
from synq.stages.synthesize import synthesize_shard

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
BUDGET = {
    "synthesis": {"images_per_class": 4, "iterations": 2, "classes_per_shard": 10},
    "finetune": {"epochs": 1, "passes": 1, "holdout": 0.25, "reconstruct_steps": 3},
}


def planned(method):
    own = {**CONFIG["models"][NAME], "finetune": {}, "calibration": {"range_images": 16}}
    own["finetune"] = {**CONFIG["models"][NAME]["finetune"], **BUDGET["finetune"]}
    own["synthesis"] = BUDGET["synthesis"]
    grid = {**CONFIG["grid"], "methods": [method]}
    return plan({**CONFIG, "models": {NAME: own}, "grid": grid})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The teacher, and the shards of each method."""
    folder = tmp_path_factory.mktemp("made")
    teacher = embedded_teacher(folder)
    for method in ("genie", "gdfq"):
        whole = planned(method)
        image_set = whole.methods[method].images
        for shard in whole.shards(NAME, image_set):
            synthesize_shard(
                teacher=teacher,
                output=folder / method / f"{shard}.h5",
                classes=shard_classes(shard),
                seed=0,
                settings=whole.image_settings(NAME, image_set),
                device="cpu",
                threads=1,
            )
    return folder


def run(made, method, output, **changes):
    whole = planned(method)
    settings = whole.settings("finetune", NAME, method=method)
    return finetune_student(
        teacher=made / "teacher.safetensors",
        shards=[Path(path.name) for path in sorted((made / method).iterdir())],
        shard_folder=made / method,
        bits="w3a3",
        method=method,
        image_set=whole.methods[method].images,
        seed=0,
        calibration=whole.settings("calibration", NAME, method=method),
        settings=dataclasses.replace(settings, **changes),
        output=output / "student.safetensors",
        snapshots=output / "students.safetensors",
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize(("method", "epochs"), [("genie", [0]), ("gdfq", [0, 1])])
def test_a_method_makes_a_student(made, tmp_path, method, epochs, capfd):
    assert run(made, method, tmp_path) == 0
    network = read_teacher(made / "teacher.safetensors", torch.device("cpu"))
    student, record = read_student(tmp_path / "student.safetensors", network)
    assert [entry["epoch"] for entry in record["history"]] == epochs
    with torch.no_grad():
        assert torch.isfinite(student(torch.zeros(2, *network.image_shape))).all()
    printed = capfd.readouterr().out
    assert ("reconstruction 11/11, output: error" in printed) == (method == "genie")
    assert not (tmp_path / "student.work").exists()
    if method == "genie":
        for layer in weight_quantizers(student).values():
            assert torch.equal(layer.quantized_weight(), layer.weight)


@pytest.mark.parametrize("after", [4, 20], ids=["first parts", "later parts"])
def test_a_terminated_reconstruction_goes_on_to_the_same_student(
    made, tmp_path, after, monkeypatch, capfd
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(made, "genie", whole, epochs=1) == 0

    @contextlib.contextmanager
    def terminated():
        asked = iter(range(10_000))
        yield lambda: next(asked) >= after

    with monkeypatch.context() as patch:
        patch.setattr(stage, "terminations", terminated)
        assert run(made, "genie", parts, epochs=1) == TERMINATED
    assert [path.name for path in (parts / "student.work").iterdir()] == [
        "reconstruction.safetensors"
    ]
    capfd.readouterr()
    assert run(made, "genie", parts, epochs=1) == 0
    # Three steps a part, before each of which it is asked.
    printed = capfd.readouterr().out
    assert f"going on after {after // 3} parts of the reconstruction" in printed
    assert "from the beginning" not in printed
    for name in ("student.safetensors", "students.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_leaves_take_the_place_of_some_images_in_each_pass_of_the_training(made):
    network = read_teacher(made / "teacher.safetensors", torch.device("cpu"))
    shards = ShardSet(sorted((made / "genie").iterdir()), network.sha256)
    without = Finetune(holdout=0.25, lowpass="off")
    plain = training_images(network, shards, without, 0)
    settings = dataclasses.replace(without, leaves=0.4)
    images, again = (training_images(network, shards, settings, 0) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    passes = [images.one_pass(generator) for _ in range(2)]
    for rows in passes:
        assert len(rows) == len(rows.unique()) == len(plain.train) == 30
        assert (rows >= len(shards)).sum() == 12
        assert not set(rows.tolist()) & set(images.held_out.tolist())
    assert set(passes[0].tolist()) != set(passes[1].tolist())
    # What is calibrated and held out are synthetic images alone.
    assert torch.equal(images.train, plain.train)
    assert torch.equal(images.held_out, plain.held_out)

    rows = torch.tensor([3, 40, 12, 51])
    ((seen, labels),) = images.batches([rows])
    ((twin, _),) = again.batches([rows])
    assert torch.equal(seen, twin)
    ((own, named),) = plain.batches([rows[[0, 2]]])
    assert torch.equal(seen[[0, 2]], own)
    assert torch.equal(labels[[0, 2]], named)
    # They are drawn with the run's seed, and labelled by the network.
    ((other, _),) = training_images(network, shards, settings, 1).batches([rows])
    assert not torch.equal(other[1], seen[1])
    with torch.no_grad():
        answers = network.model(seen[[1, 3]]).argmax(1)
    assert torch.equal(labels[[1, 3]], answers)


def test_a_rung_without_the_student_above_is_refused(made, tmp_path):
    with pytest.raises(ConfigError, match=r"give --from-student, a student of w4a4$"):
        run(made, "gdfq", tmp_path, start="wider")
    assert not list(tmp_path.iterdir())


def test_a_rung_begins_with_the_weights_above_and_with_nothing_else(made, tmp_path):
    assert run(made, "gdfq", tmp_path, select="last") == 0
    network = read_teacher(made / "teacher.safetensors", torch.device("cpu"))
    calibration = planned("gdfq").settings("calibration", NAME, method="gdfq")
    student, _ = student_at(network, "w2a2", calibration, torch.device("cpu"))
    before = student_tensors(student)
    path = tmp_path / "student.safetensors"
    begin_with(student, path, network)
    above, _ = read_checkpoint(path, "student")
    parameters = {name for name, _ in network.model.named_parameters()}
    assert not all(torch.equal(before[name], above[name]) for name in parameters)
    for name, value in student_tensors(student).items():
        assert torch.equal(value, (above if name in parameters else before)[name])
