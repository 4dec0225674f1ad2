"""Errors that the user can mend: one line that says what is wrong, where, and what to do.

The command line prints them without a traceback and exits with code 2. Every other exception is a
bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of all errors that are the input's fault and not the program's.

    What they quote of the input may hold line breaks or commands to a terminal; the text does not.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class ConfigError(UserError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class ArtifactError(UserError):
    """A file is missing, truncated, of another version, or belongs to something else."""


class FormatError(ArtifactError):
    """A file of this program, but of another version of its format."""


class ModelError(UserError):
    """The network cannot be built, loaded, synthesized from or quantized."""


class DataError(UserError):
    """A data set is missing, empty, or does not fit the model."""


class DivergenceError(UserError):
    """A loss stopped being finite."""


def nearest(name: object, known: Iterable[str]) -> str:
    """``'; did you mean x?'``, or a list of what there is. A part less is nearer than a letter."""
    known = list(known)
    close = [end for end in known if str(name).endswith(f"_{end}")]
    close = sorted(close, key=len)[-1:] or difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else f"there is {', '.join(known) or 'none'}"


def reason(error: BaseException) -> str:
    """The first line of what an error of foreign code says, or its name."""
    return (str(error).strip() or repr(error)).splitlines()[0]
