"""What a job's parameters change with: each setting reaches the stages after it, and no others."""

import json
from pathlib import Path

import pytest
import yaml

from synq.config.cost import Limits
from synq.config.needs import misfits
from synq.config.provenance import Provenance
from synq.config.reading import plan

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))
DIGITS = "digits-resnet20"
STAGES = ("synthesize", "finetune", "evaluate", "export")


def planned(**changes):
    """The config of the clone with a zoo's network, and one that borrows its images."""
    zoo = {"source": "torchvision", "test": {"dataset": "none"}}
    models = {
        **CONFIG["models"],
        "lender": {**zoo, "architecture": "resnet50"},
        "borrower": {**zoo, "architecture": "convnext_tiny", "relative": "lender"},
    }
    return plan({**CONFIG, "models": models, **changes})


def parameters(provenance, model=DIGITS):
    """What Snakemake keeps of the jobs of ``synq-plus``: their own record, and the inputs'."""
    own = {
        "synthesize": provenance.record("images", model, "natural"),
        "finetune": provenance.record("finetune", model, "synq-plus"),
        "evaluate": provenance.record("evaluation", model),
        "export": provenance.record("export", model),
    }
    named = {stage: {"method": "synq-plus"} for stage in STAGES}
    named["synthesize"] = {"image_set": "natural"}
    return {
        stage: (own[stage], provenance.made_from(stage, model, **named[stage])) for stage in STAGES
    }


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, ()),
        ({"store": "elsewhere"}, ()),
        ({"synthesis": {"iterations": 7}}, ()),  # the model's own section says another number
        ({"synthesis": {"bn_weight": 7.0}}, STAGES),
        ({"calibration": {"clip_ratio": 0.7}}, STAGES[1:]),
        ({"finetune": {"momentum": 0.5}}, STAGES[1:]),
        ({"export": {"images": 7}}, ("export",)),
        ({"evaluation": {"batch_size": 7}}, ("evaluate",)),
    ],
)
def test_a_setting_reaches_its_stage_and_those_after_it(changes, reached):
    before, after = (parameters(Provenance(planned(**more))) for more in ({}, changes))
    assert tuple(stage for stage in STAGES if before[stage] != after[stage]) == reached


def test_a_file_of_weights_counts_by_its_content():
    def recorded(**more):
        own = {**CONFIG["models"][DIGITS], **more}
        provenance = Provenance(planned(models={DIGITS: own}))
        assert own["weights"] in provenance.flags("model", DIGITS)
        return provenance.record("model", DIGITS), parameters(provenance)

    before = recorded()
    assert recorded(weights="moved/elsewhere.pth") == before
    assert recorded(sha256="0" * 64) != before


@pytest.mark.parametrize(
    ("dataset", "reached"),
    [("folder", ("test", "images", "export")), ("arrays", ("export",)), ("digits", ("export",))],
)
def test_names_are_recorded_where_they_order_folders_and_in_exports(tmp_path, dataset, reached):
    file = tmp_path / "names.txt"
    file.write_text("a\nb\n", "utf-8")

    def records(**more):
        data = {"dataset": dataset, "path": "data"}
        own = {**CONFIG["models"][DIGITS], "test": data, "real": data, **more}
        provenance = Provenance(planned(models={DIGITS: own}))
        stages = (("test", DIGITS), ("images", DIGITS, "few-shot"), ("export", DIGITS))
        return {stage: provenance.record(stage, *names) for stage, *names in stages}

    without, listed, one = records(), records(names=["a", "b"]), records(names=str(file))
    file.write_text("b\na\n", "utf-8")
    other = records(names=str(file))
    for before, after in ((without, listed), (without, one), (one, other)):
        assert tuple(stage for stage in before if before[stage] != after[stage]) == reached
    assert not any("names" in line for lines in without.values() for line in lines)


def test_all_runs_are_made_from_what_each_is():
    before = Provenance(planned()).made_from_runs()
    assert Provenance(planned(store="elsewhere")).made_from_runs() == before
    for changes in ({"export": {"images": 7}}, {"finetune": {"momentum": 0.5}}):
        assert Provenance(planned(**changes)).made_from_runs() != before


def test_a_borrowers_students_are_made_from_the_lenders_images():
    config = planned()
    lender = {"source": "torchvision", "architecture": "resnet50", "test": {"dataset": "none"}}
    for change in ({"synthesis": {"bn_weight": 7.0}}, {"weights": "IMAGENET1K_V1"}):
        models = {
            "lender": {**lender, **change},
            "borrower": {**lender, "architecture": "convnext_tiny", "relative": "lender"},
        }
        changed = plan({**CONFIG, "models": {**CONFIG["models"], **models}})
        before, after = (parameters(Provenance(made), "borrower") for made in (config, changed))
        assert before["finetune"][1] != after["finetune"][1]


def test_the_flags_have_every_setting_and_a_zoo_has_its_store():
    provenance = Provenance(planned())
    assert "--store" in provenance.flags("model", "lender")
    assert "--store" not in provenance.flags("model", DIGITS)
    flags = provenance.flags("finetune", DIGITS, "synq-plus")
    assert flags[flags.index("--weights") + 1] == "learned"
    assert flags[flags.index("--passes") + 1] == "5"


def test_limits_are_of_the_settings_that_a_job_has():
    limits = Limits(planned(), gpu=False)
    assert limits.shard(DIGITS, "natural", "class-0000") < limits.shard(
        "lender", "natural", "class-0000"
    )
    assert limits.shard("lender", "natural", "class-0000") < limits.shard(
        "lender", "natural", "classes-0000-0009"
    )
    assert limits.borrowing("borrower", "natural", "class-0000") < limits.shard(
        "lender", "natural", "class-0000"
    )
    assert limits.student(DIGITS, "int8") < limits.student("lender", "synq-plus")
    assert Limits(planned(), gpu=True).student("lender", "synq-plus") < limits.student(
        "lender", "synq-plus"
    )
    # The teacher alone, then the students of a run; a model without a test set has nothing to do.
    assert limits.evaluation("lender") == limits.evaluation("lender", "synq-plus")
    assert limits.evaluation(DIGITS) <= limits.evaluation(DIGITS, "synq-plus")


def test_an_inspection_counts_for_the_teacher_that_it_was_of(tmp_path):
    config = planned(results=str(tmp_path))
    provenance = Provenance(config)
    assert [*misfits(config, provenance)] == []
    path = tmp_path / f"models/{DIGITS}/inspection.json"
    path.parent.mkdir(parents=True)
    refusal = {"synthesis.prior=auto": "it has no BatchNorm layer"}
    found = {"refusals": refusal, "names": [], "quantized_parameters": 1, "bytes": {"2": 1}}
    for recipe, count in (("another", 0), (provenance.inspected(DIGITS), 1)):
        path.write_text(json.dumps({**found, "recipe": recipe}), "utf-8")
        assert len([*misfits(config, provenance)]) == count
