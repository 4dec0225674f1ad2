"""GPUs as the scheduler counts them, with pretended ones and a pretended program."""

import re
from pathlib import Path

import pytest
from running import RESULTS, Workflow, copied, jobs

PROGRAM = """
import pathlib, shutil, sys, time
begun = time.time()
words = sys.argv[1:]
time.sleep(0.5)
for flag in ("--output", "--json", "--snapshots"):
    if flag in words:
        pathlib.Path(words[words.index(flag) + 1]).touch()
if "--download" in words:  # the rule checks its SHA-256
    weights = words[words.index("--weights") + 1].removeprefix("package:")
    shutil.copy(weights, words[words.index("--download") + 1])
device = words[words.index("--device") + 1] if "--device" in words else ""
with open("ran.txt", "a") as file:
    print(words[0], device, begun, time.time(), file=file)
"""


def ran(clone: Workflow, folder: Path, *arguments: str, gpus: str) -> list[list[str]]:
    """Stage, device, begin and end of every job of a synthesis with four shards."""
    workflow = copied(clone, folder / "clone", "")
    (workflow.root / "synq/__main__.py").write_text(PROGRAM)
    words = [*arguments, "--cores", "4", "synthetic"]
    done = workflow.run(*words, CUDA_VISIBLE_DEVICES=gpus)
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout)["synthesize"] == 4
    return [line.split() for line in (workflow.root / "ran.txt").read_text().splitlines()]


def most_at_a_time(spans: list[list[str]]) -> int:
    begins = [float(begin) for *_, begin, _ in spans]
    return max(
        sum(float(begin) <= moment < float(end) for *_, begin, end in spans) for moment in begins
    )


@pytest.mark.parametrize(
    ("gpus", "arguments", "device", "limit"),
    [
        ("0", (), "auto", 1),
        ("3,5", (), "auto", 2),
        ("0,1,2,3", ("--resources", "gpu=1"), "auto", 1),
        ("0", ("--resources", "gpu=0"), "cpu", 4),
        ("", (), "cpu", 4),
    ],
    ids=["one", "two", "one of four", "not wanted", "none"],
)
def test_jobs_take_turns_on_the_gpus_that_there_are(
    clone: Workflow,
    tmp_path: Path,
    gpus: str,
    arguments: tuple[str, ...],
    device: str,
    limit: int,
) -> None:
    lines = ran(clone, tmp_path, *arguments, gpus=gpus)
    assert {line[1] for line in lines if line[0] in ("train", "synthesize")} == {device}
    assert most_at_a_time([line for line in lines if line[0] == "synthesize"]) <= limit


def test_a_fine_tuning_asks_for_a_gpu_a_process(clone: Workflow) -> None:
    overlay = "finetune: {processes: 2}"
    target = f"{RESULTS}/runs/digits-resnet20/w4a4/synq/seed0/student.safetensors"
    with_two = clone.plan("-p", "--", target, overlay=overlay, CUDA_VISIBLE_DEVICES="0,1")
    (command,) = re.findall(r"^.*synq finetune .*$", with_two, re.MULTILINE)
    assert "--device auto" in command
    assert "--nproc-per-node=2" in command
