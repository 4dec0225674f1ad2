"""``synq.quantize`` gives what the workflow makes."""

from pathlib import Path

import pytest
import torch
import yaml
from embedded import NAME, ROOT
from running import HARD, SYNQ, TEACHER, UNLABELLED, ZEROQ, Workflow
from safetensors.torch import load_file
from snakemake.utils import update_config

import synq
from synq.config.plan import plan
from synq.io.artifacts import read_checkpoint, read_json
from synq.io.shards import ShardSet
from synq.models.digits import resnet20
from synq.models.teacher import read_teacher


def tiny() -> dict:
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    update_config(config, yaml.safe_load((ROOT / "experiments/tiny.yaml").read_text("utf-8")))
    return config


def embedded() -> torch.nn.Module:
    network = resnet20()
    weights = ROOT / "synq/models/pretrained/digits-resnet20.safetensors"
    network.load_state_dict(load_file(weights))
    return network


@pytest.mark.parametrize(
    ("method", "run", "shards"), [("synq", SYNQ, HARD), ("zeroq", ZEROQ, UNLABELLED)]
)
def test_a_student_is_that_of_the_workflow_bit_for_bit(
    finished: Workflow, tmp_path: Path, method: str, run: str, shards: str
) -> None:
    whole = plan(tiny())
    model = whole.models[NAME]
    # In a config the method's own settings win over the model's; in a call the caller's do.
    own = dict(whole.model_sections[NAME])
    for stage, values in whole.methods[method].overrides.items():
        own[stage] = {**own.get(stage, {}), **values}
    result = synq.quantize(
        embedded(),
        image_shape=(1, 16, 16),
        mean=model.mean,
        std=model.std,
        bits="w4a4",
        method=method,
        seed=0,
        device="cpu",
        threads=1,
        progress=False,
        **{stage: own[stage] for stage in ("synthesis", "calibration", "finetune", "test")},
    )
    teacher = read_teacher(finished.root / TEACHER, torch.device("cpu"))
    made = ShardSet(sorted((finished.root / shards).glob("*.h5")), teacher.sha256)
    assert torch.equal(made.images(torch.arange(len(made))), result.images.pixels.float())
    assert torch.equal(made.labels, result.images.labels)

    wanted, record = read_checkpoint(finished.root / run / "student.safetensors", "student")
    result.save(tmp_path / "student.safetensors")
    found, saved = read_checkpoint(tmp_path / "student.safetensors", "student")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for key in ("recipe", "calibration", "finetune", "history", "weight_bytes", "selected"):
        assert saved[key] == record[key]

    metrics = read_json(finished.root / run / "metrics.json", "metrics")
    assert result.measured.images == metrics["test_images"]
    assert result.measured.student == metrics["selected"]["top1"]
    assert result.measured.calibrated == metrics["calibrated"]["top1"]
    assert result.measured.teacher == metrics["teacher"]["top1"]


def test_a_student_of_the_workflow_is_loaded_with_its_teacher(finished: Workflow) -> None:
    path = finished.root / SYNQ / "student.safetensors"
    student = synq.load(path, finished.root / TEACHER)
    wanted = read_checkpoint(path, "student")[0]
    assert all(torch.equal(value, wanted[name]) for name, value in student.state_dict().items())
    with pytest.raises(synq.UserError, match="give the path of its teacher"):
        synq.load(path, embedded())
