"""Kills, full disks, two runs at once; ``docs/faults.md`` is the table.

Each fault is done to a running workflow or command, which is then finished by the same command, to
the same bytes as a run that nobody disturbed.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from running import (
    ENVIRONMENT,
    HARD,
    PATIENCE,
    RESULTS,
    SYNQ,
    TEACHER,
    ZEROQ,
    Workflow,
    jobs,
    wait,
)

from synq import cli
from synq.io.artifacts import read_checkpoint, write_checkpoint
from synq.io.hdf5 import seal

SHARD = f"{HARD}/classes-0000-0004.h5"


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk of 12 kB; or, without the right to make one, files of at most that size."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)]
    mounted = not os.geteuid() and not subprocess.run(words, check=False).returncode
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 10, 12 << 10))


def command(workflow: Workflow, arguments: list[str], **more: object) -> tuple[int, str]:
    """Exit code and last line of a stage's command."""
    words = [sys.executable, "-m", *arguments, "--threads", "1"]
    ran = subprocess.run(
        words,
        cwd=workflow.root,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )
    assert "Traceback" not in ran.stdout
    return ran.returncode, ran.stdout.splitlines()[-1]


def replaced(arguments: list[str], **values: object) -> list[str]:
    arguments = list(arguments)
    for name, value in values.items():
        arguments[arguments.index(f"--{name}") + 1] = str(value)
    return arguments


