"""Settings of a fine-tuning that leave nothing to train by are refused with the config."""

import pytest

from synq.config.finetune import Finetune
from synq.errors import ConfigError

NOTHING = {"distillation_weight": 0.0, "ce_weight": 0.0}


@pytest.mark.parametrize("change", [{"cam": "off"}, {"cam_weight": 0.0}])
def test_an_objective_has_a_term(change):
    with pytest.raises(ConfigError, match="every weight of the objective is 0"):
        Finetune(**NOTHING, **change)
    Finetune(**NOTHING, **change, epochs=0)
    Finetune(**NOTHING, **change, activation_weight=1.0)


def test_a_perturbation_has_a_term_at_the_images_that_it_moves():
    with pytest.raises(ConfigError, match="perturbation is"):
        Finetune(**NOTHING, perturbation=0.01)  # maps count at the images alone
    features = {"feature_weight": 1.0, "perturbation": 0.01}
    Finetune(**NOTHING, **features)
    with pytest.raises(ConfigError, match="no term that counts at x'"):
        Finetune(**NOTHING, **features, perturbed_features=False)
