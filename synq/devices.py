"""Which GPU a process takes where there are several: locks that die with the process."""

import contextlib
import fcntl
import functools
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

# Set where a scheduler or the user has chosen: CUDA, ROCm, Slurm, PBS, LSF, Grid Engine.
CHOSEN = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_O_HOST"),
)


@functools.cache  # a process chooses once, and what is kept here keeps its lock
def take(devices: tuple[int, ...]) -> tuple[int, IO[str] | None]:
    """The device that the fewest processes have, the first among equals, and its locked file.

    Nobody waits for a device: where all are taken, they are shared, and a line says so. Only
    processes of the same user on the same machine see one another. There is no file where a
    scheduler has chosen, or where none can be written.
    """
    if any(name in os.environ for name in CHOSEN):
        return devices[0], None
    try:
        folder = _folder()
        with open(folder / "choosing", "w", encoding="utf-8") as choosing:
            # One at a time counts and takes; nobody keeps this lock for longer.
            fcntl.flock(choosing, fcntl.LOCK_EX)
            taken, device, seat = min(_seat(folder, device) for device in devices)
            file = open(seat, "w", encoding="utf-8")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        print(f"device: cuda:{devices[0]}, not locked: {error}", file=sys.stderr, flush=True)
        return devices[0], None
    shared = f", shared: other processes that have it: {taken}" if taken else ""
    print(f"device: cuda:{device}{shared}", file=sys.stderr, flush=True)
    return device, file


def _folder() -> Path:
    """This user's folder of locks, on a disk of this machine. OSError if it is somebody else's."""
    folder = Path(tempfile.gettempdir(), f"synq-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's")
    return folder


def _seat(folder: Path, device: int) -> tuple[int, int, Path]:
    """How many processes have a device, its number, and a file that nobody has locked."""
    taken, free = 0, None
    for number in itertools.count():
        seat = folder / f"gpu{device}-{number}"
        if not seat.exists():
            return taken, device, free or seat
        with open(seat, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = free or seat
            except BlockingIOError:
                taken += 1
    raise AssertionError("the files have an end")
