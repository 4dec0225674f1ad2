"""What the classes are called."""

from collections.abc import Sequence
from pathlib import Path

from synq.config.images import TestSet
from synq.errors import DataError


def class_names(given: Sequence[str], test: TestSet, classes: int) -> list[str]:
    """The names ``given``, or those of the test set's folders, or else numbers from 0 on.

    One name alone is that of a text file with a name in each line. DataError where there are not
    as many names as classes.
    """
    names, source = list(given), "names"
    if len(names) == 1:
        source = names[0]
        names = _lines(Path(source))
    elif not names and test.dataset == "folder" and Path(test.path).is_dir():
        source = test.path
        names = class_folders(Path(source))
    if not names and not given:
        return [str(number) for number in range(classes)]
    if len(names) != classes:
        raise DataError(f"{source} has {len(names)} names of classes, the network {classes}")
    return names


def class_folders(root: Path) -> list[str]:
    """The folders of a data set, one a class, in the order of their numbers; no hidden ones."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return [name for name in names if not name.startswith(".")]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as the file of the classes' names ({error}); "
            "write a name a line"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
