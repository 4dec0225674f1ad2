"""Settings by value: which of them a job's record names, and that nothing is left out."""

import dataclasses
from pathlib import Path

import pytest

import synq
from synq.config.fields import convert, setting, settings_of
from synq.config.finetune import Finetune
from synq.config.model import PLACES, Model
from synq.config.plan import STAGES
from synq.config.recorded import baseline, recorded
from synq.config.synthesis import Synthesis

SECTIONS = {"model": Model, **STAGES}
CHANGELOG = (Path(__file__).parents[3] / "CHANGELOG.md").read_text("utf-8")
# A release moves what is unreleased below a heading of its own, with a date.
UNRELEASED = f"## [{synq.__version__}]" not in CHANGELOG


def with_field(cls, name, kind, default):
    """The settings class with one more field, or with another default of one that it has."""
    return dataclasses.make_dataclass(
        cls.__name__,
        [(name, kind, setting(default, "new"))],
        bases=(cls,),
        frozen=True,
        kw_only=True,
    )


def former(cls, **values):
    """Settings that are at their baseline, which may not be their default, but for ``values``."""
    section = cls.__name__.lower()
    return convert(cls, {**baseline()[section], **values}, section)


def test_settings_at_their_baseline_are_not_named():
    assert recorded("finetune", former(Finetune)) == []


def test_values_are_named_readably_and_in_order():
    settings = former(
        Finetune,
        **{"lr_milestones": [20, 40], "learning_rate": 1e-6, "perturbed_features": False},
    )
    assert recorded("finetune", settings) == [
        "finetune.learning_rate=1e-06",
        "finetune.lr_milestones=20 40",
        "finetune.perturbed_features=false",
    ]


def test_a_setting_without_a_default_is_always_named_and_a_place_never():
    model = Model(
        source="torchvision", architecture="a", classes=3, image_size=8, store="/elsewhere"
    )
    assert recorded("model", model, without=PLACES) == [
        "model.architecture=a",
        "model.classes=3",
        "model.image_size=8",
        "model.source=torchvision",
    ]


@pytest.mark.parametrize("cls", [Finetune, Synthesis])
def test_a_new_setting_at_its_default_changes_nothing_and_another_value_does(cls):
    section = cls.__name__.lower()
    wider = with_field(cls, "brightness", float, 1.0)
    assert recorded(section, wider()) == recorded(section, cls())
    assert recorded(section, former(wider)) == []
    assert recorded(section, former(wider, brightness=2.0)) == [f"{section}.brightness=2.0"]


def test_a_default_that_is_changed_in_the_code_is_named_and_the_former_value_is_not():
    other = with_field(Finetune, "epochs", int, 120)
    assert "finetune.epochs=120" in recorded("finetune", other())
    assert recorded("finetune", former(other)) == []


@pytest.mark.skipif(UNRELEASED, reason="settings of this version may have no entry yet")
@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_of_a_release_has_its_baseline(section):
    known = settings_of(SECTIONS[section])
    missing = {
        name: field.default
        for name, (field, _) in known.items()
        if field.default is not dataclasses.MISSING and name not in baseline()[section]
    }
    assert not missing, f"write into synq/config/baseline.json, under {section}: {missing}"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_entry_is_of_a_setting(section):
    gone = set(baseline()[section]) - set(settings_of(SECTIONS[section]))
    assert not gone, f"remove from synq/config/baseline.json what is no setting any more: {gone}"


def test_an_entry_has_a_value_that_the_setting_can_have():
    for section, entries in baseline().items():
        for name, value in entries.items():
            field, _ = settings_of(SECTIONS[section])[name]
            if value != field.default and value not in ("", []):
                convert(SECTIONS[section], {name: value}, section)


def test_the_baseline_is_read_with_every_section():
    assert set(baseline()) == set(SECTIONS)
