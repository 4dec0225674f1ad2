"""Every method of the config has the same settings from Python as in the workflow."""

from pathlib import Path

import pytest
import yaml

from synq.api import settings
from synq.config.reading import plan

WORKFLOW = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))
NETWORK = settings.described((3, 32, 32), 10, [0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("method", WORKFLOW["methods"])
def test_a_method_has_the_settings_of_the_workflow(method):
    run = settings.run_settings(NETWORK, "w4a4", method, 0, {}, held=("test", "real"))
    grid = {"models": ["own"], "bits": ["w4a4"], "methods": [method], "seeds": [0]}
    config = {**WORKFLOW, "models": {"own": NETWORK}, "grid": grid}
    whole = plan(config, held=("test", "real"))
    assert run.finetune == whole.settings("finetune", "own", method=method)
    assert run.calibration == whole.settings("calibration", "own", method=method)
    assert run.images == whole.image_settings("own", whole.methods[method].images)