def verified(workflow: Workflow, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(["verify", str(workflow.root / RESULTS)])
    return code, capsys.readouterr().out


def test_a_synthesis_killed_in_mid_write_leaves_no_shard_and_is_made_again(
    workflow: Workflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = workflow.bytes(SHARD)
    (workflow.root / SHARD).unlink()
    # Killed with the bytes in the temporary file, which has not got its name yet.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'synthesize' in sys.orig_argv:\n"
        "    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = workflow.run("--", SHARD, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    assert not (workflow.root / SHARD).exists()
    (left,) = (workflow.root / HARD).glob(".*.tmp.*")
    assert f"left over: {left}" in verified(workflow, capsys)[1]
    ran = workflow.run("--", SHARD)
    assert ran.returncode == 0, ran.stdout
    assert workflow.bytes(SHARD) == whole


def test_a_synthesis_killed_between_batches_goes_on_after_the_last_one(
    workflow: Workflow, tmp_path: Path
) -> None:
    small = ["--config", 'models={"digits-resnet20":{"synthesis":{"batch_size":5}}}']
    (workflow.root / SHARD).unlink()
    ran = workflow.run(*small, "--", SHARD)
    assert ran.returncode == 0, ran.stdout
    whole = workflow.bytes(SHARD)
    (workflow.root / SHARD).unlink()
    # Killed with the bytes of the second batch in a temporary file.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "replace = os.replace\n"
        "def second(source, place):\n"
        "    if str(place).endswith('batch-0001.safetensors'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, place)\n"
        "if 'synthesize' in sys.orig_argv:\n"
        "    os.replace = second\n"
    )
    ran = workflow.run(*small, "--", SHARD, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    work = (workflow.root / SHARD).with_suffix(".work")
    assert (work / "batch-0000.safetensors").is_file()
    assert not (workflow.root / SHARD).exists()
    ran = workflow.run(*small, "--", SHARD)
    assert ran.returncode == 0, ran.stdout
    log = (
        workflow.root
        / RESULTS
        / "logs/synthesize"
        / Path(SHARD).relative_to(f"{RESULTS}/synthetic")
    )
    assert "going on after 1 of 4 batches" in log.with_suffix(".log").read_text("utf-8")
    assert workflow.bytes(SHARD) == whole
    assert not work.exists()


# A synthesis that waits until it may go on, so that something can be done to what started it.
HELD = """
import os, pathlib, sys, time
if 'synthesize' in sys.orig_argv:
    folder = pathlib.Path(__file__).parent
    (folder / 'pid').write_text(str(os.getpid()))
    while not (folder / 'go').exists():
        time.sleep(0.1)
"""


@contextlib.contextmanager
def held(workflow: Workflow, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A snakemake whose only job, a synthesis, waits for ``folder/go``."""
    (folder / "sitecustomize.py").write_text(HELD)
    (workflow.root / SHARD).unlink()
    words = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile"]
    words += ["experiments/tiny.yaml", "--", SHARD]
    with open(folder / "log", "w") as log:
        running = subprocess.Popen(
            words,
            cwd=workflow.root,
            env={**ENVIRONMENT, "PYTHONPATH": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        file = folder / "pid"
        wait(lambda: (file.exists() and bool(file.read_text())) or running.poll() is not None)
        assert running.poll() is None, (folder / "log").read_text()
        yield running
    finally:
        (folder / "go").touch()
        running.kill()
        running.wait()
        # If it lives: its number may be another process's by now.
        pid = (folder / "pid").read_text()
        with contextlib.suppress(OSError):
            if b"synthesize" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


def test_the_same_target_twice_at_once_is_refused_and_the_first_run_ends_well(
    workflow: Workflow, tmp_path: Path
) -> None:
    whole = workflow.bytes(SHARD)
    with held(workflow, tmp_path) as first:
        second = workflow.run("--", SHARD)
        assert second.returncode == 1
        assert "Directory cannot be locked" in second.stdout
        (tmp_path / "go").touch()
        assert first.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert workflow.bytes(SHARD) == whole


def test_a_killed_snakemake_is_unlocked_and_goes_on(workflow: Workflow, tmp_path: Path) -> None:
    whole = workflow.bytes(SHARD)
    with held(workflow, tmp_path) as running:
        running.kill()
        assert running.wait(PATIENCE) == -signal.SIGKILL
        # Its job lives on. Here it dies too, as with the machine.
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    again = workflow.run("--", SHARD)
    assert again.returncode == 1
    assert "--unlock" in again.stdout
    assert workflow.run("--unlock").returncode == 0
    ran = workflow.run("--", SHARD)
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {"synthesize": 1}
    assert workflow.bytes(SHARD) == whole


def test_a_terminated_snakemake_waits_for_its_jobs(workflow: Workflow, tmp_path: Path) -> None:
    whole = workflow.bytes(SHARD)
    with held(workflow, tmp_path) as running:
        running.terminate()
        (tmp_path / "go").touch()
        running.wait(PATIENCE)
    ran = workflow.run("--", SHARD)
    assert ran.returncode == 0, ran.stdout
    assert workflow.bytes(SHARD) == whole


def test_a_full_disk_is_told_and_leaves_the_old_file(workflow: Workflow, tmp_path: Path) -> None:
    arguments = workflow.arguments("synthesize", SHARD)
    with full_disk(tmp_path / "disk") as disk:
        target = disk / "shard.h5"
        target.write_bytes(b"old")
        code, line = command(workflow, replaced(arguments, output=target), preexec_fn=limited)
        assert code == 2
        assert line.startswith(f"synq: error: {target} cannot be written: ")
        assert target.read_bytes() == b"old"
        assert list(disk.iterdir()) == [target]
    target = tmp_path / "shard.h5"
    assert command(workflow, replaced(arguments, output=target))[0] == 0
    assert target.read_bytes() == workflow.bytes(SHARD)


def test_a_read_only_results_folder_is_told(workflow: Workflow, tmp_path: Path) -> None:
    arguments = workflow.arguments("synthesize", SHARD)
    folder = tmp_path / "results"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        code, line = command(workflow, replaced(arguments, output=folder / "a" / "b.h5"))
        folder.chmod(0o755)
    else:
        words = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(words, check=False).returncode:
            pytest.skip("root writes everywhere, and may not mount a read-only folder here")
        try:
            code, line = command(workflow, replaced(arguments, output=folder / "a" / "b.h5"))
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    assert code == 2
    assert line.startswith(f"synq: error: {folder}/a/b.h5 cannot be written: ")


def test_a_clock_that_was_set_back_costs_nothing(workflow: Workflow) -> None:
    # The inputs of what is still to do are from a time when the clock was an hour ahead.
    later = time.time() + 3600
    inputs = [TEACHER, f"{RESULTS}/models/digits-resnet20/metrics.json", f"{ZEROQ}/metrics.json"]
    inputs += [str(path.relative_to(workflow.root)) for path in (workflow.root / HARD).glob("*.h5")]
    for path in inputs:
        os.utime(workflow.root / path, (later, later))
    names = ("student.safetensors", "students.safetensors", "metrics.json", "student.onnx")
    whole = [workflow.bytes(f"{SYNQ}/{name}") for name in names]
    shutil.rmtree(workflow.root / SYNQ)
    ran = workflow.run()
    assert ran.returncode == 0, ran.stdout
    assert jobs(ran.stdout) == {
        "finetune": 1,
        "evaluate": 1,
        "export": 1,
        "accuracy": 1,
        "page": 1,
        "all": 1,
    }
    assert [workflow.bytes(f"{SYNQ}/{name}") for name in names] == whole
    # What was made before is older than its inputs now. It is their content that counts.
    assert max((workflow.root / path).stat().st_mtime for path in inputs) <= time.time()
    assert jobs(workflow.plan()) == {}


def finetuned(workflow: Workflow) -> tuple[int, str]:
    """Exit code and last line of a fine-tuning of the shards and the teacher that are there."""
    arguments = workflow.arguments("finetune", "--method synq")
    other = [word.replace(SYNQ, "elsewhere") for word in arguments]
    code, line = command(workflow, other)
    assert not (workflow.root / "elsewhere/student.safetensors").exists()
    return code, line


def test_a_flipped_bit_in_a_shard_is_found_and_deleting_it_mends_the_run(
    workflow: Workflow, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = workflow.bytes(SHARD)
    assert verified(workflow, capsys)[0] == 0
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    (workflow.root / SHARD).write_bytes(content)
    text = f"{SHARD} is truncated or altered"
    code, line = finetuned(workflow)
    assert code == 2
    assert text in line
    code, findings = verified(workflow, capsys)
    assert code == 1
    assert f"damaged: {workflow.root / SHARD} is truncated or altered" in findings
    (workflow.root / SHARD).unlink()
    ran = workflow.run("--", SHARD)
    assert ran.returncode == 0, ran.stdout
    assert workflow.bytes(SHARD) == whole
    assert verified(workflow, capsys)[0] == 0


def test_the_checkpoint_of_another_model_under_the_right_name_is_refused(
    workflow: Workflow, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workflow.root / TEACHER
    tensors, record = read_checkpoint(path, "teacher")
    name = next(iter(tensors))
    other = {**tensors, name: tensors[name] + 1}
    # Its weights are not what its record says that they answer: no stage reads it.
    write_checkpoint(path, "teacher", other, record)
    code, line = finetuned(workflow)
    assert code == 2
    assert "was written of a network that answers otherwise" in line
    write_checkpoint(path, "teacher", other, {**record, "answers": []})
    code, line = finetuned(workflow)
    assert code == 2
    assert "was made from another model" in line
    code, findings = verified(workflow, capsys)
    assert code == 1
    assert f"stale: {workflow.root / SHARD} was made from another teacher" in findings


def test_a_shard_of_an_older_format_is_refused(
    workflow: Workflow, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(workflow.root / SHARD, "r+") as file:
        file.attrs["format"] = 0
    seal(workflow.root / SHARD)
    code, line = finetuned(workflow)
    assert code == 2
    assert f"{SHARD} is a shard file of format 0, this program reads 2; delete it" in line
    assert verified(workflow, capsys)[0] == 1


def test_a_fine_tuning_on_a_full_disk_goes_on_where_there_is_room(workflow: Workflow) -> None:
    arguments = workflow.arguments("finetune", "--method synq")

    def run(folder: str, **more: object) -> tuple[int, str]:
        return command(workflow, [word.replace(SYNQ, folder) for word in arguments], **more)

    code, line = run("parts", preexec_fn=limited)
    assert code == 2
    assert " cannot be written: File too large" in line
    assert not list((workflow.root / "parts").rglob("*.tmp.*"))
    assert (run("parts")[0], run("whole")[0]) == (0, 0)
    for name in ("student.safetensors", "students.safetensors"):
        assert workflow.bytes(f"parts/{name}") == workflow.bytes(f"whole/{name}")


def test_two_signals_within_a_block_end_the_process() -> None:
    """The first is held back until somebody asks; the second is not."""
    code = (
        "import os, signal\n"
        "from synq.finetuning.training import terminations\n"
        "with terminations() as stopped:\n"
        "    assert not stopped()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopped()\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('second', flush=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (-signal.SIGTERM, "first\n"), ran.stderr
