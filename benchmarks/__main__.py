"""Measure the stages and print a table: ``python -m benchmarks``, with --help for more."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import scale
from benchmarks.subjects import SPELLINGS, Subject
from benchmarks.timing import Ratio, ratios, seconds, summary
from synq.config.finetune import Finetune
from synq.errors import ConfigError
from synq.runtime.process import resolve_device, versions

ALL_TERMS = Finetune(feature_weight=1000.0, perturbation=0.01)
ITERATIONS = 4
EVALUATED = 4  # batches
DRIFT_ROUNDS = 300
ROOT = Path(__file__).parents[1]


def per_forward(subject: Subject, repeats: int) -> tuple[dict[str, Ratio], float]:
    """Synthesis, fine-tuning, student and evaluation in units of F."""
    # The difference of two runs leaves out what a run does once.
    functions = {
        "start": subject.iterations(1),
        "iterations": subject.iterations(1 + ITERATIONS),
        **compiled(subject),
        "fine-tuning step, all terms": subject.step(ALL_TERMS),
        "fine-tuning step, default": subject.step(Finetune()),
        "distillation alone": subject.step(Finetune(cam="off", hard_labels="none", ce_weight=0.0)),
        "teacher's forward, channels last": subject.teacher_forward,
        "student's forward": subject.student_forward,
        "evaluation, per image": subject.evaluation(EVALUATED * subject.batch),
    }
    measured, unit = ratios(subject.forward, functions, repeats)
    start, iterations = measured.pop("start"), measured.pop("iterations")
    synthesis = Ratio(
        (iterations.median - start.median) / ITERATIONS, iterations.spread / ITERATIONS
    )
    evaluation = measured["evaluation, per image"]
    measured["evaluation, per image"] = Ratio(*(value / EVALUATED for value in evaluation))
    return {"synthesis iteration": synthesis, **measured}, unit


def compiled(subject: Subject) -> dict[str, Callable[[], object]]:
    """The larger part of an iteration of the synthesis, by torch.compile and without."""
    plain, faster = subject.prior("off"), subject.prior("default")
    try:
        print(f"compiled in {seconds(faster):.0f} s", file=sys.stderr)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return {}
    return {"BatchNorm alignment's gradient": plain, "the same, compiled": faster}


def call_sites(
    architecture: str, size: int, batch: int, device: torch.device, repeats: int
) -> dict[str, dict[str, Ratio]]:
    """A student's step and forward by the spelling of its activations, in units of modules'.

    By the processor's time where that computes: a busy machine moves it little.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    subjects = {
        name: Subject(architecture, size, batch, device, spelling=name) for name in SPELLINGS
    }
    kinds: dict[str, Callable[[Subject], Callable[[], object]]] = {
        "fine-tuning step, all terms": lambda subject: subject.step(ALL_TERMS),
        "student's forward": lambda subject: subject.student_forward,
    }
    found = {}
    for kind, of in kinds.items():
        unit, *others = (of(subject) for subject in subjects.values())
        functions = dict(zip([*SPELLINGS][1:], others, strict=True))
        found[kind] = ratios(unit, functions, repeats, clock)[0]
    return found


def drift(architecture: str, size: int, device: torch.device, steps: int) -> Ratio:
    """Time of a step after ``steps`` of them, in units of one of the first."""
    subject = Subject(architecture, size, 2, device)
    step = subject.step(ALL_TERMS)

    def in_forwards() -> Ratio:
        # The machine is not as fast later as it is now, and then the forward is not either.
        return ratios(subject.forward, {"step": step}, DRIFT_ROUNDS)[0]["step"]

    first = in_forwards()
    for _ in range(steps - DRIFT_ROUNDS):
        step()
    later = in_forwards()
    return Ratio(later.median / first.median, later.spread / first.median)


def started(repeats: int) -> float:
    """Seconds that importing a stage takes beyond importing torch."""

    def run(code: str) -> float:
        words = [sys.executable, "-c", code]
        return seconds(lambda: subprocess.run(words, check=True, cwd=ROOT))

    extra = [
        run("import synq.stages.finetune, synq.stages.synthesize") - run("import torch")
        for _ in range(repeats)
    ]
    return summary(extra).median


