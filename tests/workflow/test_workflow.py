"""The workflow as people run it: real snakemake processes on the tiny overlay.

The overlay is run once a session, in a copy of the clone; every test changes a copy of that.
"""

import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorchcv
import torch
from file_server import serving
from running import (
    EVERYTHING,
    HARD,
    RESULTS,
    ROOT,
    SYNQ,
    TABLE,
    TEACHER,
    UNLABELLED,
    ZEROQ,
    Workflow,
    append,
    copied,
    jobs,
    process,
    shards,
)

from synq import cli
from synq.config import pytorchcv_table as zoo
from synq.models.build import build

# The finished run.


def test_one_command_makes_every_result(finished: Workflow) -> None:
    assert jobs(finished.first) == EVERYTHING
    wanted = [
        TABLE,
        f"{RESULTS}/tables/accuracy.csv",
        f"{SYNQ}/metrics.json",
        f"{ZEROQ}/metrics.json",
        f"{SYNQ}/student.onnx",
        f"{SYNQ}/student.packed.safetensors",
    ]
    assert [path for path in wanted if not (finished.root / path).is_file()] == []
    lines = finished.first.splitlines()
    own = [line for line in lines if not line.startswith(("Complete log", "Elapsed time"))]
    page = f"{RESULTS}/index.html"
    assert own[-1] == f"The accuracy of every run of this config is in {TABLE}, all of it in {page}"


def test_every_job_is_listed_with_the_files_that_it_has_left(finished: Workflow) -> None:
    listed = json.loads(finished.bytes(f"{RESULTS}/jobs.json"))["jobs"]
    rules = [job["rule"] for job in listed]
    assert {**{rule: rules.count(rule) for rule in rules}, "all": 1} == EVERYTHING
    paths = [job[key] for job in listed for key in ("output", "log", "seconds")]
    assert [path for path in paths if not (finished.root / RESULTS / path).is_file()] == []


def test_the_page_of_a_finished_run_is_complete(finished: Workflow) -> None:
    page = finished.bytes(f"{RESULTS}/index.html").decode()
    assert "Not complete" not in page
    assert "experiments/tiny.yaml" in page
    figures = {path.name for path in (finished.root / RESULTS / "figures").iterdir()}
    assert {"accuracy-digits-resnet20.svg", "images-digits-resnet20-hard.svg"} <= figures


