"""Progress as a bar on a terminal, as lines in a log."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

_SHOWN = ContextVar("shown", default=True)
_WHOLE = ContextVar("whole", default="")


@contextlib.contextmanager
def showing(shown: bool) -> Iterator[None]:
    """Within the block progress is shown, or not."""
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextlib.contextmanager
def part_of(text: str) -> Iterator[None]:
    """Within the block progress is that of a part, which ``text`` names, of something longer."""
    token = _WHOLE.set(f"{_WHOLE.get()}{text}, " if text else _WHOLE.get())
    try:
        yield
    finally:
        _WHOLE.reset(token)


def places(count: int, what: str = "batch") -> list[str]:
    """A name for each of so many parts, as ``part_of`` takes it; none where there is one alone."""
    return [f"{what} {n + 1} of {count}" if count > 1 else "" for n in range(count)]


class _LogLines(tqdm):  # type: ignore[type-arg]
    """Progress as plain lines: a log has no cursor to move."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        print(msg or str(self), file=sys.stderr, flush=True)
        return True


def progress(
    steps: Iterable[Any], text: str, total: int | None = None, done: int = 0
) -> "tqdm[Any]":
    """``steps`` with a bar on a terminal, or a line every ten seconds in a log."""
    # All processes of a team do the same; one is enough to look at.
    text = _WHOLE.get() + text
    silent = os.environ.get("RANK", "0") != "0" or not _SHOWN.get()
    if silent or sys.stderr.isatty():
        return tqdm(steps, text, total, initial=done, disable=silent)
    line = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {elapsed} gone, {remaining} left {postfix}"
    return _LogLines(
        steps, text, total, initial=done, mininterval=10, maxinterval=10, bar_format=line
    )
