"""``synq status``: what the files of a workflow that runs elsewhere say of it."""

import io
import json
import os
import re
import time
from dataclasses import asdict

import pytest

from synq import cli
from synq.config.jobs import Job
from synq.runtime.progress import progress
from synq.stages import status

PROGRESS = "epoch 2/4: 10/40, 3.1 steps/s, 00:03 gone, 00:10 left total 0.4"


def job(number, rule="finetune"):
    name = f"net/w4a4/synq/seed{number}"
    output = f"runs/{name}/student.safetensors"
    return Job(rule, name, output, f"logs/{rule}/{name}.log", f"benchmarks/{rule}/{name}.tsv")


@pytest.fixture
def results(tmp_path):
    planned(tmp_path, *(job(number) for number in range(4)))
    return tmp_path


def planned(root, *jobs, again=()):
    content = {"jobs": [asdict(one) for one in jobs], "configfiles": [], "again": again}
    (root / "jobs.json").write_text(json.dumps(content))


def write(path, text="", age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def done(root, one, seconds):
    write(root / one.output)
    write(root / one.seconds, f"s\th:m:s\n{seconds}\t0:00:10\n")


def told(capsys, root, code=0):
    assert cli.main(["status", str(root)]) == code
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_look_never_or_before_the_last_one_is_refused(results, capsys, seconds):
    assert cli.main(["status", str(results), f"--watch={seconds}"]) == 2
    assert "--watch is " in capsys.readouterr().err


def test_a_folder_that_was_just_begun_waits(results, capsys):
    assert f"{results}: 4 jobs, 0 done, 4 waiting" in told(capsys, results)


def test_what_is_to_be_made_again_is_done_when_it_was(results, capsys):
    for number in range(3):
        done(results, job(number), 12.0)
    planned(results, *(job(number) for number in range(4)), again=[job(1).output, job(2).output])
    os.utime(results / "jobs.json", (time.time() + 1,) * 2)  # later than these files
    assert "4 jobs, 1 done, 3 waiting" in told(capsys, results)
    os.utime(results / "jobs.json", (time.time() - 1,) * 2)
    write(results / job(1).output, age=5000.0)  # with the time of what it replaces
    assert "4 jobs, 3 done, 1 waiting" in told(capsys, results)


def test_each_state_with_the_line_that_tells_most_of_it(results, capsys):
    done(results, job(0), 12.0)
    write(results / job(1).log, f"begun\n{PROGRESS}\n")
    write(results / job(2).log, "begun\nsynq: error: the loss is nan\n")
    text = told(capsys, results, 1)
    assert "4 jobs, 1 done, 1 running, 1 failed, 1 waiting" in text
    assert f"running: finetune net/w4a4/synq/seed1: {PROGRESS}" in text
    assert "failed: finetune net/w4a4/synq/seed2: synq: error: the loss is nan" in text
    assert "finetune  1 of 4, 12 s each" in text
    assert "waiting: 1 of them, about 12 s one by one" in text
    assert "MB used" in text


@pytest.mark.parametrize(
    "line",
    ["torch.OutOfMemoryError: CUDA out of memory", "Killed", "KeyboardInterrupt", "OSError"],
)
def test_a_traceback_s_end_is_a_failure(results, capsys, line):
    write(results / job(0).log, f"Traceback (most recent call last):\n  File\n{line}\n\n")
    assert f"seed0: {line}" in told(capsys, results, 1)


def test_a_job_that_was_interrupted_waits_for_the_next_start(results, capsys):
    write(results / job(0).log, f"{PROGRESS}\nsynq: interrupted\n")
    assert "4 jobs, 0 done, 4 waiting" in told(capsys, results)


def test_a_line_of_progress_after_an_error_is_a_job_that_goes_on(results, capsys):
    write(results / job(0).log, f"ConnectionError: tried again\n{PROGRESS}\n")
    assert "1 running" in told(capsys, results)


def test_a_bar_that_has_not_moved_is_told_with_the_one_before_it(results, capsys, monkeypatch):
    """Bars of less than ten seconds each, as ``runtime.progress`` writes them."""
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    list(progress(range(21), "epoch 1/9"))
    list(progress(range(2), "images"))
    running = iter(progress(range(21), "epoch 2/9"))
    next(running)
    *before, begun = written.getvalue().splitlines()
    running.close()
    monkeypatch.undo()
    assert re.fullmatch(r"epoch 2/9: 0/21, \?it/s, 00:00 gone, \? left ", begun)
    os.utime(results / "jobs.json", (time.time() - 9000,) * 2)
    write(results / job(0).log, "\n".join([*before, begun]), age=4)
    write(results / job(1).log, f"begun\n{begun}\n", age=7)
    text = told(capsys, results)
    assert "seed0: epoch 2/9: 0/21, begun 4 s ago; before it images: 2/2, " in text
    assert "seed1: epoch 2/9: 0/21, begun 7 s ago\n" in text
    assert "?" not in text


def test_a_job_that_is_silent_for_long_is_told_so(results, capsys):
    os.utime(results / "jobs.json", (time.time() - 9000,) * 2)
    write(results / job(0).log, f"{PROGRESS}\n", age=4000)
    assert "silent for 4000 s: finetune net/w4a4/synq/seed0: epoch 2/4" in told(capsys, results)


def test_what_a_former_workflow_ended_with_waits_for_this_one(results, capsys):
    write(results / job(0).log, "synq: error: the disk is full\n", age=100)
    write(results / job(1).log, f"{PROGRESS}\n", age=100)
    assert "4 jobs, 0 done, 4 waiting" in told(capsys, results)


def test_remarks_are_shown_while_it_runs(results, capsys):
    write(results / "models/net/metrics.json", json.dumps({"warning": "odd test set"}))
    write(results / "runs/net/w4a4/synq/seed0/metrics.json", json.dumps({"remark": "it rose"}))
    write(results / "runs/net/w4a4/synq/seed1/metrics.json", "half of a fi")
    text = told(capsys, results)
    assert "remark: net: odd test set" in text
    assert "remark: net: it rose" in text


def test_what_a_log_sends_to_a_terminal_is_not_sent_on(results, capsys):
    write(results / job(0).log, "\x1b[2Jstep 1\rstep 2\x07\n")
    text = told(capsys, results)
    assert "step 2" in text
    assert not {"\x1b", "\x07", "\r"} & set(text)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"jobs": [1]}', '{"jobs": [{"rule": 1}]}'])
def test_a_damaged_list_of_jobs_is_one_line(results, capsys, content):
    (results / "jobs.json").write_text(content)
    assert cli.main(["status", str(results)]) == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error
    assert error.count("\n") == 1


def test_a_foreign_folder_is_one_line(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none"):
        assert cli.main(["status", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_watching_repeats_until_it_is_interrupted(results, capsys, monkeypatch):
    waits = iter([None, KeyboardInterrupt])

    def sleep(seconds):
        assert seconds == 7
        stop = next(waits)
        if stop:
            raise stop

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert cli.main(["status", str(results), "--watch", "7"]) == 0
    assert capsys.readouterr().out.count("4 jobs") == 2
