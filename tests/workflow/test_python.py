"""``synq.quantize`` gives what the workflow makes."""

from pathlib import Path

import pytest
import torch
import yaml
from embedded import NAME, ROOT
from running import HARD, RESULTS, SYNQ, TEACHER, UNLABELLED, ZEROQ, Workflow, jobs
from safetensors.torch import load_file
from snakemake.utils import update_config

import synq
from synq.config.reading import plan
from synq.io.artifacts import file_sha256, read_checkpoint, read_json
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
    changes = result.measured.changes._asdict()
    assert changes == {key: metrics["selected"][key] for key in changes}
    assert result.measured.calibrated == metrics["calibrated"]["top1"]
    assert result.measured.teacher == metrics["teacher"]["top1"]


def test_a_ladder_begins_with_the_wider_student_in_both(workflow: Workflow) -> None:
    text = "methods: {rising: {like: synq, finetune: {start: wider}}}"
    runs = f"{RESULTS}/runs/{NAME}"
    target = f"{runs}/w3a3/rising/seed0/metrics.json"
    ran = workflow.run("--", target, overlay=text)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"finetune": 2, "evaluate": 1}
    above, below = (
        workflow.root / runs / bits / "rising/seed0/student.safetensors"
        for bits in ("w4a4", "w3a3")
    )
    wanted, record = read_checkpoint(below, "student")
    assert record["from_student"] == file_sha256(above)
    # At four bits a ladder begins with the network's own weights.
    plain, _ = read_checkpoint(workflow.root / SYNQ / "student.safetensors", "student")
    begun, _ = read_checkpoint(above, "student")
    assert all(torch.equal(plain[name], begun[name]) for name in plain)

    images = ShardSet(sorted((workflow.root / HARD).glob("*.h5")), record["teacher_sha256"])
    whole = plan(tiny())
    own = dict(whole.model_sections[NAME])
    own["finetune"] = {**own["finetune"], **whole.methods["synq"].overrides.get("finetune", {})}
    result = synq.quantize(
        embedded(),
        image_shape=(1, 16, 16),
        mean=whole.models[NAME].mean,
        std=whole.models[NAME].std,
        bits="w3a3",
        method="synq",
        synthesis=own["synthesis"],
        calibration=own.get("calibration"),
        finetune={**own["finetune"], "start": "wider"},
        device="cpu",
        threads=1,
        progress=False,
    )
    assert len(result.images) == len(images)
    assert all(
        torch.equal(value, wanted[name]) for name, value in result.student.state_dict().items()
    )
    # The narrow student is made again where the wide one was.
    above.unlink()
    assert jobs(workflow.plan("--", target, overlay=text)) == {}
    slower = "methods: {rising: {like: synq, finetune: {start: wider, learning_rate: 2.0e-6}}}"
    assert jobs(workflow.plan("--", target, overlay=slower)) == {"finetune": 2, "evaluate": 1}


def test_a_student_of_the_workflow_is_loaded_with_its_teacher(finished: Workflow) -> None:
    path = finished.root / SYNQ / "student.safetensors"
    student = synq.load(path, finished.root / TEACHER)
    wanted = read_checkpoint(path, "student")[0]
    assert all(torch.equal(value, wanted[name]) for name, value in student.state_dict().items())
    with pytest.raises(synq.UserError, match="give the path of its teacher"):
        synq.load(path, embedded())
