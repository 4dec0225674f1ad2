"""A copy of the clone and real snakemake processes in it: what several modules of tests use."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("envs", "experiments", "profiles", "rules", "synq", "workflow")
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
    "CUDA_VISIBLE_DEVICES": "",  # the same tests on every machine
}
PATIENCE = 900  # seconds for one process; a busy machine takes many times what a free one does

RESULTS = "results/tiny"
TEACHER = f"{RESULTS}/models/digits-resnet20/teacher.safetensors"
TABLE = f"{RESULTS}/tables/accuracy.md"
SYNQ = f"{RESULTS}/runs/digits-resnet20/w4a4/synq/seed0"
ZEROQ = f"{RESULTS}/runs/digits-resnet20/w4a4/zeroq/seed0"
HARD = f"{RESULTS}/synthetic/digits-resnet20/hard/seed0"
UNLABELLED = f"{RESULTS}/synthetic/digits-resnet20/unlabelled/seed0"
EVERYTHING = {
    "fetch": 1,
    "inspect": 1,
    "evaluate_teacher": 1,
    "synthesize": 4,
    "finetune": 2,
    "evaluate": 2,
    "export": 2,
    "accuracy": 1,
    "page": 1,
    "all": 1,
}


class Workflow:
    """A copy of the clone; ``first`` is what its first run printed."""

    def __init__(self, root: Path, first: str = "") -> None:
        self.root, self.first = root, first

    def run(
        self,
        *arguments: str,
        overlay: str = "",
        snakefile: str = "Snakefile",
        cwd: Path | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run snakemake on the tiny overlay, with another overlay on top."""
        overlays = [str(self.root / "experiments/tiny.yaml")]
        if overlay:
            overlays.append(str(self.root / "overlay.yaml"))
            Path(overlays[-1]).write_text(overlay, encoding="utf-8")
        words = [sys.executable, "-m", "snakemake", "-s", str(self.root / snakefile)]
        # One thread a job: the tests run side by side, and pools of threads wait for one another.
        words += ["--set-threads", "finetune=1"]
        words += ["--cores", "2", "--configfile", *overlays, *arguments]
        return process(words, cwd or self.root, environment)

    def plan(self, *arguments: str, **more: str) -> str:
        """What a dry run prints."""
        ran = self.run("-n", *arguments, **more)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def command(self, *words: str) -> str:
        """The printed shell command that has all these words."""
        commands = re.findall(r"^\s*Shell command: (.+)$", self.first, re.MULTILINE)
        (found,) = (line for line in commands if all(f" {word} " in line for word in words))
        return found

    def arguments(self, *words: str) -> list[str]:
        """The same command's arguments to ``python -m``, without the log and the threads."""
        return shlex.split(self.command(*words).partition(" --threads ")[0])[2:]

    def bytes(self, path: str) -> bytes:
        return (self.root / path).read_bytes()


def process(
    words: list[str], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )


def jobs(text: str) -> dict[str, int]:
    """Jobs of each rule, from snakemake's table."""
    if "Nothing to be done" in text:
        return {}
    table = re.search(r"^Job stats:\n.+\n[- ]+\n((?:\w+ +\d+\n)+)", text, re.MULTILINE)
    assert table, text
    counts = {rule: int(count) for rule, count in map(str.split, table[1].splitlines())}
    counts.pop("total")
    return counts


def shards(text: str) -> set[tuple[str, str]]:
    """Image set and name of every planned shard."""
    return {
        (image_set, shard)
        for shard, image_set in re.findall(r"Synthesizing (\S+) of \S+ \((\S+), seed \d+\)", text)
    }


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def copied(workflow: Workflow, root: Path, first: str) -> Workflow:
    shutil.copytree(workflow.root, root)
    return Workflow(root, first)


def wait(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
