"""Time limits: they grow with the work, and are of the right size for known amounts of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from synq.config.calibration import Calibration
from synq.config.cost import (
    START,
    Limits,
    core_hours,
    evaluation_minutes,
    finetune_minutes,
    generator_forwards,
    kept_students,
    search_forwards,
    synthesis_minutes,
    told,
)
from synq.config.finetune import Finetune
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.plan import Plan
from synq.config.reading import plan
from synq.config.synthesis import Synthesis

SMALL = Model(source="pytorchcv", architecture="resnet20_cifar10")
LARGE = Model(source="pytorchcv", architecture="resnet18")


def test_the_embedded_default_needs_minutes_beyond_the_start():
    settings = Synthesis(images_per_class=16, iterations=60)
    assert synthesis_minutes(SMALL, settings, 1, gpu=False) == START + 1
    assert finetune_minutes(SMALL, Finetune(epochs=16), 160, gpu=False) == START + 1
    assert evaluation_minutes(SMALL, TestSet(dataset="digits"), 17, gpu=False) == START + 1
    assert synthesis_minutes(SMALL, RealImages(), 10, gpu=False) == START + 1


def test_imagenet_on_a_gpu_is_hours_and_on_a_core_days():
    shard = Synthesis(images_per_class=5, classes_per_shard=50, iterations=1000)
    long = Finetune(epochs=100)
    assert 30 < synthesis_minutes(LARGE, shard, 50, gpu=True) < 120
    assert 120 < finetune_minutes(LARGE, long, 5000, gpu=True) < 600
    assert finetune_minutes(LARGE, long, 5000, gpu=False) > 2 * 24 * 60


def test_more_work_has_more_time():
    plain, full = Finetune(), Finetune(perturbation=0.01)
    limits = [finetune_minutes(LARGE, plain, n, gpu=True) for n in (1000, 5000)]
    assert limits[0] < limits[1] < finetune_minutes(LARGE, full, 5000, gpu=True)
    assert limits[0] < finetune_minutes(LARGE, Finetune(passes=2), 1000, gpu=True)
    shallow, deep = (Synthesis(images_per_class=512, deep_weight=w) for w in (0.0, 0.02))
    assert synthesis_minutes(LARGE, shallow, 1, gpu=True) < synthesis_minutes(
        LARGE, deep, 1, gpu=True
    )
    folder = TestSet(dataset="folder", path="val")
    assert evaluation_minutes(LARGE, folder, 3, gpu=True) > evaluation_minutes(
        LARGE, TestSet(dataset="cifar10", path="data"), 3, gpu=True
    )


def test_processes_share_the_work():
    alone, together = Finetune(epochs=100), Finetune(epochs=100, processes=4)
    assert finetune_minutes(LARGE, together, 5000, gpu=True) < finetune_minutes(
        LARGE, alone, 5000, gpu=True
    )


def test_the_students_to_evaluate_are_those_that_are_kept():
    assert kept_students(Finetune(epochs=7)) == 8
    assert kept_students(Finetune(epochs=7, keep="ends")) == 3


def test_a_reconstruction_and_generators_have_more_time():
    plain, parts = Finetune(epochs=0), Finetune(epochs=0, reconstruct="rounding")
    longer = Finetune(epochs=0, reconstruct="rounding", reconstruct_steps=20_000)
    limits = [finetune_minutes(LARGE, s, 1000, gpu=True) for s in (plain, parts, longer)]
    assert limits == sorted(set(limits))
    pixels, latents = (
        Synthesis(images_per_class=512, iterations=1000, parameters=kind)
        for kind in ("pixels", "generator")
    )
    limits = [synthesis_minutes(LARGE, s, 1, gpu=True) for s in (pixels, latents)]
    assert limits == sorted(set(limits))


PROJECT = Path(__file__).parents[3]
PAPERS = {
    "synthesis": {"images_per_class": 512, "iterations": 1000},
    "finetune": {"epochs": 100},
}
FEW = {
    "synthesis": {"images_per_class": 5, "classes_per_shard": 50, "iterations": 500},
    "finetune": {"epochs": 10, "holdout": 0.2},
}


def imagenet(sections: dict[str, Any], **grid: list[Any]) -> Plan:
    chosen = {"models": ["big"], "bits": ["w4a4"], "methods": ["ours"], "seeds": [0]}
    return plan(
        {
            "grid": chosen | grid,
            "models": {
                "big": {
                    "source": "pytorchcv",
                    "architecture": "resnet18",
                    "test": {"dataset": "folder", "path": "val"},
                    **sections,
                }
            },
            "image_sets": {"plain": {}},
            "methods": {"ours": {"images": "plain"}, "other": {"images": "plain"}},
        }
    )


def test_the_papers_images_of_each_of_a_thousand_classes_are_years_and_five_are_days():
    years, days = (sum(core_hours(imagenet(s)).values()) for s in (PAPERS, FEW))
    assert years > 24 * 365
    assert 24 < days < 24 * 14
    assert "hours of one core" in told(imagenet(PAPERS))


def test_what_is_not_said_takes_days_of_a_core_for_a_thousand_classes_and_minutes_for_ten():
    assert 24 < sum(core_hours(imagenet({})).values()) < 24 * 4
    ten = plan(
        {
            "grid": {"models": ["a"], "bits": ["w2a2"], "methods": ["ours"], "seeds": [0]},
            "models": {"a": {"source": "pytorchcv", "architecture": "resnet20_cifar10"}},
            "image_sets": {"images": {"target": "none"}},
            "methods": {"ours": {"images": "images"}},
        }
    )
    assert 0.1 < sum(core_hours(ten).values()) < 1


def test_methods_of_the_same_images_share_their_hours_and_seeds_do_not():
    one = core_hours(imagenet(FEW))
    two = core_hours(imagenet(FEW, methods=["ours", "other"]))
    assert two["images"] == one["images"]
    assert two["students"] == pytest.approx(2 * one["students"])
    seeds = core_hours(imagenet(FEW, seeds=[0, 1, 2]))
    assert seeds["images"] == pytest.approx(3 * one["images"])


def test_of_what_takes_minutes_nothing_is_told():
    assert told(plan(yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8")))) == ""


def test_the_generator_that_ranges_are_taken_from_has_time():
    few, many = (generator_forwards(Calibration(generator_steps=n)) for n in (800, 800_000))
    assert few == many == 0  # they are taken from the images
    few, many = (
        generator_forwards(Calibration(range_source="generator", generator_steps=n))
        for n in (800, 800_000)
    )
    assert many == 1000 * few > 0
    limits = Limits(
        plan(
            {
                "grid": {"models": ["s"], "bits": ["w4a4"], "methods": ["o"], "seeds": [0]},
                "models": {"s": {"source": "pytorchcv", "architecture": "resnet20_cifar10"}},
                "image_sets": {"plain": {}},
                "methods": {
                    "o": {"images": "plain"},
                    "p": {"images": "plain", "calibration": {"range_source": "generator"}},
                },
            }
        ),
        gpu=False,
    )
    assert limits.student("s", "o") < limits.student("s", "p")


def test_a_searched_exponent_has_time():
    assert search_forwards(Calibration()) == 0
    few, many = (
        search_forwards(Calibration(range_search=True, range_images=n)) for n in (256, 2560)
    )
    assert many == 10 * few > 0
    # Four calibrations of a ResNet-18 took some minutes on one core.
    untrained = Finetune(epochs=0)
    without, with_search = (
        finetune_minutes(LARGE, untrained, 0, gpu=False, before=n) for n in (0, few)
    )
    assert with_search - without >= 10
