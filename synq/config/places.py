"""What of the user's own files is not there, to be told before the first job runs."""

import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from synq.config.plan import Plan
from synq.config.targets import missing

ELSEWHERE = ("http://", "https://", "package:")


def lacking(plan: Plan, section: str, model: str, image_set: str = "") -> list[str]:
    """A line for each path of a model's ``section`` (model, test or real) that is not there.

    Of ``export`` it is what the file's runtime needs.
    Relative paths begin where the workflow runs. Of ``real`` the settings are the image set's.
    """
    where = f"models.{model}"
    if section == "model":
        return [*_of_model(plan.models[model], where)]
    if section == "export":
        return [*filter(None, [missing(plan.settings("export", model))])]
    if section == "test":
        return [*_of_images(plan.settings("test", model), f"{where}.test.path")]
    return [*_of_images(plan.image_settings(model, image_set), f"{where}.real.path")]


def _of_model(settings: Any, where: str) -> Iterator[str]:
    weights = settings.weights
    if not weights.startswith(ELSEWHERE) and not os.path.isfile(weights):
        yield f"{where}.weights is {weights}, and there is no such file"
    package = settings.factory.partition(":")[0].partition(".")[0]
    if package and not _importable(package):
        yield (
            f"{where}.factory is {settings.factory}, and {package} is neither installed nor in "
            f"{os.getcwd()}"
        )


def _importable(package: str) -> bool:
    try:
        here = importlib.machinery.PathFinder.find_spec(package, [os.getcwd()])
        return bool(here or importlib.util.find_spec(package))
    except ValueError:  # it is loaded, and does not know from where
        return True


def _of_images(settings: Any, where: str) -> Iterator[str]:
    kinds = {"folder": (os.path.isdir, "folder"), "arrays": (os.path.isfile, "file")}
    if settings.dataset in kinds:
        exists, kind = kinds[settings.dataset]
        if not exists(settings.path):
            yield f"{where} is {settings.path}, and there is no such {kind}"