def test_the_report_of_snakemake_says_what_the_run_says(workflow: Workflow) -> None:
    # The same runs, one of them as a method at a width of its own.
    grid = 'grid={"methods": ["synq", "zeroq@w4a4"]}'
    ran = workflow.run("--report", "report.zip", "--config", grid)
    assert ran.returncode == 0, ran.stdout
    with zipfile.ZipFile(workflow.root / "report.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("report.html"))
        text = archive.read(name).decode()
        files = {Path(name).name for name in archive.namelist()}
    lines = json.loads(workflow.bytes(f"{RESULTS}/tables/verdict.json"))["verdicts"]
    for verdict in lines:
        assert f"{abs(verdict['lost']):.2f}" in text
    assert "by synq, zeroq at w4a4," in " ".join(text.split())
    assert "with 1 seed." in text
    assert "No real image was used to synthesize, calibrate or train." in text
    assert {"index.html", "accuracy.html", "accuracy-digits-resnet20.svg"} <= files


def test_the_tables_have_a_row_for_each_run(finished: Workflow) -> None:
    with open(finished.root / f"{RESULTS}/tables/accuracy.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = [(row["model"], row["bits"], row["method"], row["seeds"]) for row in rows]
    assert keys == [
        ("digits-resnet20", "w4a4", "synq", "1"),
        ("digits-resnet20", "w4a4", "zeroq", "1"),
    ]
    markdown = (finished.root / TABLE).read_text(encoding="utf-8").splitlines()
    # Remarks may follow the table: whether fine-tuning helps a toy depends on the machine.
    lines = itertools.takewhile(bool, markdown)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:4] == ["model", "bits", "method", "seeds"]
    assert [tuple(row[:4]) for row in cells[2:]] == keys
    packed = finished.bytes(f"{SYNQ}/student.packed.safetensors")
    assert float(rows[0]["packed_bytes"]) == len(packed)
    assert f"{len(packed) / 1000:.1f}" == cells[2][cells[0].index("packed kB")]
    metrics = json.loads(finished.bytes(f"{SYNQ}/metrics.json"))
    for name in ("calibrated", "last", "selected", "best_on_test"):
        assert float(rows[0][f"{name}_mean"]) == pytest.approx(metrics[name]["top1"], abs=1e-4)


def test_metrics_hold_all_accuracies_of_a_run(finished: Workflow) -> None:
    metrics = json.loads(finished.bytes(f"{SYNQ}/metrics.json"))
    top1 = {entry["epoch"]: entry["top1"] for entry in metrics["epochs"]}
    assert list(top1) == [0, 1]
    for name, epoch in (("calibrated", 0), ("last", 1)):
        entry = metrics["epochs"][epoch]
        found = metrics[name]
        assert (found["epoch"], found["top1"]) == (epoch, top1[epoch])
        assert found["held_out"] == pytest.approx(entry["held_out"])
        # What is lost and gained, image by image, is what top-1 is lower by.
        images, full = metrics["test_images"], metrics["teacher"]["top1"]
        assert full - found["top1"] == pytest.approx(
            100 * (found["lost"] - found["gained"]) / images
        )
        assert found["lost"] + found["gained"] <= found["other"] <= images
    assert metrics["selected"]["top1"] == top1[metrics["selected"]["epoch"]]
    assert metrics["best_on_test"]["top1"] == max(top1.values())
    assert 0 < metrics["teacher"]["top1"] <= 100
    assert metrics["weight_bytes"] < metrics["teacher"]["weight_bytes"]


# What remakes what.


def test_a_second_run_does_nothing(workflow: Workflow) -> None:
    before = {path: path.stat().st_mtime_ns for path in _files(workflow)}
    ran = workflow.run()
    assert ran.returncode == 0
    assert "Nothing to be done" in ran.stdout
    assert {path: path.stat().st_mtime_ns for path in _files(workflow)} == before


def _files(workflow: Workflow) -> list[Path]:
    return [path for path in (workflow.root / RESULTS).rglob("*") if path.is_file()]


def test_a_deleted_result_is_remade_and_nothing_else(workflow: Workflow) -> None:
    (workflow.root / SYNQ / "metrics.json").unlink()
    assert jobs(workflow.plan()) == {"evaluate": 1, "accuracy": 1, "page": 1, "all": 1}


def test_the_table_can_be_asked_for_by_its_name(workflow: Workflow) -> None:
    before = workflow.bytes(TABLE)
    (workflow.root / TABLE).unlink()
    ran = workflow.run("--", TABLE)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"accuracy": 1}
    assert workflow.bytes(TABLE) == before


def test_a_learning_rate_of_a_model_remakes_its_students_alone(workflow: Workflow) -> None:
    overlay = "models: {digits-resnet20: {finetune: {learning_rate: 2.0e-6}}}"
    planned = jobs(workflow.plan(overlay=overlay))
    assert planned == {
        "finetune": 2,
        "evaluate": 2,
        "export": 2,
        "accuracy": 1,
        "page": 1,
        "all": 1,
    }


def test_a_setting_of_an_image_set_remakes_that_set_and_its_users(workflow: Workflow) -> None:
    text = workflow.plan(overlay="image_sets: {hard: {target_weight: 3.0}}")
    assert jobs(text) == {
        "synthesize": 2,
        "finetune": 1,
        "evaluate": 1,
        "export": 1,
        "accuracy": 1,
        "page": 1,
        "all": 1,
    }
    assert shards(text) == {("hard", "classes-0000-0004"), ("hard", "classes-0005-0009")}


STUDENTS = {"finetune": 2, "evaluate": 2, "export": 2, "accuracy": 1, "page": 1, "all": 1}


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("finetuning/losses.py", STUDENTS),
        ("quantization/convert.py", STUDENTS),
        ("config/published.py", {"accuracy": 1, "page": 1, "all": 1}),
        ("reporting/inspection.py", {}),
    ],
)
def test_edited_code_remakes_what_it_makes(
    workflow: Workflow, module: str, wanted: dict[str, int]
) -> None:
    append(workflow.root / "synq" / module, "\nCHANGED = True\n")
    assert jobs(workflow.plan()) == wanted


