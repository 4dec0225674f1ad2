"""What the classes are called, and which number each has."""

from collections.abc import Sequence
from pathlib import Path

from synq.config.images import TestSet
from synq.config.names import folders, unclear, written
from synq.errors import DataError


def class_names(test: TestSet, classes: int) -> list[str]:
    """The names that the test set's settings give, or its folders', or else numbers from 0 on.

    DataError where there are not as many names as classes.
    """
    names = _given(test.names)
    source = test.names[0] if len(test.names) == 1 else "names"
    if not test.names and test.dataset == "folder" and Path(test.path).is_dir():
        source = test.path
        names = class_folders(Path(source))
    if not names and not test.names:
        return [str(number) for number in range(classes)]
    if len(names) != classes:
        raise DataError(f"{source} has {len(names)} names of classes, the network {classes}")
    return names


def class_folders(root: Path, given: Sequence[str] = ()) -> list[str]:
    """The folders of a data set, one a class, in the order of their numbers; no hidden ones.

    Where the ``given`` names of the classes are exactly those of the folders, their order is that
    of the names, which is the network's. Or else it is the alphabet's; DataError where some are and
    others are not, so that nobody can tell.
    """
    found, names = folders(root), _given(given)
    if why := unclear(names, found):
        raise DataError(f"in {root} {why}")
    return names if {*names} == found else sorted(found)


def _given(names: Sequence[str]) -> list[str]:
    try:
        return written(names)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{names[0]} cannot be read as the file of the classes' names ({error}); "
            "write a name a line"
        ) from None
