"""What a runtime can never take is told when the workflow is planned."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from synq.config.calibration import Calibration
from synq.config.export import Export
from synq.config.places import lacking
from synq.config.reading import plan
from synq.config.targets import missing, unfit
from synq.errors import ConfigError

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))
TENSORRT = Export(target="tensorrt")


@pytest.mark.parametrize(
    ("bits", "calibration", "text"),
    [
        ((4, 4), {}, "write calibration.scope: inputs"),
        ((4, 8), {"scope": "inputs", "sum_bits": 7}, "activations of 8 bits; write 7 or fewer"),
        ((4, 4), {"scope": "everything"}, "an image of 8 bits; write calibration.sum_bits: 7"),
        ((8, 7), {"scope": "inputs", "sum_bits": 7}, "weights of 8 bits; write 7 or fewer"),
        ((4, 7), {"scope": "inputs", "sum_bits": 7, "ends_bits": 8}, "weights of 8 bits"),
    ],
)
def test_settings_that_tensorrt_can_never_take_are_told(bits, calibration, text):
    settings = Calibration(**calibration)
    assert text in unfit(TENSORRT, settings, *bits)
    for other in (Export(), Export(target="openvino"), Export(target="tensorrt", format="none")):
        assert unfit(other, settings, *bits) == ""
    # What is kept in full precision may be what does not fit.
    assert unfit(TENSORRT, Calibration(**calibration, keep_bits=("first=float",)), *bits) == ""


def test_settings_that_fit_are_not():
    for scope, bits in (("inputs", (7, 7)), ("everything", (8, 7)), ("inputs", (2, 2))):
        assert unfit(TENSORRT, Calibration(scope=scope, sum_bits=7), *bits) == ""


def test_a_plan_with_them_is_refused_in_one_line():
    plan(CONFIG)
    with pytest.raises(ConfigError) as caught:
        plan({**CONFIG, "export": {"target": "tensorrt"}})
    assert str(caught.value).startswith(
        "export.target of digits-resnet20 is tensorrt, which synq-plus at w4a4 does not fit: "
    )
    with pytest.raises(ConfigError, match=r"'tensorr'.*tensorrt"):
        plan({**CONFIG, "export": {"target": "tensorr"}})


def test_a_runtime_that_is_not_installed_is_told(monkeypatch):
    whole = plan({**CONFIG, "export": {"target": "openvino"}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert lacking(whole, "export", "digits-resnet20") == [
        "export.target is openvino, which is not installed; pip install openvino"
    ]
    assert missing(Export()) == missing(Export(target="openvino", format="none")) == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert lacking(whole, "export", "digits-resnet20") == []