def test_what_changes_no_result_remakes_nothing(workflow: Workflow) -> None:
    append(workflow.root / "synq/finetuning/training.py", "\n# A comment.\n")
    for module in ("errors", "runtime/progress", "io/download"):
        append(workflow.root / f"synq/{module}.py", "\nCHANGED = True\n")
    for stage in ("finetune", "synthesis"):  # a new setting, at its default
        file = workflow.root / f"synq/config/{stage}.py"
        text = file.read_text("utf-8")
        first = re.search(r"^    \w+: int = setting", text, re.MULTILINE)
        assert first
        added = f'    brightness: float = setting(1.0, "new")\n{first[0]}'
        file.write_text(text.replace(first[0], added, 1), "utf-8")
    append(workflow.root / "config.yaml", "\n# A comment.\n")
    for path in (TEACHER, f"{HARD}/classes-0000-0004.h5"):
        os.utime(workflow.root / path)  # touched, with the same content
    overlay = """
    models: {digits-resnet20: {weights: where/the/same/file/is/now.safetensors}}
    image_sets: {unused: {target: labels}}
    methods: {unused: {images: unused, text: not in the grid, finetune: {epochs: 3}}}
    """
    text = workflow.plan(overlay=overlay)
    assert jobs(text) == {}, text


def test_results_of_a_moved_folder_are_remarked_until_they_are_touched(workflow: Workflow) -> None:
    remark = "the results are there and no record of their settings"
    assert remark not in workflow.run().stdout
    (workflow.root / RESULTS).rename(workflow.root / "results/moved")
    moved = "results: ./results//moved/"
    ran = workflow.run(overlay=moved)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {}
    assert ran.stdout.count(remark) == 1
    changed = f"{moved}\nfinetune: {{momentum: 0.5}}"
    assert jobs(workflow.plan(overlay=changed)) == {}
    assert workflow.run("--forceall", "--touch", overlay=moved).returncode == 0
    assert remark not in workflow.run(overlay=moved).stdout
    assert jobs(workflow.plan(overlay=changed))["finetune"] == 2


# By file name.


def test_a_run_outside_the_grid_is_made_by_its_file_name(workflow: Workflow) -> None:
    target = f"{RESULTS}/runs/digits-resnet20/w5a3/synq/seed7/metrics.json"
    assert jobs(workflow.plan("--", target)) == {"synthesize": 2, "finetune": 1, "evaluate": 1}


def test_a_sensitivity_is_made_by_its_file_name(workflow: Workflow) -> None:
    target = f"{RESULTS}/models/digits-resnet20/sensitivity/w5a3/synq/seed0"
    wanted = {"sensitivity": 1, "sensitivity_figure": 1}
    assert jobs(workflow.plan("--", f"{target}.svg", f"{target}.md")) == wanted
    other = f"{RESULTS}/models/digits-resnet20/sensitivity/w5a3/synq/seed7.csv"
    assert jobs(workflow.plan("--", other)) == {"synthesize": 2, "sensitivity": 1}


@pytest.mark.parametrize(
    "run",
    [
        "digits-resnet20/w4a4/unknown/seed0",
        "unknown/w4a4/synq/seed0",
        "digits-resnet20/w9a4/synq/seed0",
    ],
    ids=["method", "model", "bits"],
)
def test_an_unknown_name_in_a_file_name_has_no_rule(workflow: Workflow, run: str) -> None:
    target = f"{RESULTS}/runs/{run}/metrics.json"
    ran = workflow.run("-n", "--", target)
    assert ran.returncode == 1
    assert f"No rule to produce {target}" in ran.stdout


@pytest.mark.long
def test_every_kind_of_images_and_ranges_goes_through_the_workflow(workflow: Workflow) -> None:
    """Real images, ranges from a generator, images from calibration centres."""
    methods = ["few-shot", "synq-released", "texq-like"]
    targets = [f"{RESULTS}/runs/digits-resnet20/w4a4/{name}/seed0/metrics.json" for name in methods]
    ran = workflow.run("--", *targets)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"collect": 2, "synthesize": 4, "finetune": 3, "evaluate": 3}
    sources = {}
    for method, target in zip(methods, targets, strict=True):
        metrics = json.loads(workflow.bytes(target))
        assert metrics["method"] == method
        sources[method] = metrics["images"], metrics["settings"]["calibration"]["range_source"]
    assert sources == {
        "few-shot": (40, "images"),
        "synq-released": (40, "generator"),
        "texq-like": (40, "images"),
    }


