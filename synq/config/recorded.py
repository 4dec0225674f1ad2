"""What of a job's settings its results depend on: the record that decides whether it runs again.

Settings count by value. A value counts as a change where it is not that of ``baseline.json``, which
names what results were made with before a setting existed: a new setting at its default remakes
nothing, and a default that is changed in the code remakes what it changes.
"""

import dataclasses
import functools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from synq.config.fields import settings_of, words

BASELINE = Path(__file__).with_name("baseline.json")


@functools.cache
def baseline() -> dict[str, dict[str, Any]]:
    """Section -> name -> the value that goes without saying.

    An entry is never changed: results that are there were made with it. A setting without an entry
    has its default here. Every setting gets one with its first release, or before that when its
    default is changed, as the value that it had.
    """
    found: dict[str, dict[str, Any]] = json.loads(BASELINE.read_text(encoding="utf-8"))
    return found


def recorded(section: str, settings: Any, *, without: Collection[str] = ()) -> list[str]:
    """``section.name=value`` of each setting that is not at its baseline, sorted by name.

    ``without`` names settings that change no result.
    """
    said = baseline().get(section, {})
    found = []
    for name, (field, _) in settings_of(type(settings)).items():
        value = getattr(settings, name)
        silent = said.get(name, field.default)
        silent = tuple(silent) if isinstance(silent, list) else silent
        if name not in without and (field.default is dataclasses.MISSING or value != silent):
            found.append(f"{section}.{name}={' '.join(words(value))}")
    return sorted(found)
