"""What a stage loads: every job pays for it before it begins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from embedded import embedded_teacher

# What takes from 0.1 s to 2 s of a core to import, and the stages that use it.
USERS = {
    "PIL": {"collect", "evaluate", "evaluate_teacher", "export", "page", "predict", "train"},
    "h5py": {"collect", "evaluate", "export", "fetch", "finetune", "inspect", "synthesize", "train"}
    | {"borrow", "evaluate_teacher", "page", "sensitivity", "unpack", "verify"},
    "onnx": {"export"},
    "onnx_ir": {"export"},
    "onnxruntime": {"export", "predict"},
    "onnxscript": set(),  # torch imports it for an export
    "jinja2": {"page", "tables"},
    "matplotlib": {"page"},
    "pandas": {"page", "sensitivity", "tables"},
    "requests": {"fetch"},
    "scipy": set(),
    "sklearn": set(),
    "torch._dynamo": set(),  # torch's optimizers import it, and its exporter
    "torch._inductor": set(),
    "torchvision": set(),  # for its own networks and data sets
}
STAGES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "synq" / "stages").glob("*.py")
    # What several of them share is no stage.
    if path.stem not in ("__init__", "real_images")
)


def loaded(code: str, *arguments: object) -> set[str]:
    """The modules of a new process after this code."""
    words = [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps([*sys.modules]))"]
    ran = subprocess.run(
        [*words, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_what_it_uses(stage: str) -> None:
    modules = loaded(f"import synq.stages.{stage}")
    assert f"synq.stages.{stage}" in modules
    assert {name for name, users in USERS.items() if stage not in users} & modules == set()


def test_an_evaluation_on_the_digits_loads_no_more(tmp_path: Path) -> None:
    words = ["evaluate-teacher", "--teacher", embedded_teacher(tmp_path), "--dataset", "digits"]
    words += ["--output", tmp_path / "metrics.json", "--device", "cpu", "--threads", 1]
    code = "import sys; from synq import cli; assert cli.main(sys.argv[1:]) == 0"
    modules = loaded(code, *words)
    assert {name for name, users in USERS.items() if "evaluate" not in users} & modules == set()
