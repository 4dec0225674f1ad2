"""Which GPU a process takes where there are several: locks that die with the process."""

import functools
import itertools
import os
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

# Set where a scheduler or the user has chosen: CUDA, ROCm, Slurm, PBS, LSF, Grid Engine.
CHOSEN = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_O_HOST"),
)


@functools.cache  # a process chooses once, and what is kept here keeps its lock
def take(devices: tuple[int, ...]) -> tuple[int, FileLock | None]:
    """The device that the fewest processes have, the first among equals, and its lock.

    Nobody waits for a device: where all are taken, they are shared, and a line says so. The
    processes that torchrun starts together take different ones even then. Only processes of the
    same user on the same machine see one another. There is no lock where a scheduler has chosen,
    or where none can be written.
    """
    place = int(os.environ.get("LOCAL_RANK", "0")) % len(devices)
    if any(name in os.environ for name in CHOSEN):
        return devices[place], None
    try:
        folder = _folder()
        with FileLock(folder / "choosing"):  # one at a time counts and takes
            mates, others, device, seat = min(_seat(folder, device) for device in devices)
            lock = FileLock(folder / seat)
            lock.acquire(timeout=0)
            _mark(folder, seat)
    except OSError as error:
        _say(f"cuda:{devices[place]}, not locked: {error}")
        return devices[place], None
    shared = f", shared: other processes that have it: {mates + others}"
    _say(f"cuda:{device}" + shared * bool(mates + others))
    return device, lock


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


def _seat(folder: Path, device: int) -> tuple[int, int, int, str]:
    """A device's processes of the own team and others, its number, a lock that nobody has."""
    start = f"gpu{device}-"
    mates, others, free = 0, 0, ""
    taken = {path.name for path in folder.glob(f"{start}*")}
    for seat in sorted(taken):
        try:
            with FileLock(folder / seat).acquire(timeout=0):
                free = free or seat
        except Timeout:
            own = bool(_team()) and _team_of(folder, seat) == _team()
            mates, others = mates + own, others + (not own)
    unused = (f"{start}{number}" for number in itertools.count())
    return mates, others, device, free or next(seat for seat in unused if seat not in taken)


def _mark(folder: Path, seat: str) -> None:
    """Write beside a lock of which team its process is; in the lock's own file nothing lasts."""
    if _team():
        (folder / f"team-{seat}").write_text(_team(), "utf-8")
    else:
        (folder / f"team-{seat}").unlink(missing_ok=True)


def _team_of(folder: Path, seat: str) -> str:
    try:
        return (folder / f"team-{seat}").read_text("utf-8")
    except FileNotFoundError:
        return ""
