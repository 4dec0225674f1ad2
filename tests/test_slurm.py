"""The Slurm profile on a real Slurm: one node on loopback, two pretended GPUs.

Not part of the usual run: it needs root, installs packages by apt, and takes some minutes.
    pip install -e '.[test,slurm,cluster]' && pytest -m slurm
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflow import ENVIRONMENT, EVERYTHING, TABLE, Workflow, copied, jobs

pytestmark = pytest.mark.slurm
SCRIPTS = Path(__file__).parent / "slurm"
LIMIT = 1500  # seconds for one run, which takes 200 where nothing else runs
Job = dict[str, str]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    if os.geteuid() or not (shutil.which("slurmctld") or shutil.which("apt-get")):
        pytest.skip("starting a Slurm needs root, and apt to install it")
    # Not in pytest's own folder, which is closed to others: munge wants its socket in an open one.
    folder = Path(tempfile.mkdtemp(prefix="synq-slurm-"))
    words = [str(SCRIPTS / "start.sh"), str(folder)]
    try:
        # Daemons inherit their standard streams: to a file, so that nobody waits for them.
        with open(folder / "start.log", "w") as log:
            started = subprocess.run(
                words, stdout=log, stderr=subprocess.STDOUT, timeout=300, check=False
            )
        assert started.returncode == 0, (folder / "start.log").read_text()
        yield folder
    finally:
        subprocess.run([str(SCRIPTS / "stop.sh"), str(folder)], timeout=120, check=True)
        left = running(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def running(folder: Path) -> list[str]:
    """Processes that name the folder, or are one of the daemons started in it."""
    pids = [path.read_text().strip() for path in (folder / "run").glob("*.pid")]
    states = [Path(f"/proc/{pid}/status") for pid in pids]
    return [str(path) for path in states if path.exists() and "\tZ" not in path.read_text()]


def submitted(workflow: Workflow, profile: str, *arguments: str) -> tuple[str, list[Job]]:
    """Run the tiny overlay through a profile: what it printed, and Slurm's records of its jobs."""
    earlier = {job["JobId"] for job in records()}
    words = [sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}"]
    words += ["--configfile", "experiments/tiny.yaml", *arguments]
    printed = workflow.root / "printed.txt"
    with open(printed, "w") as file:
        process = subprocess.Popen(
            words, cwd=workflow.root, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        process.kill()
        process.wait()
        for job in records() if process.returncode else []:
            subprocess.run(["scancel", job["JobId"]], timeout=30, check=False)
    output = printed.read_text(encoding="utf-8")
    assert code == 0, f"{output}\n{records()}"
    return output, [job for job in records() if job["JobId"] not in earlier]


def records() -> list[Job]:
    ran = subprocess.run(
        ["scontrol", "show", "job", "-o"], capture_output=True, text=True, timeout=30, check=False
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("JobId=")]
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]


def of_rule(found: list[Job], rule: str) -> list[Job]:
    chosen = [job for job in found if job["Comment"].startswith(f"rule_{rule}_")]
    return sorted(chosen, key=lambda job: int(job["JobId"]))


def gpus(job: Job) -> int:
    """GPUs that Slurm gave a job."""
    found = re.search(r"gres:gpu(?::h200)?:(\d+)", job.get("TresPerJob", ""))
    return int(found[1]) if found else 0


def edit(workflow: Workflow, path: str, *changes: tuple[str, str]) -> None:
    text = (workflow.root / path).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (workflow.root / path).write_text(text, encoding="utf-8")


@pytest.fixture
def fresh(clone: Workflow, tmp_path: Path) -> Workflow:
    """The clone, with profiles that ask sooner and groups of two."""
    workflow = copied(clone, tmp_path / "clone", "")
    sooner = ("status-checks: 20", "status-checks: 5")
    edit(workflow, "profiles/slurm/profile.yaml", sooner, ("shards=8", "shards=2"))
    edit(workflow, "profiles/cluster-generic/profile.yaml", ("shards=8", "shards=2"))
    return workflow


def test_the_whole_workflow_on_slurm(slurm: Path, fresh: Workflow) -> None:
    """GPUs, groups, and jobs that Slurm kills and that come back with more: its own records."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    # Too little memory for two fine-tunings, too little time for one evaluation.
    edit(fresh, "rules/finetune.smk", ("megabytes(4000)", "megabytes(450)"))
    edit(
        fresh,
        "rules/evaluate.smk",
        ("minutes(60)", "minutes(1)"),
        ('"python -m synq evaluate-teacher', '"sleep 95 && python -m synq evaluate-teacher'),
    )
    output, found = submitted(fresh, "slurm")
    assert jobs(output) == EVERYTHING
    assert (fresh.root / TABLE).is_file()

    finetuned = of_rule(found, "finetune")
    assert len(finetuned) > 2
    for job in finetuned:
        assert job["Partition"] == "gpu"
        assert gpus(job) == 1
    assert not [job for job in found if job["Partition"] == "cpu" and gpus(job)]

    groups = [job for job in found if job["Comment"].startswith(("rule_shards", "group_shards"))]
    assert [job["NumCPUs"] for job in groups] == ["2", "2"], found
    assert not of_rule(found, "synthesize")

    for wildcards in {job["Comment"] for job in finetuned}:
        attempts = [job for job in finetuned if job["Comment"] == wildcards]
        memory = [job["MinMemoryNode"] for job in attempts]
        assert memory[:2] == ["450M", "900M"]
        assert {job["JobState"] for job in attempts[:-1]} <= {"FAILED", "OUT_OF_MEMORY"}
        assert attempts[-1]["JobState"] == "COMPLETED"

    evaluated = of_rule(found, "evaluate_teacher")
    limits = [job["TimeLimit"] for job in evaluated]
    assert limits == ["00:01:00", "00:02:00", "00:03:00"][: len(limits)]
    # A busy machine may need the third attempt.
    assert {job["JobState"] for job in evaluated[:-1]} == {"TIMEOUT"}
    assert evaluated[-1]["JobState"] == "COMPLETED"


def test_the_generic_profile_on_the_same_slurm(slurm: Path, fresh: Workflow) -> None:
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    output, found = submitted(fresh, "cluster-generic")
    assert jobs(output) == EVERYTHING
    assert (fresh.root / TABLE).is_file()
    assert {job["JobState"] for job in found} == {"COMPLETED"}
    # One training, one evaluation of the teacher, two groups of shards, two runs of two jobs.
    assert len(found) == 8
    with_gpu = [job for job in found if gpus(job)]
    assert [job["Partition"] for job in with_gpu] == ["gpu"] * 3
