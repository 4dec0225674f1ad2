"""What is wrong with the command line, the config and the user's files: told before any job."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from running import ENVIRONMENT, PATIENCE, ROOT

OWN = """
results: r
grid: {models: [own], bits: [w4a4], methods: [synq-plus, few-shot], seeds: [0]}
models:
  own:
    {source: python, factory: "own_nets:build", weights: nets/w.pth, classes: 2, channels: 1,
     image_size: 8, mean: [0.5], std: [0.2], test: {dataset: folder, path: data/val},
     real: {dataset: arrays, path: few.npz},
     sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
"""
DIGITS = """
results: r
grid: {methods: [zeroq], bits: [w4a4], seeds: [0]}
models: {digits-resnet20: {test: {dataset: folder, path: data/val}}}
"""
TEACHER = "r/models/digits-resnet20/teacher.safetensors"


def ran(folder, *words, overlay=None, code=0, options=()):
    """What snakemake prints in a folder that is not the clone; its lines of config errors."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "1"]
    command += options
    if overlay is not None:
        (folder / "overlay.yaml").write_text(overlay, "utf-8")
        command += ["--configfile", "overlay.yaml", "--"]
    done = subprocess.run(
        [*command, *words],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stdout
    prefix = "config error: "
    lines = [line for line in done.stdout.splitlines() if line.startswith(prefix)]
    return done.stdout, [line.removeprefix(prefix) for line in lines]


def test_files_that_are_not_there_are_all_told_before_the_first_job(tmp_path):
    text, lines = ran(tmp_path, overlay=OWN, code=2)
    assert sorted(lines) == [
        "models.own.factory is own_nets:build, and own_nets is neither installed nor in "
        f"{tmp_path}",
        "models.own.real.path is few.npz, and there is no such file",
        "models.own.test.path is data/val, and there is no such folder",
        "models.own.weights is nets/w.pth, and there is no such file",
    ]
    assert "Error in rule" not in text
    assert not [path for path in Path(tmp_path, "r").rglob("*") if path.is_file()]


def test_a_class_without_a_folder_is_told_before_the_first_job(tmp_path):
    for number in range(1, 10):
        (tmp_path / f"data/val/d{number}").mkdir(parents=True)
    names = [f"d{number}" for number in range(10)]
    overlay = DIGITS.replace("{test:", f"{{names: {names}, test:")
    text, lines = ran(tmp_path, overlay=overlay, code=2)
    assert lines == [
        "models.digits-resnet20.test.path is data/val, which has 9 folders, and the network has 10 "
        "classes; there is none for d0"
    ]
    assert "rule fetch" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": [0, 11]}, "data.npz has the label 11, but the network has classes 0 to 9"),
        ({"answers": [0, 1]}, "data.npz has images, answers; it needs test_images and test_labels"),
    ],
)
def test_arrays_that_are_no_test_set_are_told_before_the_first_job(tmp_path, content, said):
    numpy.savez(tmp_path / "data.npz", images=numpy.zeros((2, 16, 16), "uint8"), **content)
    overlay = DIGITS.replace("dataset: folder, path: data/val", "dataset: arrays, path: data.npz")
    text, lines = ran(tmp_path, overlay=overlay, code=2)
    assert [line.startswith(f"models.digits-resnet20.test: {said}") for line in lines] == [True]
    assert "rule fetch" not in text


def test_a_job_that_does_not_read_them_runs_and_a_plan_is_shown(tmp_path):
    ran(tmp_path, TEACHER, overlay=DIGITS)
    assert (tmp_path / TEACHER).is_file()
    metrics = "r/models/digits-resnet20/metrics.json"
    _, lines = ran(tmp_path, metrics, overlay=DIGITS, code=2)
    assert lines == ["models.digits-resnet20.test.path is data/val, and there is no such folder"]
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-n", "--cores"]
    done = subprocess.run(
        [*command, "1", "--configfile", "overlay.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0


def test_a_name_that_the_network_has_not_stops_before_any_image(tmp_path):
    overlay = f"{DIGITS}methods: {{zeroq: {{calibration: {{keep_bits: {{outpt: 8}}}}}}}}\n"
    synthetic = "r/synthetic/digits-resnet20/unlabelled/seed0/classes-0000-0009.h5"
    text, _ = ran(tmp_path, synthetic, overlay=overlay, code=1, options=["--retries", "2"])
    assert "has calibration.keep_bits: outpt=8, but no layer and no activation" in text
    assert "did you mean output?" in text
    assert text.count("Error in rule inspect") == 1
    assert not (tmp_path / synthetic).exists()


def test_weights_of_another_sum_stop_before_the_first_job(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    overlay = DIGITS.replace("{test:", "{weights: w.pth, test:")
    text, (line,) = ran(tmp_path, TEACHER, overlay=overlay, code=2)
    assert line.startswith("models.digits-resnet20.weights is w.pth, whose SHA-256 is 9a129038d9")
    assert "rule fetch" not in text


def test_a_fetch_that_the_user_must_mend_is_tried_once(tmp_path):
    wrong = DIGITS.replace("{test:", "{sha256: '" + 64 * "0" + "', test:")
    text, _ = ran(tmp_path, TEACHER, overlay=wrong, code=1, options=["--retries", "2"])
    assert text.count("Error in rule fetch") == 1
    assert "Trying to restart" not in text


def test_why_a_job_failed_is_what_the_terminal_ends_with(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    overlay = DIGITS.replace("{test:", f"{{weights: w.pth, sha256: '{digest}', test:")
    for path in ("r/logs/fetch/other.log", "r/logs/inspect/digits-resnet20.log"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("synq: error: of a run before\n", "utf-8")
        os.utime(tmp_path / path, (1, 1))
    text, _ = ran(tmp_path, TEACHER, overlay=overlay, code=1)
    *others, last = text.splitlines()
    log = tmp_path / "r/logs/fetch/digits-resnet20.log"
    assert last == f"{log.relative_to(tmp_path)}: {log.read_text('utf-8').strip()}"
    # By the name that the config has for the file.
    start = "r/logs/fetch/digits-resnet20.log: synq: error: w.pth cannot be read as a state dict"
    assert last.startswith(start)
    assert "of a run before" not in text
    assert last not in others


def test_a_doubt_about_the_test_set_is_on_the_terminal(tmp_path):
    pixels = numpy.random.default_rng(0).integers(0, 256, (50, 16, 16), "uint8")
    numpy.savez(tmp_path / "other.npz", images=pixels, labels=numpy.arange(50) % 10)
    overlay = DIGITS.replace("folder, path: data/val", "arrays, path: other.npz")
    text, _ = ran(tmp_path, "r/models/digits-resnet20/metrics.json", overlay=overlay)
    (line,) = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert "do test set, mean and std belong to this network?" in line or "another order" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--configfile", "a.yaml", "--configfile", "b.yaml"], "--configfile is given twice"),
        (["--configfile", "a.yaml", "result.json"], "a result is read as a config file; write --"),
    ],
)
def test_a_command_line_that_is_misread_is_told(tmp_path, words, line):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("results: r\n", "utf-8")
    (tmp_path / "result.json").write_text('{"kind": "metrics", "checksum": "0"}', "utf-8")
    _, lines = ran(tmp_path, "-n", *words, code=2)
    assert len(lines) == 1
    assert line in lines[0]
