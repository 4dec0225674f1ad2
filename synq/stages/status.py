"""How far a folder of results is, from its files alone; nothing of torch is loaded."""

import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synq.config import layout
from synq.config.jobs import Job
from synq.errors import ArtifactError, ConfigError
from synq.io.benchmarks import read_seconds

# A stage prints its progress every ten seconds; one that is silent for as long as this may have
# been killed, or is at a step that takes long.
SILENT = 120  # s
STATES = ("done", "running", "silent", "failed", "waiting")
# What runtime.progress prints.
PROGRESS = re.compile(r": \d+/\d+, .* gone, .* left")
# A bar that was begun and has not moved: a line every ten seconds is all that follows.
BEGUN = re.compile(r"(.*: \d+/\d+), \?\S*, [\d:]+ gone, \? left")
# What a command that was stopped by hand ends with (``synq.cli``); the next start goes on with it.
INTERRUPTED = "synq: interrupted"
FAILURES = re.compile(r"synq: error: |[\w.]*(Error|Exception|Interrupt)\b.*|Killed|Terminated")


@dataclass(frozen=True)
class Found:
    """A job, its state, the seconds that it took, and the line of its log that tells most."""

    job: Job
    state: str
    seconds: float = math.nan
    line: str = ""


def status(*, results: Path, watch: float) -> int:
    """Print how far the results are, again every ``watch`` seconds where that is not 0.

    The exit code is 1 where a job has failed. ConfigError or ArtifactError where there is nothing
    to tell of.
    """
    if not 0 <= watch < math.inf:
        raise ConfigError(f"--watch is {watch:g}; it is the seconds between two looks")
    while True:
        text, failed = _told(results)
        if not watch:
            print(text)
            return int(failed)
        width = shutil.get_terminal_size().columns
        # Clears the screen, and begins at its top.
        print("\033[2J\033[H" + "\n".join(line[:width] for line in text.splitlines()), flush=True)
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            return int(failed)


def _told(results: Path) -> tuple[str, bool]:
    jobs, again, started = _jobs(results)
    found = [_look(results, job, started, again=job.output in again) for job in jobs]
    lines = [f"{results}: {_counts(found)}"]
    lines += _rules(found)
    for state in ("running", "silent", "failed"):
        lines += [_line(one) for one in found if one.state == state]
    lines += _left(found)
    lines += [f"remark: {remark}" for remark in _remarks(results)]
    lines.append(f"disk: {_bytes(results) / 1e6:,.1f} MB used")
    return "\n".join(lines), any(one.state == "failed" for one in found)


def _jobs(results: Path) -> tuple[list[Job], set[str], float]:
    """The jobs that the workflow listed when it started, what was to be made again, and when."""
    path = results / layout.JOBS
    if not results.is_dir():
        raise ConfigError(f"{results} is not a folder; name the folder of results")
    try:
        content = json.loads(path.read_text("utf-8"))
        jobs = [Job(**{key: str(value) for key, value in job.items()}) for job in content["jobs"]]
        # Of a folder that an older version has made there is no such list.
        return jobs, set(content.get("again", ())), path.stat().st_mtime
    except FileNotFoundError:
        raise ConfigError(
            f"{results} holds no {layout.JOBS}, which snakemake writes when it starts; "
            "is it a folder of results?"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}); snakemake writes it anew"
        ) from None


def _look(results: Path, job: Job, started: float, *, again: bool) -> Found:
    log, output = results / job.log, results / job.output
    # By when the file was changed: its time of modification is set back where its content is as
    # before.
    if output.exists() and not (again and output.stat().st_ctime < started):
        return Found(job, "done", read_seconds(results / job.seconds))
    try:
        written = log.stat().st_mtime
        lines = _lines(log)
    except OSError:
        return Found(job, "waiting")
    line = lines[-1] if lines else ""
    failure = next((own for own in reversed(lines) if FAILURES.match(own)), "")
    if failure and not PROGRESS.search(line):
        # What a former snakemake ended with is tried again by this one.
        return Found(job, "failed" if written >= started else "waiting", line=failure)
    if written < started or line == INTERRUPTED:
        return Found(job, "waiting")
    age = time.time() - written
    state = "running" if age < SILENT else "silent"
    return Found(job, state, seconds=age, line=_newest(lines, age))


def _newest(lines: Sequence[str], age: float) -> str:
    """The last line, written ``age`` seconds ago; of a bar that has not moved, what was before it.

    Where a bar takes less than ten seconds, its first line is all that a look would find of each.
    """
    line = lines[-1] if lines else ""
    begun = BEGUN.match(line)
    if begun is None:
        return line
    moved = (own for own in reversed(lines) if PROGRESS.search(own) and not BEGUN.match(own))
    before = next(moved, "")
    told = f"{begun[1]}, begun {age:.0f} s ago"
    return f"{told}; before it {before}" if before else told


def _lines(log: Path) -> list[str]:
    """The last lines of a log that say anything, printable; a log may be long."""
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 8192))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return ["".join(char for char in line if char.isprintable()) for line in lines]


def _counts(found: Sequence[Found]) -> str:
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    told = [f"{count} {state}" for state, count in counts.items() if count or state == "done"]
    return f"{len(found)} jobs, {', '.join(told)}"


def _rules(found: Sequence[Found]) -> Iterator[str]:
    """A line a rule: how many of its jobs are done, and the seconds of one."""
    width = max((len(one.job.rule) for one in found), default=0)
    for rule in dict.fromkeys(one.job.rule for one in found):
        own = [one for one in found if one.job.rule == rule]
        seconds = _seconds(own)
        shown = f", {statistics.fmean(seconds):,.0f} s each" if seconds else ""
        done = sum(one.state == "done" for one in own)
        yield f"  {rule:<{width}}  {done} of {len(own)}{shown}"


def _seconds(found: Sequence[Found]) -> list[float]:
    return [one.seconds for one in found if one.state == "done" and not math.isnan(one.seconds)]


def _line(one: Found) -> str:
    name = f"{one.job.rule} {one.job.name}".strip()
    since = f" for {one.seconds:.0f} s" if one.state == "silent" else ""
    return f"{one.state}{since}: {name}: {one.line or 'its log is empty'}"


def _left(found: Sequence[Found]) -> Iterator[str]:
    """What the waiting jobs will take, as far as jobs of their rule are done."""
    waiting = [one for one in found if one.state == "waiting"]
    if not waiting:
        return
    total, unknown = 0.0, 0
    for one in waiting:
        seconds = _seconds([other for other in found if other.job.rule == one.job.rule])
        if seconds:
            total += statistics.fmean(seconds)
        else:
            unknown += 1
    if total:
        rest = (
            f"; {unknown} of them of rules that have not run yet are not in it" if unknown else ""
        )
        yield f"waiting: {len(waiting)} of them, about {_duration(total)} one by one{rest}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _remarks(results: Path) -> list[str]:
    """What the evaluations so far say against their numbers, each once."""
    remarks: dict[str, None] = {}
    for template, key in ((layout.TEACHER_METRICS, "warning"), (layout.METRICS, "remark")):
        for path, names in layout.found(results, template):
            text = _entry(path, key)
            if text:
                remarks[f"{names['model']}: {text}"] = None
    return list(remarks)


def _entry(path: Path, key: str) -> str:
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get(key) or "") if isinstance(content, Mapping) else ""


def _bytes(results: Path) -> int:
    """Bytes of all files; one that a job removes meanwhile counts as none."""
    total = 0
    for path in results.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
