"""The embedded default as the workflow has it."""

from pathlib import Path

import yaml

from synq.config.model import Model
from synq.config.reading import plan
from synq.stages.fetch import fetch

ROOT = Path(__file__).parents[1]
NAME = "digits-resnet20"


def embedded_model() -> Model:
    """What the config says of it."""
    return plan(yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))).models[NAME]


def embedded_teacher(folder: Path) -> Path:
    """The teacher that the workflow's first job makes, in a folder."""
    path = folder / "teacher.safetensors"
    fetch(name=NAME, settings=embedded_model(), download=folder / "download", output=path)
    return path
