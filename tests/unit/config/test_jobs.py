"""The list of jobs, of the config that the clone has."""

from pathlib import Path

import yaml

from synq.config.jobs import jobs, listed
from synq.config.plan import plan

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
    assert counts["finetune"] == counts["evaluate"] == counts["export"] == 9
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