def test_methods_with_the_same_image_set_share_its_shards(workflow: Workflow) -> None:
    planned = jobs(workflow.plan(overlay="grid: {methods: [synq, none, filter, cam]}"))
    assert planned == {
        "finetune": 3,
        "evaluate": 3,
        "export": 3,
        "accuracy": 1,
        "page": 1,
        "all": 1,
    }


def test_an_ablation_in_the_config_is_a_table_of_its_own(workflow: Workflow) -> None:
    ran = workflow.run(overlay="ablation: {full: synq, methods: [zeroq]}")
    assert ran.returncode == 0, ran.stdout
    # The page shows the table, too.
    assert jobs(ran.stdout) == {"ablation": 1, "page": 1, "all": 1}
    rows = workflow.bytes(f"{RESULTS}/tables/ablation.csv").decode().splitlines()
    (full,) = [row for row in csv.DictReader(rows) if row["method"] == "synq"]
    assert float(full["last_difference_mean"]) == 0
    assert r"\toprule" in workflow.bytes(f"{RESULTS}/tables/ablation.tex").decode()


@pytest.mark.long
def test_without_a_test_set_agreement_with_the_teacher_is_measured(
    workflow: Workflow, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = "models: {digits-resnet20: {test: {dataset: none}}}"
    # The files for a runtime know how images of the test set are cropped.
    again = {"evaluate_teacher": 1, "evaluate": 2, "export": 2, "accuracy": 1, "page": 1, "all": 1}
    assert jobs(workflow.plan(overlay=nothing)) == again
    ran = workflow.run(overlay=f"{nothing}\ngrid: {{methods: [synq]}}")
    assert ran.returncode == 0, ran.stdout
    assert json.loads(workflow.bytes(f"{RESULTS}/jobs.json"))["again"]
    assert cli.main(["status", str(workflow.root / RESULTS)]) == 0
    assert "waiting" not in capsys.readouterr().out
    metrics = json.loads(workflow.bytes(f"{SYNQ}/metrics.json"))
    assert metrics["teacher"]["top1"] is None
    assert metrics["test_images"] == 10
    assert 0 <= metrics["last"]["top1"] <= 100
    # One line for all runs, or one for each where more is told of one of them.
    _, *remarks = workflow.bytes(TABLE).decode().strip().split("\n\n")
    assert remarks
    assert any("agreement with the teacher on synthetic images" in line for line in remarks)


def test_shards_are_named_after_their_classes(workflow: Workflow) -> None:
    overlay = "image_sets: {hard: {classes_per_shard: 1}, unlabelled: {classes_per_shard: 10}}"
    text = workflow.plan("synthetic", overlay=overlay)
    singles = {("hard", f"class-{number:04d}") for number in range(10)}
    assert shards(text) == {*singles, ("unlabelled", "classes-0000-0009")}


# What people get wrong.


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        (
            "finetune: {learning_rat: 0.1}",
            "finetune.learning_rat is not a setting; did you mean learning_rate?",
        ),
        (
            "finetun: {epochs: 1}",
            "finetun is not a section of the config; did you mean finetune?",
        ),
        (
            "models: {digits-resnet20: {finetune: {learning_rate: 1e-5s}}}",
            "models.digits-resnet20.finetune.learning_rate is '1e-5s', not a number",
        ),
        ("grid: {bits: [w9a4]}", "grid.bits[0] is 'w9a4'; weights of 9 bits"),
        ("grid: {methods: [sinq]}", "grid.methods names 'sinq'; did you mean synq?"),
        (
            "grid: {bits: [w4a4],\n bits: [w2a2]}",
            "OVERLAY: grid.bits stands in lines 1 and 2, and the first one is not read",
        ),
    ],
    ids=["key", "section", "number", "bits", "method", "twice"],
)
def test_a_mistake_in_the_config_is_one_line(
    clone: Workflow, overlay: str, message: str, tmp_path: Path
) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    ran = workflow.run(overlay=overlay)
    assert ran.returncode == 2, ran.stdout
    lines = ran.stdout.strip().splitlines()
    message = message.replace("OVERLAY", str(workflow.root / "overlay.yaml"))
    assert lines[-1].startswith(f"config error: {message}")
    assert sum("error" in line.lower() for line in lines) == 1
    assert "Traceback" not in ran.stdout
    assert not (workflow.root / "results").exists()


