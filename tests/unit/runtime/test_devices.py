"""Real processes that take pretended GPUs."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synq.errors import ConfigError
from synq.runtime import devices
from synq.runtime.process import resolve_device

# What holds a device until its standard input ends.
HOLDER = """
import sys
from synq.runtime.devices import take
print(take({devices})[0], flush=True)
sys.stdin.read()
"""


class Machine:
    """Processes on a machine of some GPUs, with a temporary folder of its own."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack

    def start(self, *numbers: int, **environment: str) -> subprocess.Popen[str]:
        """A process that chooses among these devices and keeps its own."""
        own = {key: value for key, value in os.environ.items() if key not in devices.CHOSEN}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(devices=numbers)],
            env={**own, "TMPDIR": str(self.folder), **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)
        return process

    def take(self, *numbers: int, **environment: str) -> tuple[int, subprocess.Popen[str]]:
        process = self.start(*numbers, **environment)
        return int(process.stdout.readline()), process


@pytest.fixture
def machine(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Machine(tmp_path, stack)


def said(process):
    return process.communicate(timeout=60)[1]


def test_processes_that_start_at_once_take_different_devices(machine):
    processes = [machine.start(0, 1, 2, 3) for _ in range(4)]
    assert sorted(int(process.stdout.readline()) for process in processes) == [0, 1, 2, 3]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_process_that_ended_frees_its_device(machine, end):
    _, first = machine.take(0, 1)
    assert machine.take(0, 1)[0] == 1
    if end is not None:
        first.send_signal(end)
    first.communicate(timeout=60)  # ends its standard input, and so the process
    assert machine.take(0, 1)[0] == 0


def test_where_all_are_taken_the_least_taken_is_shared_and_a_line_says_so(machine):
    taken = [machine.take(0, 1) for _ in range(5)]
    assert [device for device, _ in taken] == [0, 1, 0, 1, 0]
    for device in (1, 3):  # both processes that have the second
        taken[device][1].kill()
        taken[device][1].wait(60)
    assert [machine.take(0, 1)[0] for _ in range(3)] == [1, 1, 1]
    lines = [said(taken[number][1]) for number in (0, 2, 4)]
    assert lines == [
        "device: cuda:0\n",
        "device: cuda:0, shared: other processes that have it: 1\n",
        "device: cuda:0, shared: other processes that have it: 2\n",
    ]


def test_a_team_of_processes_never_shares_while_there_is_another_device(machine):
    other = [machine.take(1)[0], machine.take(1)[0]]
    assert other == [1, 1]
    team = [
        machine.take(0, 1, TORCHELASTIC_RUN_ID="one", LOCAL_RANK=str(rank)) for rank in range(2)
    ]
    assert [device for device, _ in team] == [0, 1]
    # Another team, and a process of none, go by the number of processes.
    assert machine.take(0, 1, TORCHELASTIC_RUN_ID="two")[0] == 0
    assert machine.take(0, 1)[0] == 0


def test_a_device_that_was_named_is_taken_and_others_avoid_it(machine):
    assert machine.take(0)[0] == 0
    assert machine.take(0)[0] == 0
    assert machine.take(0, 1)[0] == 1


@pytest.mark.parametrize("name", devices.CHOSEN)
def test_the_choice_of_a_scheduler_is_left_alone(machine, name):
    taken = [machine.take(0, 1, **{name: "1"}) for _ in range(2)]
    assert [device for device, _ in taken] == [0, 0]
    assert said(taken[1][1]) == ""
    # It gave them all to one team, whose processes go by their rank.
    assert machine.take(0, 1, **{name: "0,1", "LOCAL_RANK": "1"})[0] == 1
    assert list(machine.folder.iterdir()) == []


@pytest.mark.parametrize("obstacle", ["file", "foreign"])
def test_without_a_folder_for_locks_the_first_device_is_used(machine, obstacle):
    folder = machine.folder / f"synq-{os.getuid()}"
    if obstacle == "file":
        folder.write_text("no folder")
    elif os.getuid():
        pytest.skip("to give a folder away needs root")
    else:
        folder.mkdir()
        os.chown(folder, 12345, -1)
    for _ in range(2):
        device, process = machine.take(0, 1)
        assert device == 0
        assert "not locked: " in said(process)


def test_the_files_do_not_grow_in_number(machine):
    for _ in range(4):
        process = machine.take(0, 1)[1]
        process.kill()
        process.wait(60)
    (folder,) = machine.folder.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["choosing", "gpu0-0"]


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """Two GPUs, as far as torch is asked; none can be computed on."""
    for name in devices.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices.take.cache_clear()
    yield
    devices.take.cache_clear()


def test_a_stage_takes_a_free_device_and_keeps_it(two_gpus, machine):
    assert machine.take(0, 1)[0] == 0
    for name in ("auto", "cuda", "auto"):
        assert resolve_device(name) == torch.device("cuda:1")
    assert machine.take(0, 1)[0] == 0  # both are taken by one process, this one and another


def test_a_device_that_was_named_is_respected(two_gpus, machine):
    assert machine.take(0, 1)[0] == 0
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees 2 here"):
        resolve_device("cuda:2")
