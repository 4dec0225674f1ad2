"""Files of the user's that are not there: which are looked for, and what is said."""

from pathlib import Path

import pytest
import yaml

from synq.config.places import lacking
from synq.config.plan import plan

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))
OWN = {
    **{"source": "python", "factory": "own_nets.small:build", "weights": "nets/w.pth"},
    **{"sha256": "0" * 64, "classes": 2, "channels": 1, "image_size": 8},
    **{"mean": [0.5], "std": [0.2], "test": {"dataset": "folder", "path": "data/val"}},
    "real": {"dataset": "arrays", "path": "data/few.npz"},
}


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tell(section, image_set="", **changes):
        whole = plan({**CONFIG, "models": {**CONFIG["models"], "own": {**OWN, **changes}}})
        return lacking(whole, section, "own", image_set)

    return tell


def test_what_is_not_there_is_told_with_its_setting(told, tmp_path):
    assert told("model") == [
        "models.own.weights is nets/w.pth, and there is no such file",
        "models.own.factory is own_nets.small:build, and own_nets is neither installed nor in "
        f"{tmp_path}",
    ]
    assert told("test") == ["models.own.test.path is data/val, and there is no such folder"]
    assert told("real", "few-shot") == [
        "models.own.real.path is data/few.npz, and there is no such file"
    ]


def test_what_is_there_is_not(told, tmp_path):
    for folder in ("nets", "own_nets", "data/val"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("nets/w.pth", "data/few.npz"):
        (tmp_path / file).touch()
    assert told("model") == told("test") == told("real", "few-shot") == []
    # A file is no folder.
    assert told("test", test={"dataset": "folder", "path": "nets/w.pth"})


def test_what_is_elsewhere_is_not_looked_for(told):
    more = {"factory": "synq.models.digits:resnet20"}
    for weights in ("https://example.org/w.pth", "package:synq/models/w.safetensors"):
        assert told("model", weights=weights, **more) == []
    assert told("test", test={"dataset": "cifar10", "path": "data"}) == []
    assert told("test", test={}) == []