PLAIN = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(30),
                         nn.Flatten())
"""


def test_a_method_that_the_network_does_not_fit_is_one_line_before_any_image(
    clone: Workflow, tmp_path: Path
) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    (workflow.root / "own_nets.py").write_text(PLAIN, encoding="utf-8")
    state = {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}
    batchnorm = torch.nn.BatchNorm2d(4).state_dict()
    torch.save(state | {f"1.{key}": value for key, value in batchnorm.items()}, tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    overlay = f"""
    grid: {{models: [own], methods: [synq, transformer]}}
    models:
      own: {{source: python, factory: 'own_nets:build', weights: '{tmp_path / "w.pth"}',
            sha256: {sha256}, classes: 4, image_size: 32, mean: [0, 0, 0], std: [1, 1, 1]}}
    """
    ran = workflow.run(overlay=overlay)
    assert ran.returncode == 1, ran.stdout
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("synq: error:")]
    assert line.startswith("synq: error: own does not fit: method transformer has synthesis.prior:")
    assert not (workflow.root / RESULTS / "synthetic").exists()
    log = workflow.bytes(f"{RESULTS}/logs/inspect/own.log").decode()
    assert log.splitlines() == [line]


def test_a_later_method_that_the_network_does_not_fit_is_one_line_too(workflow: Workflow) -> None:
    ran = workflow.run("-n", overlay="grid: {methods: [synq, transformer]}")
    assert ran.returncode == 2, ran.stdout
    line = ran.stdout.strip().splitlines()[-1]
    assert line.startswith(
        "config error: digits-resnet20 does not fit: method transformer has synthesis.prior: "
        "patches, but "
    )
    # Of another teacher nothing is known yet.
    overlay = "{grid: {methods: [synq, transformer]}, models: {digits-resnet20: {mean: [0.4]}}}"
    assert jobs(workflow.plan(overlay=overlay))["inspect"] == 1


# What goes wrong.


@pytest.mark.long
def test_a_truncated_shard_is_named_and_deleting_it_mends_the_run(workflow: Workflow) -> None:
    name = f"{UNLABELLED}/classes-0005-0009.h5"
    shard, student = workflow.root / name, workflow.root / ZEROQ / "student.safetensors"
    whole, trained = shard.read_bytes(), student.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    ran = workflow.run("-R", "finetune", "--", f"{ZEROQ}/metrics.json")
    assert ran.returncode == 1
    line = f"synq: error: {name} is truncated or altered"
    log = workflow.bytes(f"{RESULTS}/logs/finetune/digits-resnet20/w4a4/zeroq/seed0.log").decode()
    assert [entry.startswith(line) for entry in log.splitlines()] == [True]
    assert sum(entry.startswith(line) for entry in ran.stdout.splitlines()) == 1
    assert not student.exists()

    shard.unlink()
    ran = workflow.run("--", f"{ZEROQ}/student.safetensors", f"{ZEROQ}/metrics.json")
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"synthesize": 1, "finetune": 1, "evaluate": 1}
    assert shard.read_bytes() == whole
    assert student.read_bytes() == trained


@pytest.mark.parametrize(
    ("overlay", "wanted"),
    [
        (
            "{image_sets: {hard: {target_weight: 3.0}},"
            " methods: {zeroq: {calibration: {clip_ratio: 0.9}}}}",
            {
                "synthesize": 2,
                "finetune": 2,
                "evaluate": 2,
                "export": 2,
                "accuracy": 1,
                "page": 1,
                "all": 1,
            },
        ),
        ("models: {digits-resnet20: {mean: [0.4]}}", EVERYTHING),
    ],
    ids=["shards and students", "teacher"],
)
def test_killed_jobs_of_changed_settings_are_planned_again(
    workflow: Workflow,
    overlay: str,
    wanted: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Snakemake removes what a killed job had written before; old results must not pass for new."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'synq' in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = workflow.run(overlay=overlay, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    assert jobs(ran.stdout) == wanted
    # Those that did not begin have left what they had made before, and are not done.
    assert "tables/accuracy.md" in json.loads(workflow.bytes(f"{RESULTS}/jobs.json"))["again"]
    assert cli.main(["status", str(workflow.root / RESULTS)]) == 0
    assert "accuracy          0 of 1" in capsys.readouterr().out
    text = workflow.plan(overlay=overlay)
    assert jobs(text) == wanted, text
    # The table alone, asked for by its name, misses no file: it is there, made by another recipe.
    text = workflow.plan("--", TABLE, overlay=overlay)
    others = {rule: count for rule, count in wanted.items() if rule not in ("all", "page")}
    assert jobs(text) == others, text


# Commands without snakemake.


def test_the_printed_command_makes_the_same_student_by_hand(workflow: Workflow) -> None:
    command = workflow.command("finetune", "--method synq")
    assert f"--output {SYNQ}/student.safetensors" in command
    ran = process(["bash", "-c", command.replace(SYNQ, "byhand")], workflow.root, {})
    assert ran.returncode == 0, ran.stdout
    for name in ("student.safetensors", "students.safetensors"):
        assert workflow.bytes(f"byhand/{name}") == workflow.bytes(f"{SYNQ}/{name}")


# A command that sends itself a signal in its third optimizer step, whatever the machine's speed: in
# the second epoch, of two batches.
STOPPED = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_pre_hook
from synq.cli import main

steps = []

def hook(*_):
    steps.append(0)
    if len(steps) == 3:
        os.kill(os.getpid(), int(sys.argv[1]))

register_optimizer_step_pre_hook(hook)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_fine_tuning_goes_on_and_ends_in_the_same_student(
    workflow: Workflow, sent: signal.Signals
) -> None:
    arguments = [*workflow.arguments("finetune", "--method synq")[1:], "--threads", "1"]
    arguments[arguments.index("--epochs") + 1] = "3"

    def run(folder: str, start: list[str]) -> tuple[int, str]:
        words = [word.replace(SYNQ, folder) for word in arguments]
        ran = process([sys.executable, *start, *words], workflow.root, {})
        return ran.returncode, ran.stdout

    code, text = run("whole", ["-m", "synq"])
    assert code == 0, text
    code, text = run("parts", ["-c", STOPPED, str(int(sent))])
    # SIGTERM is obeyed at the end of a step, which is saved; 143 is how a shell says it.
    assert code == (143 if sent == signal.SIGTERM else -sent), text
    parts, whole = workflow.root / "parts", workflow.root / "whole"
    assert not (parts / "student.safetensors").exists()
    code, text = run("parts", ["-m", "synq"])
    assert code == 0, text
    steps = " and 1 steps" if sent == signal.SIGTERM else ""
    assert f"going on after epoch 1{steps}" in text.splitlines()
    for name in ("student.safetensors", "students.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert not (parts / "student.work").exists()


# Reports every file that is opened: by Python, by h5py and by safetensors, which have their own
# ways. Of scikit-learn and Pillow nothing can be used.
GUARD = """
import json, os, sys

