"""How many GPUs a job on this machine could have, found without torch: the Snakefile asks."""

import os
import subprocess
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
PATIENCE = 10  # seconds for nvidia-smi, which waits for a card that hangs


def visible_gpus() -> int:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, or else all that the driver knows."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return _chosen(chosen)
    try:
        return len(list(DRIVER.iterdir()))
    except OSError:
        return _listed()


def _chosen(text: str) -> int:
    """Entries before the first that is none, as CUDA itself reads them."""
    count = 0
    for entry in text.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return count


def _listed() -> int:
    """GPUs that nvidia-smi lists: where the driver's folder is hidden, as in some containers."""
    try:
        ran = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in ran.stdout.splitlines())
