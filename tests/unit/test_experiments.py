"""The overlays that come with the project: every model fits every method, with random weights."""

import functools
from pathlib import Path

import pytest
import yaml

from synq.config.needs import needs
from synq.config.reading import plan
from synq.models.sources import construct
from synq.reporting.inspection import inspect_model

PROJECT = Path(__file__).parents[2]


def merged(base, overlay):
    """As Snakemake merges config files: mappings deeply, all else replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def read(path):
    return yaml.safe_load(path.read_text("utf-8"))


@functools.cache
def networks():
    """Architecture, size, classes and needs of every model of every overlay, each once."""
    base, found = read(PROJECT / "config.yaml"), {}
    for path in [PROJECT / "config.yaml", *sorted((PROJECT / "experiments").glob("*.yaml"))]:
        whole = plan(merged(base, read(path)))
        for name in whole.grid.models:
            model = whole.models[name]
            built = (model.source, model.architecture, model.factory)
            key = (*built, model.classes, model.channels, model.image_size)
            found.setdefault(key, {}).update(dict.fromkeys(needs(whole, name)))
    return {key: list(wanted) for key, wanted in found.items()}


@pytest.mark.parametrize("network", networks(), ids=lambda key: key[1] or key[2])
def test_every_model_of_an_overlay_fits_every_method_of_it(network):
    *built, classes, channels, size = network
    model = construct(*built, classes=classes, channels=channels, image_size=size)
    found = inspect_model(model, (channels, size, size), networks()[network])
    assert found["problems"] == []
    assert found["feature_blocks"]
    assert found["cam_layer"]


def test_imagenet_has_both_mobilenets_with_all_their_needs():
    for name in ("mobilenet_w1", "mobilenetv2_w1"):
        wanted = networks()["pytorchcv", name, "", 1000, 3, 224]
        assert "hast:finetune.feature_weight=1000.0" in wanted
        assert "synq:finetune.cam=gradcam" in wanted
