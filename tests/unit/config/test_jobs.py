"""The list of jobs, of the config that the clone has."""

from pathlib import Path

import yaml

from synq.config.jobs import jobs, listed
from synq.config.reading import plan

ROOT = Path(__file__).parents[3]


def planned(**changes):
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    return plan(config | changes)


def counted(whole):
    rules = [job.rule for job in jobs(whole)]
    return {rule: rules.count(rule) for rule in rules}


def test_the_default_has_a_job_a_shard_and_three_a_run():
    counts = counted(planned())
    assert counts["synthesize"] == 3
    assert counts["finetune"] == counts["evaluate"] == counts["export"] == 12
    assert (counts["fetch"], counts["accuracy"], counts["page"]) == (1, 1, 1)
    assert "ablation" not in counts


def test_methods_that_share_images_share_their_jobs_and_real_ones_are_collected():
    grid = {
        "models": ["digits-resnet20"],
        "bits": ["w4a4"],
        "methods": ["synq", "hast", "few-shot"],
        "seeds": [0],
    }
    counts = counted(planned(grid=grid, export={"format": "none"}))
    assert counts["synthesize"] == 1
    assert counts["collect"] == 1
    assert "export" not in counts


def test_no_two_jobs_share_a_file():
    whole = planned(ablation={"full": "synq-plus", "methods": ["synq-plus"]})
    for key in ("output", "log", "seconds"):
        paths = [job[key] for job in listed(whole)]
        assert len(paths) == len(set(paths))


def test_a_ladder_has_the_rungs_that_the_grid_lacks_and_each_once():
    grid = {
        "models": ["digits-resnet20"],
        "bits": ["w2a2", "w3a3"],
        "methods": ["rising", "synq"],
        "seeds": [0],
    }
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    rising = {"like": "synq", "finetune": {"start": "wider"}}
    whole = planned(grid=grid, methods={**config["methods"], "rising": rising})
    assert [run["bits"] for run in whole.rungs()] == ["w4a4"]
    names = [job.name for job in jobs(whole) if job.rule == "finetune"]
    assert names[0] == "digits-resnet20/w4a4/rising/seed0"
    assert len(names) == len(set(names)) == 5


def test_borrowed_images_are_made_by_their_relative_first():
    own = planned().models
    (name,) = own
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    model = config["models"][name]
    borrower = {key: value for key, value in model.items() if key != "synthesis"}
    models = {name: model, "other": {**borrower, "relative": name}}
    grid = {"models": ["other"], "bits": ["w4a4"], "methods": ["synq", "few-shot"], "seeds": [0]}
    whole = planned(grid=grid, models=models)
    rules = [job.rule for job in jobs(whole)]
    assert rules.count("fetch") == rules.count("inspect") == 2
    assert rules.count("evaluate_teacher") == 1
    assert rules.index("synthesize") < rules.index("borrow")
    assert rules.count("synthesize") == rules.count("borrow") == rules.count("collect") == 1
    outputs = [job.output for job in jobs(whole)]
    assert len(outputs) == len(set(outputs))
