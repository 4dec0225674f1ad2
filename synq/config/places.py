"""What of the user's own files is not there or not right, to be told before the first job runs."""

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from synq.config.names import folders, pictures, some, unclear, written
from synq.config.plan import Plan
from synq.config.targets import missing
from synq.errors import reason

ELSEWHERE = ("http://", "https://", "package:")


def lacking(plan: Plan, section: str, model: str, image_set: str = "") -> list[str]:
    """A line for each path of a model's ``section`` (model, test or real) that is not there.

    Of the model it is also weights that ``sha256`` is not of, of images a folder that has not one
    directory a class, nor images alone, and of ``export`` what the file's runtime needs; of the
    last two names of classes that cannot be read, or are too few or many.
    Relative paths begin where the workflow runs. Of ``real`` the settings are the image set's.
    """
    where, classes = f"models.{model}", plan.models[model].classes
    if section == "model":
        return [*_of_model(plan.models[model], where)]
    if section == "export":
        needed = missing(plan.settings("export", model))
        names = plan.settings("test", model).names
        return [*filter(None, [needed]), *_of_names(names, where, classes)]
    return [*_of_images(plan.images_of(section, model, image_set), where, section, classes)]


def _of_model(settings: Any, where: str) -> Iterator[str]:
    weights = settings.weights
    if not weights.startswith(ELSEWHERE):
        yield from _of_weights(weights, settings.sha256.lower(), where)
    package = settings.factory.partition(":")[0].partition(".")[0]
    if package and not _importable(package):
        yield (
            f"{where}.factory is {settings.factory}, and {package} is neither installed nor in "
            f"{os.getcwd()}"
        )


def _of_weights(path: str, sha256: str, where: str) -> Iterator[str]:
    if not os.path.isfile(path):
        yield f"{where}.weights is {path}, and there is no such file"
        return
    try:
        found = _sha256(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        yield f"{where}.weights is {path}, which cannot be read ({error.strerror})"
        return
    if found != sha256:
        yield (
            f"{where}.weights is {path}, whose SHA-256 is {found[:12]}..., and sha256 says "
            f"{sha256[:12]}...; bring the right file, or write what `sha256sum {path}` prints"
        )


@functools.cache
def _sha256(path: str, changed: int) -> str:
    """Of a file as it is at a time of change: Snakemake asks for a job's inputs several times."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _importable(package: str) -> bool:
    try:
        here = importlib.machinery.PathFinder.find_spec(package, [os.getcwd()])
        return bool(here or importlib.util.find_spec(package))
    except ValueError:  # it is loaded, and does not know from where
        return True


def _of_images(settings: Any, where: str, section: str, classes: int) -> Iterator[str]:
    path = f"{where}.{section}.path is {settings.path}"
    kinds = {"folder": (os.path.isdir, "folder"), "arrays": (os.path.isfile, "file")}
    if settings.dataset in kinds:
        exists, kind = kinds[settings.dataset]
        if not exists(settings.path):
            yield f"{path}, and there is no such {kind}"
        elif kind == "folder":
            wrong = [*_of_names(settings.names, where, classes)]
            yield from wrong or _of_folder(settings, path, classes)


def _of_folder(settings: Any, path: str, classes: int) -> Iterator[str]:
    """Where there are more or fewer directories than classes; which, where the names say it.

    None at all where the images have no labels.
    """
    try:
        found = folders(settings.path)
    except OSError as error:
        yield f"{path}, which cannot be read ({error.strerror})"
        return
    names = set(written(settings.names))
    if not found and pictures(settings.path):
        return
    if classes in (0, len(found)):  # 0: nobody knows it yet
        if why := unclear(written(settings.names), found):
            yield f"{path}, where {why}"
        return
    what = "it needs one a class, and no other, or none and images without labels"
    if found < names:
        what = f"there is none for {some(names - found)}"
    elif names and names < found:
        what = f"{some(found - names)} is not among the names of the classes"
    yield f"{path}, which has {len(found)} folders, and the network has {classes} classes; {what}"


def _of_names(names: Sequence[str], where: str, classes: int) -> Iterator[str]:
    try:
        count = len(written(names))
    except (OSError, UnicodeDecodeError) as error:
        yield f"{where}.names is {names[0]}, which cannot be read ({reason(error)})"
        return
    if names and classes not in (0, count):
        source = f" is {names[0]}, which" if len(names) == 1 else ""
        yield f"{where}.names{source} has {count} names, and the network has {classes} classes"
