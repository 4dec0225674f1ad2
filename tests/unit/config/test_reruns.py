"""Edit a module: which rules run again. By the rules' own digests and records, without Snakemake.

A rule whose input was made again runs again itself, so that what follows is not said here. Of
``inspect`` alone the findings are not trusted any more; it runs again with its teacher.
"""

import shutil

import pytest

from synq.config import fingerprint

STAGES = {
    *("fetch", "inspect", "synthesize", "collect", "borrow", "finetune", "sensitivity"),
    *("evaluate_teacher", "evaluate", "export", "tables", "page"),
}
STUDENTS = {"finetune", "evaluate", "export", "page"}
QUANTIZED = {*STUDENTS, "sensitivity"}
NETWORKS = STAGES - {"tables", "train"}

# An edit of this module, and the stages that it runs again.
EDITS = {
    # One step of the method each.
    "finetuning/losses.py": {"finetune"},
    "finetuning/objective.py": {"finetune"},
    "finetuning/training.py": {"finetune"},
    "finetuning/rates.py": {"finetune"},
    "finetuning/reconstruction.py": {"finetune"},
    "finetuning/average.py": {"finetune"},
    "quantization/adaround.py": {"finetune"},
    "data/lowpass.py": {"synthesize", "finetune", "page"},
    "quantization/calibration.py": {"finetune", "sensitivity"},
    "quantization/sensitivity.py": {"finetune", "sensitivity"},
    "quantization/mixed.py": {"finetune", "sensitivity"},
    "quantization/affine.py": {*QUANTIZED, "inspect"},
    "quantization/quantizers.py": {*QUANTIZED, "inspect"},
    "quantization/layers.py": {*QUANTIZED, "inspect"},
    "quantization/activations.py": {*QUANTIZED, "inspect"},
    "quantization/convert.py": {*QUANTIZED, "inspect"},
    "quantization/sites.py": {*QUANTIZED, "inspect"},
    "quantization/routes.py": {*QUANTIZED, "inspect"},
    "quantization/student.py": QUANTIZED,
    "quantization/dataflow.py": {*QUANTIZED, "inspect"},
    "quantization/kernels.py": {"finetune", "export"},
    "quantization/onnx.py": {"export"},
    "quantization/narrow.py": {"export"},
    "quantization/integers.py": {"export"},
    "quantization/runtime.py": {"export"},
    "quantization/packed.py": {"export"},
    "quantization/tensorrt.py": {"export"},
    "data/names.py": {"collect", "evaluate_teacher", "evaluate", "export"},
    "synthesis/synthesize.py": {"synthesize"},
    "synthesis/centres.py": {"synthesize"},
    "synthesis/resume.py": {"synthesize"},
    "synthesis/patches.py": {"synthesize", "inspect"},
    "synthesis/losses.py": {"synthesize", "finetune"},  # the generator of GDFQ has them too
    "synthesis/gdfq.py": {"finetune"},
    "synthesis/generators.py": {"synthesize", "finetune"},
    "synthesis/canvas.py": {"synthesize"},
    "synthesis/conditional.py": {"synthesize"},
    "synthesis/swing.py": {"synthesize"},
    "synthesis/parameters.py": {"synthesize", "finetune"},  # spectra of dead leaves, too
    "synthesis/leaves.py": {"synthesize", "finetune"},
    "models/features.py": {"finetune", "inspect"},
    "models/judgement.py": {"synthesize", "collect", "borrow", "finetune"},
    "data/refit.py": {"borrow"},
    "data/datasets.py": {"collect", "evaluate_teacher", "evaluate", "export"},
    "stages/real_images.py": {"collect", "evaluate_teacher", "evaluate", "export"},
    "data/spectrum.py": {"evaluate_teacher", "evaluate", "page"},
    "reporting/accuracy.py": {"evaluate_teacher", "evaluate"},
    "reporting/tables.py": {"tables"},
    "reporting/verdict.py": {"tables", "page"},
    "reporting/doubts.py": {"tables", "page"},
    "reporting/figures.py": {"page"},
    "reporting/layers.py": {"page"},
    "reporting/figures.mplstyle": {"page"},
    "reporting/page.html": {"page"},
    "reporting/page.js": {"page"},
    "reporting/page.css": {"tables", "page"},
    "reporting/sort.js": {"tables", "page"},
    "reporting/page.py": {"tables", "page"},
    "models/teacher.py": NETWORKS,
    # What changes no number.
    "reporting/inspection.py": {"inspect"},
    "quantization/coverage.py": {"inspect", "sensitivity"},
    "quantization/trace.py": {"inspect", "sensitivity"},
    "reporting/sensitivity.py": {"sensitivity", "page"},
    "config/published.py": {"tables"},
    "config/published.csv": {"tables"},
    "config/finetune.py": set(),  # by value: test_recorded.py
    "config/synthesis.py": set(),
    "config/model.py": set(),
    "config/plan.py": set(),
    "config/reading.py": set(),
    "config/jobs.py": set(),
    "config/targets.py": set(),
    "config/pytorchcv_table.py": set(),
    "runtime/progress.py": set(),
    "runtime/devices.py": set(),
    "io/download.py": set(),
    "io/disk.py": set(),
    "errors.py": set(),
    "cli.py": set(),
    "commands.py": set(),
    "api/run.py": set(),
    "stages/verify.py": set(),
    "stages/verdict.py": set(),
    "stages/status.py": set(),
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