def two_jobs(folder: Path, architecture: str, size: int) -> float:
    """How many times faster two shards are made by two jobs at once than one after the other."""
    teacher = folder / "teacher.safetensors"
    code = (
        "import torch, sys; from pathlib import Path; from synq.config import Model;"
        "from synq.models.build import build; from synq.models.teacher import write_teacher;"
        f"m = Model(source='pytorchcv', architecture='{architecture}', classes=10,"
        f" image_size={size});"
        f"write_teacher(Path(sys.argv[1]), build('{architecture}', 10, 3, {size}).state_dict(), m,"
        " name='net', mean=[.5] * 3, std=[.25] * 3, origin='benchmark')"
    )
    subprocess.run([sys.executable, "-c", code, str(teacher)], check=True, cwd=ROOT)

    def job(number: int) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", "synq", "synthesize", "--teacher", str(teacher)]
        words += ["--output", str(folder / f"{number}.h5"), "--classes", str(number)]
        words += ["--seed", "0", "--images-per-class", "64", "--iterations", "60"]
        words += ["--device", "cpu", "--threads", "1"]
        return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)

    def in_turns() -> None:
        for number in (0, 1):
            job(number).wait()

    def together() -> None:
        for process in [job(0), job(1)]:
            process.wait()

    return seconds(in_turns) / seconds(together)


def shard_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a shard of 64 images, and of its images as they are in memory."""
    return {"file": (folder / "0.h5").stat().st_size, "images": 64 * 3 * 32 * 32 * 4}


def profile(subject: Subject, stage: str) -> str:
    """The operators of one stage's step, by their time."""
    function = subject.iterations(3) if stage == "synthesis" else subject.step(ALL_TERMS)
    function()
    with torch.profiler.profile() as record:
        function()
    return record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--architecture", default="resnet20_cifar10")
    parser.add_argument("--size", type=int, default=32, help="side of the images, in px")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5000, help="fine-tuning steps of the drift")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--profile", choices=["synthesis", "finetune"])
    parser.add_argument(
        "--scale", action="store_true", help="ImageNet's size instead: storage, memory, planning"
    )
    parser.add_argument(
        "--sites", action="store_true", help="what functional and repeated activations cost instead"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    if arguments.scale:
        # The smaller first: the most memory of a child is that of all children so far.
        planned = [scale.planning(number) for number in (50, 1)]
        result = {"planning": planned, "storage": scale.storage(5120)}
        for part in (*planned, result["storage"]):
            print(tabulate(part.items(), ["what", "measured"], tablefmt="github"), end="\n\n")
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        return
    if arguments.sites:
        cells: dict[tuple[str, str], list[str]] = {}
        for batch in arguments.batch:
            found = call_sites(
                arguments.architecture, arguments.size, batch, device, arguments.repeats
            )
            for kind, spellings in found.items():
                for name, ratio in spellings.items():
                    text = f"{ratio.median:.3f} ({ratio.spread:.3f})"
                    cells.setdefault((kind, name), []).append(text)
        headers = ["of modules'", "activations", *(f"batch {batch}" for batch in arguments.batch)]
        print(tabulate([[*key, *own] for key, own in cells.items()], headers, tablefmt="github"))
        return
    if arguments.profile:
        subject = Subject(arguments.architecture, arguments.size, arguments.batch[0], device)
        print(profile(subject, arguments.profile))
        return
    result: dict[str, Any] = {"versions": versions(), "threads": arguments.threads, "per F": {}}
    rows: dict[str, list[str]] = {}
    for batch in arguments.batch:
        subject = Subject(arguments.architecture, arguments.size, batch, device)
        measured, unit = per_forward(subject, arguments.repeats)
        result["per F"][batch] = {"F in seconds": unit, **measured}
        for name, ratio in measured.items():
            rows.setdefault(name, []).append(f"{ratio.median:.2f} ({ratio.spread:.2f})")
    headers = ["in units of F", *(f"batch {batch}" for batch in arguments.batch)]
    print(tabulate([[name, *cells] for name, cells in rows.items()], headers, tablefmt="github"))
    result["peak memory in MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    result["drift"] = drift(arguments.architecture, arguments.size, device, arguments.steps)
    result["start in seconds"] = started(arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        result["two jobs"] = two_jobs(Path(folder), "resnet20_cifar10", 32)
        result["shard"] = shard_bytes(Path(folder))
    others = [
        [
            f"a step after {arguments.steps} steps, of a first one",
            f"{result['drift'].median:.2f} ({result['drift'].spread:.2f})",
        ],
        ["start of a stage beyond torch's import", f"{result['start in seconds']:.2f} s"],
        [
            f"two shards by two jobs on {os.cpu_count()} cores, faster than by one",
            f"{result['two jobs']:.2f} times",
        ],
        [
            "a shard's bytes of its images'",
            f"{result['shard']['file']} of {result['shard']['images']}",
        ],
        ["peak memory of these measurements", f"{result['peak memory in MB']:.0f} MB"],
    ]
    print()
    print(tabulate(others, ["what", "measured"], tablefmt="github"))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
