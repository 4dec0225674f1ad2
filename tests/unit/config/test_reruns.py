"""Edit a module: which rules run again. By the rules' own digests and records, without Snakemake.

A rule whose input was made again runs again itself, so that what follows is not said here. Of
``inspect`` alone the findings are not trusted any more; it runs again with its teacher.
"""

import shutil

import pytest

from synq.config import fingerprint

STAGES = {
    *("fetch", "inspect", "synthesize", "collect", "finetune"),
    *("evaluate_teacher", "evaluate", "export", "tables"),
}
STUDENTS = {"finetune", "evaluate", "export"}
NETWORKS = STAGES - {"tables", "train"}

# An edit of this module, and the stages that it runs again.
EDITS = {
    # One step of the method each.
    "finetuning/losses.py": {"finetune"},
    "finetuning/objective.py": {"finetune"},
    "finetuning/training.py": {"finetune"},
    "data/lowpass.py": {"finetune"},
    "quantization/calibration.py": {"finetune"},
    "quantization/affine.py": {*STUDENTS, "inspect"},
    "quantization/quantizers.py": {*STUDENTS, "inspect"},
    "quantization/layers.py": {*STUDENTS, "inspect"},
    "quantization/activations.py": {*STUDENTS, "inspect"},
    "quantization/convert.py": {*STUDENTS, "inspect"},
    "quantization/sites.py": {*STUDENTS, "inspect"},
    "quantization/student.py": STUDENTS,
    "quantization/dataflow.py": {*STUDENTS, "inspect"},
    "quantization/kernels.py": {"finetune", "export"},
    "quantization/onnx.py": {"export"},
    "quantization/integers.py": {"export"},
    "quantization/runtime.py": {"export"},
    "quantization/packed.py": {"export"},
    "data/names.py": {"collect", "evaluate_teacher", "evaluate", "export"},
    "synthesis/synthesize.py": {"synthesize"},
    "synthesis/centres.py": {"synthesize"},
    "synthesis/patches.py": {"synthesize", "inspect"},
    "synthesis/losses.py": {"synthesize", "finetune"},  # the generator of GDFQ has them too
    "synthesis/gdfq.py": {"finetune"},
    "synthesis/parameters.py": {"synthesize"},
    "models/features.py": {"finetune", "inspect"},
    "models/judgement.py": {"synthesize", "collect", "finetune"},
    "data/datasets.py": {"collect", "evaluate_teacher", "evaluate", "export"},
    "reporting/accuracy.py": {"evaluate_teacher", "evaluate"},
    "reporting/tables.py": {"tables"},
    "models/teacher.py": NETWORKS,
    # What changes no number.
    "reporting/inspection.py": {"inspect"},
    "quantization/coverage.py": {"inspect"},
    "quantization/trace.py": {"inspect"},
    "config/published.py": {"tables"},
    "config/published.csv": {"tables"},
    "config/finetune.py": set(),  # by value: test_recorded.py
    "config/synthesis.py": set(),
    "config/model.py": set(),
    "config/plan.py": set(),
    "config/pytorchcv_table.py": set(),
    "runtime/progress.py": set(),
    "runtime/devices.py": set(),
    "io/download.py": set(),
    "io/disk.py": set(),
    "errors.py": set(),
    "cli.py": set(),
    "stages/verify.py": set(),
    "stages/predict.py": set(),
    "stages/unpack.py": set(),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    copy = tmp_path / "synq"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=ignored)
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


def digests():
    return {stage: fingerprint.stage_digest(stage) for stage in STAGES}


def rerun(package, path):
    before = digests()
    text = "resnet0,synq,w4a4,1.00\n" if path.endswith(".csv") else "\nCHANGED = 1\n"
    with open(package / path, "a", encoding="utf-8") as file:
        file.write(text)
    return {stage for stage, digest in digests().items() if digest != before[stage]}


@pytest.mark.parametrize("path", EDITS)
def test_an_edited_module_runs_these_stages_again(package, path):
    assert rerun(package, path) == EDITS[path]


@pytest.mark.parametrize("path", ["config/finetune.py", "config/synthesis.py"])
def test_a_new_setting_in_the_code_runs_no_stage_again(package, path):
    before = digests()
    file = package / path
    text = file.read_text("utf-8")
    line = "    iterations: int" if "synthesis" in path else "    epochs: int"
    assert line in text
    added = '    brightness: float = setting(1.0, "new")\n'
    file.write_text(text.replace(line, added + line), "utf-8")
    assert digests() == before


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_counts_its_own_code(package, stage):
    assert stage in rerun(package, f"stages/{stage}.py")


def test_what_does_not_count_exists_and_says_why():
    for name, reason in fingerprint.UNCOUNTED.items():
        assert reason
        assert fingerprint.path(name), name