opened = []

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))

def refuse(*_, **__):
    raise AssertionError("a data set was opened")

def reported(function):
    def call(name, *arguments, **more):
        if isinstance(name, (str, os.PathLike)):  # else a file that Python opened
            opened.append(os.fspath(name))
        return function(name, *arguments, **more)
    return call

import h5py, PIL.Image, safetensors
h5py.File = reported(h5py.File)
safetensors.safe_open = reported(safetensors.safe_open)
PIL.Image.open = refuse
sys.modules["sklearn"] = sys.modules["sklearn.datasets"] = None
sys.addaudithook(hook)

from synq.cli import main
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump(opened[:-1], file)
sys.exit(code)
"""
DATA = (".bin", ".csv", ".gz", ".h5", ".jpg", ".npy", ".npz", ".pkl", ".png", ".pt", ".safetensors")


def test_synthesis_opens_no_file_but_the_teacher(workflow: Workflow, tmp_path: Path) -> None:
    name = f"{HARD}/classes-0000-0004.h5"
    arguments = workflow.arguments("synthesize", name)[1:]
    arguments[arguments.index("--output") + 1] = "again/shard.h5"
    report = tmp_path / "opened.json"
    words = [sys.executable, "-c", GUARD, str(report), *arguments, "--threads", "1"]
    ran = process(words, workflow.root, {})
    assert ran.returncode == 0, ran.stdout
    paths = {(workflow.root / path).resolve() for path in json.loads(report.read_text())}
    read = {
        re.sub(r"\.tmp\.\d+$", "", str(path.relative_to(workflow.root)))
        if path.is_relative_to(workflow.root)
        else str(path)
        for path in paths
        # An editable installation has an entry of the search path that is no file.
        if path.suffix in DATA
        or (path.is_relative_to(workflow.root) and not path.name.startswith("__editable__"))
    }
    assert {path for path in read if not path.endswith((".py", ".pyc"))} == {
        TEACHER,
        "again/.shard.h5",
        "synq/config/published.csv",  # which benchmarks a test set may be
    }
    assert workflow.bytes("again/shard.h5") == workflow.bytes(name)


# Networks of every source.

POOL = """
from torch import nn

