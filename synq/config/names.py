"""What the classes are called, where that is written: in a text file, or by folders of images."""

import os
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def written(names: Sequence[str]) -> list[str]:
    """The names themselves; one alone is that of a text file with a name in each line.

    Raises OSError or UnicodeDecodeError where that file cannot be read.
    """
    if len(names) != 1:
        return list(names)
    lines = Path(names[0]).read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def some(names: set[str]) -> str:
    """The first names, and how many more there are."""
    first, more = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def unclear(names: Sequence[str], found: set[str]) -> str:
    """Why nobody can tell whether folders are numbered by the names or by the alphabet, if so."""
    given = {*names}
    if not given & found or sorted(names) == sorted(found):
        return ""
    wrong = {"is not among the names of the classes": found - given, "is no folder": given - found}
    said = ", and ".join(f"{some(which)} {what}" for what, which in wrong.items() if which)
    return f"{said or 'a name stands twice'}; write the folders' names, or others for all"


def pictures(root: str | Path) -> bool:
    """Whether image files lie in a folder itself, by their suffixes; OSError as of scandir."""
    with os.scandir(root) as found:
        return any(Path(entry.name).suffix.lower() in SUFFIXES for entry in found)


def folders(root: str | Path) -> set[str]:
    """The directories of a data set, one a class, without hidden ones; OSError as of scandir."""
    with os.scandir(root) as found:
        return {entry.name for entry in found if entry.is_dir() and entry.name[0] != "."}
