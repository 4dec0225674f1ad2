"""What the methods of a grid need of a network: switches that some networks lack the layers for."""

from pathlib import Path

import pytest
import yaml

from synq.config.needs import SETTINGS, needs, refused_widths, unmet
from synq.config.reading import plan
from synq.reporting.inspection import CHECKS

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))


def of(*methods):
    config = {**CONFIG, "grid": {**CONFIG["grid"], "methods": list(methods)}}
    return needs(plan(config), "digits-resnet20")


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("synq", ["finetune.cam=gradcam", "synthesis.prior=auto"]),
        ("hast", ["finetune.feature_weight=1000.0", "synthesis.prior=auto"]),
        ("transformer", ["synthesis.prior=patches"]),
        ("texq-like", ["synthesis.prior=auto", "synthesis.deep_weight=0.02"]),
        ("zeroq-tuned", ["synthesis.prior=auto"]),
        ("few-shot", ["finetune.cam=gradcam"]),
        ("genie", ["finetune.reconstruct=rounding", "synthesis.prior=auto"]),
        ("gdfq", ["synthesis.prior=auto"]),
        (
            "synq-released",
            [
                "finetune.cam=gradcam",
                "finetune.feature_weight=1000.0",
                "calibration.range_source=generator",
                "synthesis.prior=auto",
            ],
        ),
    ],
)
def test_a_method_needs_what_its_settings_do(method, wanted):
    assert of(method) == [f"{method}:{setting}" for setting in wanted]


def with_calibration(**settings):
    methods = {**CONFIG["methods"], "zeroq": {"images": "unlabelled", "calibration": settings}}
    config = {**CONFIG, "methods": methods, "grid": {**CONFIG["grid"], "methods": ["zeroq"]}}
    words = needs(plan(config), "digits-resnet20")
    return [word for word in words if "calibration" in word]


INSPECTED = {
    "names": ["stem", "blocks.0.conv", "blocks.0.relu/relu/0", "output"],
    "scopes": {"everything": {"names": ["stem", "stem.input", "output"]}},
    "bytes": {"2": 1000},
    "quantized_parameters": 800,
}


def test_a_pattern_that_no_name_of_the_network_matches_is_told():
    words = with_calibration(keep_bits={"*.conv": 8, "a=b": 2, "stm": "float"})
    assert words == [f"zeroq:calibration.keep_bits={p}" for p in ("*.conv=8", "a=b=2", "stm=float")]
    lines = unmet(refused_widths(INSPECTED, words), words)
    text = "but no layer and no activation of the network has such a name"
    assert lines == [
        f"method zeroq has calibration.keep_bits: a=b=2, {text}; synq inspect lists the names",
        f"method zeroq has calibration.keep_bits: stm=float, {text}; did you mean stem?",
    ]
    both = [*words, "squant:calibration.keep_bits=stm=float"]
    (_, line) = unmet(refused_widths(INSPECTED, both), both)
    assert line.startswith("methods zeroq, squant have calibration.keep_bits: stm=float")


@pytest.mark.parametrize(
    ("budget", "widths", "smallest"),
    [
        ("1000 B", [2, 8], None),
        ("999 B", [2, 8], "1.0"),
        ("1.1 kB", [4, 8], "1.2"),
        ("1.2 kB", [8, 4], None),
    ],
)
def test_a_budget_under_the_smallest_size_is_told_with_that(budget, widths, smallest):
    words = with_calibration(budget=budget, widths=widths)
    found = unmet(refused_widths(INSPECTED, words), words)
    wanted = [
        f"method zeroq has calibration.budget: {budget} with widths from {min(widths)}, but the "
        f"smallest size is {smallest} kB; raise it"
    ]
    assert found == (wanted if smallest else [])


@pytest.mark.parametrize("own", [{"keep_bits": {"stem": 2}}, {"ends_bits": 2}])
def test_a_budget_counts_layers_that_are_kept_below_the_widths(own):
    words = with_calibration(budget="1.1 kB", widths=[4, 8], **own)
    assert unmet(refused_widths(INSPECTED, words), words) == []


def test_a_wider_scope_has_names_of_its_own():
    (word,) = with_calibration(keep_bits={"stem.input": 6}, scope="everything")
    assert word == "zeroq:calibration.keep_bits=stem.input=6 with scope everything"
    assert refused_widths(INSPECTED, [word]) == {}
    (word,) = with_calibration(keep_bits={"stem.input": 6})
    (refusal,) = refused_widths(INSPECTED, [word]).values()
    assert "stem.input" in unmet({word.partition(":")[2]: refusal}, [word])[0]


@pytest.mark.parametrize("change", [{"epochs": 0}, {"cam_weight": 0}])
def test_a_term_that_does_not_count_needs_nothing(change):
    methods = {**CONFIG["methods"], "synq": {"images": "hard", "finetune": change}}
    config = {**CONFIG, "methods": methods, "grid": {**CONFIG["grid"], "methods": ["synq"]}}
    assert needs(plan(config), "digits-resnet20") == ["synq:synthesis.prior=auto"]


def test_the_needs_of_all_methods_of_the_grid_are_told():
    assert of("synq", "hast") == [
        "synq:finetune.cam=gradcam",
        "synq:synthesis.prior=auto",
        "hast:finetune.feature_weight=1000.0",
        "hast:synthesis.prior=auto",
    ]


def test_a_model_outside_the_grid_needs_nothing_yet():
    models = {**CONFIG["models"], "other": CONFIG["models"]["digits-resnet20"]}
    assert needs(plan({**CONFIG, "models": models}), "other") == []


def test_every_need_has_a_check():
    assert set(CHECKS) == set(SETTINGS)
    assert not unmet({}, of(*CONFIG["methods"]))


def test_what_is_unmet_is_told_once_for_all_methods():
    refusals = {"finetune.cam": "there is none", "synthesis.prior=patches": "it does not attend"}
    words = ["a:finetune.cam=gradcam", "b:finetune.cam=gradcam", "c:synthesis.prior=batchnorm"]
    assert unmet(refusals, [*words, "d:synthesis.prior=patches"]) == [
        "methods a, b have finetune.cam: gradcam, but there is none",
        "method d has synthesis.prior: patches, but it does not attend",
    ]


def test_who_makes_the_images_needs_what_they_do_and_who_borrows_them_not():
    own = CONFIG["models"]["digits-resnet20"]
    borrower = {k: v for k, v in own.items() if k != "synthesis"}
    models = {"digits-resnet20": own, "other": {**borrower, "relative": "digits-resnet20"}}
    grid = {**CONFIG["grid"], "models": ["other"], "methods": ["texq-like", "synq"]}
    whole = plan({**CONFIG, "models": models, "grid": grid})
    assert needs(whole, "other") == ["synq:finetune.cam=gradcam"]
    assert needs(whole, "digits-resnet20") == [
        *("texq-like:synthesis.prior=auto", "texq-like:synthesis.deep_weight=0.02"),
        "synq:synthesis.prior=auto",
    ]
