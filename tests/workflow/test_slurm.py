"""The Slurm profile on a real Slurm: one node on loopback, two pretended GPUs.

One test is part of the usual run; the others need root, install packages by apt, and take minutes.
    pip install -e '.[test,slurm,cluster]' && pytest -m slurm -n 0 tests/workflow/test_slurm.py
"""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ENVIRONMENT, EVERYTHING, HARD, TABLE, Workflow, copied, jobs

SCRIPTS = Path(__file__).parents[1] / "slurm"
LIMIT = 900  # seconds for one run, which takes 180 where nothing else runs
DAEMONS = {"munged", "slurmctld", "slurmd", "slurmstepd"}
Job = dict[str, str]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    before = daemons()
    # Not in pytest's own folder, which is closed to others: munge wants its socket in an open one.
    folder = Path(tempfile.mkdtemp(prefix="synq-slurm-"))
    installed = subprocess.run(
        [str(SCRIPTS / "install.sh")], stdout=subprocess.PIPE, text=True, timeout=600, check=False
    )
    if installed.returncode:
        pytest.skip(installed.stdout.strip())
    words = [str(SCRIPTS / "start.sh"), str(folder)]
    try:
        # Daemons inherit their standard streams: to a file, so that nobody waits for them.
        with open(folder / "start.log", "w") as log:
            started = subprocess.run(
                words, stdout=log, stderr=subprocess.STDOUT, timeout=120, check=False
            )
        assert started.returncode == 0, (folder / "start.log").read_text()
        yield folder
    finally:
        subprocess.run([str(SCRIPTS / "stop.sh"), str(folder)], timeout=120, check=True)
        left = daemons() - before
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def daemons() -> set[tuple[str, str]]:
    """Name and process id of everything of a Slurm's that runs on this machine."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            # What has ended and was not waited for is no process any more.
            if lines["Name"] in DAEMONS and not lines["State"].startswith("Z"):
                found.add((lines["Name"], lines["Pid"]))
    return found


def submitted(workflow: Workflow, profile: str, *arguments: str) -> tuple[str, list[Job]]:
    """Run the tiny overlay through a profile: what it printed, and Slurm's records of its jobs."""
    earlier = {job["JobId"] for job in records()}
    words = [sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}"]
    # One thread a job, as in the other tests: several pools of threads wait for one another.
    words += ["--set-threads", "finetune=1"]
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
    """The jobs of a rule or of a group, in the order of their submission."""
    name = re.compile(rf"(rule|group)_{rule}(_|$)")
    chosen = [job for job in found if name.match(job["Comment"])]
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


def slowed(workflow: Workflow) -> None:
    """Jobs that Slurm kills: too little memory for two fine-tunings, and one that is late."""
    # With whichever build of torch (460 MB or 930 MB).
    edit(workflow, "rules/finetune.smk", ("megabytes(4000)", "megabytes(350)"))
    # A busy machine may need more than the second attempt's two minutes.
    edit(workflow, "profiles/slurm/profile.yaml", ("retries: 2", "retries: 5"))
    # The teacher's evaluation waits for the end of its time, once:
    # Slurm looks for jobs that are late twice a minute, and the other jobs run meanwhile.
    late = '"[ {resources.runtime} -gt 1 ] || sleep 600; python -m synq evaluate-teacher'
    edit(
        workflow,
        "rules/evaluate.smk",
        ('within(LIMITS.evaluation, "model")', "minutes(1)"),
        ('"python -m synq evaluate-teacher', late),
    )


@pytest.fixture
def fresh(clone: Workflow, tmp_path: Path) -> Workflow:
    """The clone, with profiles that ask sooner and groups of two."""
    workflow = copied(clone, tmp_path / "clone", "")
    sooner = ("status-checks: 20", "status-checks: 3")
    edit(workflow, "profiles/slurm/profile.yaml", sooner, ("shards=8", "shards=2"))
    edit(workflow, "profiles/cluster-generic/profile.yaml", ("shards=8", "shards=2"))
    return workflow


def test_that_what_these_tests_change_is_there(fresh: Workflow) -> None:
    """Without a Slurm, in the usual run: a rule that was rewritten is seen at once."""
    slowed(fresh)


@pytest.mark.slurm
def test_the_whole_workflow_on_slurm(slurm: Path, fresh: Workflow) -> None:
    """GPUs, groups, and jobs that Slurm kills and that come back with more: its own records."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    slowed(fresh)
    output, found = submitted(fresh, "slurm")
    assert jobs(output) == EVERYTHING
    assert (fresh.root / TABLE).is_file()

    finetuned = of_rule(found, "finetune")
    assert len(finetuned) > 2
    for job in finetuned:
        assert job["Partition"] == "gpu"
        assert gpus(job) == 1
    assert not [job for job in found if job["Partition"] == "cpu" and gpus(job)]

    groups = of_rule(found, "shards")
    assert [(job["NumCPUs"], gpus(job)) for job in groups] == [("1", 1), ("1", 1)], found
    assert not of_rule(found, "synthesize")

    for wildcards in {job["Comment"] for job in finetuned}:
        attempts = [job for job in finetuned if job["Comment"] == wildcards]
        memory = [job["MinMemoryNode"] for job in attempts]
        assert memory[:2] == ["350M", "700M"]
        assert {job["JobState"] for job in attempts[:-1]} <= {"FAILED", "OUT_OF_MEMORY"}
        assert attempts[-1]["JobState"] == "COMPLETED"

    evaluated = of_rule(found, "reference")
    limits = [job["TimeLimit"] for job in evaluated]
    assert limits == [f"00:0{attempt}:00" for attempt in range(1, len(limits) + 1)]
    assert {job["JobState"] for job in evaluated[:-1]} == {"TIMEOUT"}
    assert evaluated[-1]["JobState"] == "COMPLETED"

    # The fetching, the inspection, the exports and the table ran here.
    students = of_rule(found, "evaluation")
    assert {job["Partition"] for job in students} == {"gpu"}
    assert len(found) == len(groups + finetuned + evaluated + students)


@pytest.mark.slurm
def test_the_generic_profile_on_the_same_slurm(slurm: Path, fresh: Workflow) -> None:
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    shards = [f"{HARD}/classes-0000-0004.h5", f"{HARD}/classes-0005-0009.h5"]
    often = ["--seconds-between-status-checks", "2"]
    output, found = submitted(fresh, "cluster-generic", *often, "--", *shards)
    assert jobs(output) == {"fetch": 1, "inspect": 1, "synthesize": 2}
    assert all((fresh.root / shard).is_file() for shard in shards)
    assert {job["JobState"] for job in found} == {"COMPLETED"}
    # One group of two shards, on a GPU.
    assert [(job["Partition"], gpus(job)) for job in found] == [("gpu", 1)]
