"""Which GPU a process takes where there are several: locks that die with the process."""

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

    Nobody waits for a device: where all are taken, they are shared, and a line says so. The
    processes that torchrun starts together take different ones even then. Only processes of the
    same user on the same machine see one another. There is no file where a scheduler has chosen,
    or where none can be written.
    """
    place = int(os.environ.get("LOCAL_RANK", "0")) % len(devices)
    if any(name in os.environ for name in CHOSEN):
        return devices[place], None
    try:
        folder = _folder()
        with open(folder / "choosing", "w", encoding="utf-8") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)  # one at a time counts and takes
            mates, others, device, seat = min(_seat(folder, device) for device in devices)
            file = open(seat, "w", encoding="utf-8")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print(_team(), end="", file=file, flush=True)
    except OSError as error:
        _say(f"cuda:{devices[place]}, not locked: {error}")
        return devices[place], None
    shared = f", shared: other processes that have it: {mates + others}"
    _say(f"cuda:{device}" + shared * bool(mates + others))
    return device, file


def _team() -> str:
    """What the processes that torchrun started together have in common; else empty."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _say(text: str) -> None:
    print(f"device: {text}", file=sys.stderr, flush=True)


def _folder() -> Path:
    """This user's folder of locks, on a disk of this machine. OSError if it is somebody else's."""
    folder = Path(tempfile.gettempdir(), f"synq-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's")
    return folder


def _seat(folder: Path, device: int) -> tuple[int, int, int, Path]:
    """A device's processes of the own team and others, its number, a file that nobody locked."""
    mates, others, free = 0, 0, None
    for number in itertools.count():
        seat = folder / f"gpu{device}-{number}"
        if not seat.exists():
            break
        with open(seat, "r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = free or seat
            except BlockingIOError:
                own = bool(_team()) and file.read() == _team()
                mates, others = mates + own, others + (not own)
    return mates, others, device, free or seat