class Pool(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Pool())
"""


def _teacher(model: str) -> str:
    return f"{RESULTS}/models/{model}/teacher.safetensors"


def test_a_network_of_a_zoo_is_made_from_its_name_and_stays_when_the_store_moves(
    clone: Workflow, tmp_path: Path
) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    network = build("resnet20_cifar10", 10, 3, 32)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    # pytorchcv with this file in its table.
    package = tmp_path / "packages" / "pytorchcv"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(pytorchcv.__file__).parent, package, ignore=ignored)
    sha1 = hashlib.sha1(content).hexdigest()
    table = package / "models" / "common" / "model_metainfos.csv"
    row = zoo.table()["resnet20_cifar10"]
    table.write_text(table.read_text("utf-8").replace(row["checksum"], sha1), "utf-8")
    name = f"resnet20_cifar10-{row['error_value']}-{sha1[:8]}.pth"
    more = {"PYTHONPATH": str(package.parent), "HOME": str(tmp_path)}
    overlay = """
    {store}
    models: {{zoo: {{source: pytorchcv, architecture: resnet20_cifar10, mirror: '{mirror}'}}}}
    """
    with serving() as server:
        with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
            archive.writestr(name, content)
        server.files[f"{name}.zip"] = (tmp_path / "zip").read_bytes()
        mirror = f"{server.address}/cut"
        first = overlay.format(store="", mirror=mirror)
        ran = workflow.run("--", _teacher("zoo"), overlay=first, **more)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"fetch_zoo": 1}
    assert (tmp_path / ".cache" / "synq" / name).read_bytes() == content
    moved = overlay.format(store="store: elsewhere", mirror="http://127.0.0.1:9")
    assert jobs(workflow.plan("--", _teacher("zoo"), overlay=moved, **more)) == {}


def test_a_function_of_ones_own_counts_as_code(clone: Workflow, tmp_path: Path) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    (workflow.root / "own_nets.py").write_text(POOL, encoding="utf-8")
    state = {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}
    batchnorm = torch.nn.BatchNorm2d(4).state_dict()
    torch.save(state | {f"1.{key}": value for key, value in batchnorm.items()}, tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    overlay = f"""
    models:
      own: {{source: python, factory: 'own_nets:build', weights: '{tmp_path / "w.pth"}',
            sha256: {sha256}, classes: 4, image_size: 32, mean: [0, 0, 0], std: [1, 1, 1]}}
    """
    target = f"{RESULTS}/runs/own/w4a4/synq/seed0/metrics.json"
    ran = workflow.run("--", _teacher("own"), overlay=overlay)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"fetch": 1}
    assert jobs(workflow.plan("--", _teacher("own"), overlay=overlay)) == {}
    assert jobs(workflow.plan("--", target, overlay=overlay))["finetune"] == 1
    append(workflow.root / "own_nets.py", "\n# A comment.\n")
    assert jobs(workflow.plan("--", _teacher("own"), overlay=overlay)) == {}
    append(workflow.root / "own_nets.py", "\nCHANGED = True\n")
    assert jobs(workflow.plan("--", _teacher("own"), overlay=overlay)) == {"fetch": 1}


# The rules themselves.


def test_snakemake_finds_no_fault(clone: Workflow) -> None:
    ran = process([sys.executable, "-m", "snakemake", "--lint"], clone.root, {})
    assert ran.returncode == 0, ran.stdout


def test_the_rules_are_formatted(clone: Workflow) -> None:
    pytest.importorskip("snakefmt", reason="snakefmt is not installed; it comes with [dev]")
    ran = process([sys.executable, "-m", "snakefmt", "--check", "."], clone.root, {})
    assert ran.returncode == 0, ran.stdout


def test_the_snakefile_for_the_catalog_plans_the_same_jobs(clone: Workflow) -> None:
    assert jobs(clone.plan(snakefile="workflow/Snakefile")) == EVERYTHING


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_jobs_run_the_code_of_this_clone_from_any_folder(
    clone: Workflow, snakefile: str, tmp_path: Path
) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    (workflow.root / "synq/__main__.py").write_text("raise SystemExit('the code of this clone')\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(workflow.root / "config.yaml", elsewhere)
    ran = workflow.run("--", TEACHER, snakefile=snakefile, cwd=elsewhere)
    assert ran.returncode == 1
    log = elsewhere / f"{RESULTS}/logs/fetch/digits-resnet20.log"
    assert log.read_text(encoding="utf-8") == "the code of this clone\n"


def test_a_grid_of_days_says_so_before_its_first_job(workflow: Workflow) -> None:
    overlay = "models: {digits-resnet20: {synthesis: {iterations: 1000000000}}}"
    ran = workflow.run("-f", "--", TEACHER, overlay=overlay)
    assert ran.returncode == 0, ran.stdout
    told, fetched = ran.stdout.index("hours of one core"), ran.stdout.index("Fetching")
    assert told < fetched
    assert "hours of one core" not in workflow.first


def _rules() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "rules").glob("*.smk")):
        parts = re.split(r"^rule (\w+):\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_rule_says_what_it_does_and_needs() -> None:
    wanted = {"message", "log", "benchmark", "conda", "threads", "resources"}
    rules = dict(_rules())
    on_demand = {"fetch_zoo", "collect", "borrow", "ablation", "sensitivity", "sensitivity_figure"}
    assert set(rules) == {*EVERYTHING, *on_demand} - {"all"}
    on_gpu = {"synthesize", "collect", "borrow", "sensitivity", "finetune"}
    on_gpu |= {"evaluate_teacher", "evaluate"}
    for name, body in rules.items():
        assert wanted - set(re.findall(r"^    (\w+):", body, re.MULTILINE)) == set(), name
        resources = re.search(r"^    resources:\n((?: {8}.+\n)+)", body, re.MULTILINE)
        assert resources, name
        assert {"mem_mb", "runtime"} <= set(re.findall(r"(\w+)=", resources[1])), name
        assert ("gpu=" in resources[1]) == (name in on_gpu)
        assert ("--device {params.device:q}" in body) == (name in on_gpu)


def test_a_command_with_a_thousand_shards_is_one_that_a_system_takes(workflow: Workflow) -> None:
    """Linux takes 128 KiB for one argument, and a shell command is one."""
    overlay = (
        "grid: {models: [big], methods: [synq]}\n"
        "models:\n"
        "  big:\n"
        "    source: pytorchcv\n"
        "    architecture: resnet18\n"
        "    test: {dataset: none}\n"
        "    synthesis: {classes_per_shard: 1}\n"
    )
    results = "results/" + "x" * 140
    text = workflow.plan("-p", "--config", f"results={results}", overlay=overlay)
    assert jobs(text)["synthesize"] == 1000
    commands = [line for line in text.splitlines() if "Shell command: " in line]
    assert f"--shard-folder {results}/synthetic/big/hard/seed0 --shards class-0000.h5" in text
    assert max(map(len, commands)) < 100_000
