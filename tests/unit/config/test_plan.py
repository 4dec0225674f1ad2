"""The config as a whole: layers, names, the grid, and the files that come with the project."""

import copy
import math
from pathlib import Path

import pytest
import yaml

from synq.config.fields import flags
from synq.config.finetune import Finetune
from synq.config.plan import shard_classes, shard_name
from synq.config.reading import plan
from synq.config.synthesis import Synthesis
from synq.errors import ConfigError

PROJECT = Path(__file__).parents[3]
OVERLAYS = sorted((PROJECT / "experiments").glob("*.yaml"))


def read(path):
    return yaml.safe_load(path.read_text("utf-8"))


def merged(base, overlay):
    """As Snakemake merges config files: mappings deeply, all else replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


@pytest.fixture
def config():
    return {
        "grid": {"models": ["tiny"], "bits": ["w4a4"], "methods": ["ours"], "seeds": [0]},
        "models": {
            "tiny": {
                "source": "pytorchcv",
                "architecture": "resnet20_cifar10",
                "classes": 10,
                "image_size": 32,
            }
        },
        "image_sets": {"hard": {"target": "hard"}},
        "methods": {"ours": {"images": "hard"}},
    }


def message(config):
    with pytest.raises(ConfigError) as caught:
        plan(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_layer_of_finetune_wins(config):
    def epochs():
        return plan(config).settings("finetune", "tiny", method="ours").epochs

    assert epochs() == Finetune().epochs
    config["finetune"] = {"epochs": 3}
    assert epochs() == 3
    config["models"]["tiny"]["finetune"] = {"epochs": 4}
    assert epochs() == 4
    config["methods"]["ours"]["finetune"] = {"epochs": 5}
    assert epochs() == 5


def test_the_last_layer_of_synthesis_wins(config):
    def iterations():
        return plan(config).image_settings("tiny", "hard").iterations

    assert iterations() == Synthesis().iterations
    config["synthesis"] = {"iterations": 3}
    assert iterations() == 3
    config["models"]["tiny"]["synthesis"] = {"iterations": 4}
    assert iterations() == 4
    config["image_sets"]["hard"]["iterations"] = 5
    assert iterations() == 5


@pytest.mark.parametrize(
    ("zoo", "images"),
    [("resnet20_cifar10", 128), ("resnet20_cifar100", 13), ("resnet20_svhn", 128)],
)
def test_how_many_images_a_class_has_depends_on_how_many_classes_there_are(config, zoo, images):
    config["models"]["tiny"] = {"source": "pytorchcv", "architecture": zoo}
    assert plan(config).image_settings("tiny", "hard").images_per_class == images
    config["synthesis"] = {"images_per_class": 17}
    assert plan(config).image_settings("tiny", "hard").images_per_class == 17


@pytest.mark.parametrize(("classes", "images"), [(2, 640), (3, 427), (1000, 10)])
def test_so_many_images_that_they_suffice_and_each_class_has_some(classes, images):
    assert Synthesis().of_classes(classes).images_per_class == images


def test_a_layer_changes_nothing_but_what_it_names(config):
    config["finetune"] = {"epochs": 3, "batch_size": 4, "temperature": 5}
    config["models"]["tiny"]["finetune"] = {"batch_size": 6}
    config["methods"]["ours"]["finetune"] = {"temperature": 7}
    settings = plan(config).settings("finetune", "tiny", method="ours")
    assert (settings.epochs, settings.batch_size, settings.temperature) == (3, 6, 7)


def test_the_layers_of_one_model_or_method_do_not_reach_another(config):
    config["models"]["other"] = copy.deepcopy(config["models"]["tiny"])
    config["models"]["other"]["finetune"] = {"epochs": 3}
    config["methods"]["theirs"] = {"images": "hard", "finetune": {"batch_size": 3}}
    settings = plan(config).settings("finetune", "tiny", method="ours")
    assert (settings.epochs, settings.batch_size) == (Finetune().epochs, Finetune().batch_size)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (("finetune",), "finetune"),
        (("models", "tiny", "finetune"), "models.tiny.finetune"),
        (("methods", "ours", "finetune"), "methods.ours.finetune"),
    ],
)
def test_a_wrong_value_is_refused_with_the_path_of_its_layer(config, place, path):
    section = config
    for key in place:
        section = section.setdefault(key, {})
    section["epochs"] = -1
    assert message(config).startswith(f"{path}.epochs is -1")


def test_a_wrong_value_in_an_image_set_is_refused_with_its_path(config):
    config["image_sets"]["hard"]["target"] = "softt"
    assert message(config).startswith("image_sets.hard.target is 'softt'")


def test_the_projects_config_is_valid():
    assert list(plan(read(PROJECT / "config.yaml")).runs())


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_experiment_is_a_valid_overlay_of_it(overlay):
    base = read(PROJECT / "config.yaml")
    assert list(plan(merged(base, read(overlay))).runs())


def test_there_are_experiments():
    assert OVERLAYS


def test_runs_are_every_combination_of_the_grid(config):
    config["grid"] |= {"bits": ["w4a4", "w2a8"], "seeds": [0, 7]}
    runs = [(run["bits"], run["seed"]) for run in plan(config).runs()]
    assert runs == [("w4a4", 0), ("w4a4", 7), ("w2a8", 0), ("w2a8", 7)]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("fintune", {}, "fintune is not a section of the config; did you mean finetune?"),
        ("results", "a b", "results is 'a b'"),
        ("results", "", "results is ''"),
        ("synthesis", [1], "synthesis is [1], not a mapping"),
    ],
)
def test_a_wrong_section_is_refused(config, key, value, text):
    assert message({**config, key: value}).startswith(text)


@pytest.mark.parametrize(
    "path",
    [
        ("finetune",),
        ("models", "tiny", "synthesis"),
        ("methods", "ours", "finetune"),
        ("methods", "ours"),
        ("image_sets", "plain"),
    ],
)
@pytest.mark.parametrize("value", [None, False, 0])
def test_a_section_of_nothing_does_not_take_away_what_others_wrote(config, path, value):
    *above, last = path
    section = config
    for key in above:
        section = section[key]
    section[last] = value
    told = message(config)
    assert told.startswith(".".join(path) + " is ")
    assert ("is empty" in told) == (value is None)


@pytest.mark.parametrize("key", ["accept", "ablation"])
def test_what_may_be_switched_off_is_so_by_null_alone(config, key):
    whole = plan({**config, key: None})
    assert whole == plan(config)
    assert message({**config, key: False}).startswith(f"{key} is False, not a mapping")


def test_a_name_of_a_class_may_not_look_like_a_flag(config):
    config["models"]["tiny"]["names"] = ["-zero", *"abcdefghi"]
    assert message(config).startswith("models.tiny.names has '-zero'")


@pytest.mark.parametrize("key", ["grid", "models", "image_sets", "methods"])
@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_section_that_is_needed_is_refused(config, key, value):
    assert message({**config, key: value}).startswith(f"{key} is missing or empty")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("models", ["tyny"], "grid.models names 'tyny'; did you mean tiny?"),
        ("methods", ["our"], "grid.methods names 'our'; did you mean ours?"),
        ("methods", ["xyz"], "grid.methods names 'xyz'; there is ours"),
        ("bits", ["w4a4", "w9a4"], "grid.bits[1] is 'w9a4'"),
        ("seeds", [-1], "grid.seeds[0] is -1"),
        ("seeds", [0, 0], "grid.seeds names something twice"),
        ("bits", ["w4a4", "w4a4"], "grid.bits names something twice"),
        ("methods", ["our@w8a8"], "grid.methods names 'our'; did you mean ours?"),
        ("methods", ["ours@8"], "the width of grid.methods[0] is '8'"),
        ("methods", ["ours", "ours@w4a4"], "grid.methods names ours and ours@w4a4, which is among"),
        ("methods", ["ours@w8a8", "ours@w8a8"], "grid.methods names something twice"),
        ("models", [], "grid.models is empty"),
        ("seeds", [], "grid.seeds is empty"),
    ],
)
def test_a_wrong_grid_is_refused(config, key, value, text):
    config["grid"][key] = value
    assert message(config).startswith(text)


def test_a_method_with_a_width_of_its_own_is_made_at_that_one_alone(config):
    config["methods"]["other"] = {"images": "hard"}
    grid = {"bits": ["w4a4", "w2a2"], "methods": ["other@w8a8", "ours"], "seeds": [0, 1]}
    config["grid"] |= grid
    config["ablation"] = {"full": "ours", "methods": ["other"]}
    whole = plan(config)
    assert [tuple(run.values())[1:] for run in whole.runs()] == [
        *(("w4a4", "ours", 0), ("w4a4", "ours", 1), ("w2a2", "ours", 0), ("w2a2", "ours", 1)),
        *(("w8a8", "other", 0), ("w8a8", "other", 1)),
    ]
    assert whole.grid.names == ("other", "ours")


def test_two_widths_of_their_own_are_two_runs_of_one_method(config):
    config["grid"]["methods"] = ["ours@w8a8", "ours@w3a3"]
    whole = plan(config)
    assert [run["bits"] for run in whole.runs()] == ["w8a8", "w3a3"]
    assert whole.grid.names == ("ours",)


def test_a_method_without_or_with_an_unknown_image_set_is_refused(config):
    config["methods"]["ours"] = {"images": "hrd"}
    assert message(config) == "methods.ours.images names 'hrd'; did you mean hard?"
    config["methods"]["ours"] = {"text": "x"}
    assert message(config).startswith("methods.ours.images is missing")


def test_a_method_that_changes_the_synthesis_is_refused(config):
    config["methods"]["ours"]["synthesis"] = {"iterations": 3}
    assert message(config).startswith("methods.ours.synthesis is not a part of a method")


@pytest.mark.parametrize("section", ["models", "image_sets", "methods"])
@pytest.mark.parametrize("name", ["../x", "a b", "a" * 65, "", ".", "-a", "_a", "a/b", "a\n", "ä"])
def test_a_name_that_is_no_part_of_a_path_is_refused(config, section, name):
    config[section][name] = next(iter(config[section].values()))
    assert message(config).startswith(f"{section} has the name {name!r}")


@pytest.mark.parametrize("name", ["a", "9", "A-b_c", "a" * 64])
def test_other_names_are_allowed(config, name):
    config["models"][name] = config["models"]["tiny"]
    assert name in plan(config).models


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_the_shards_hold_every_class_once_in_order(config, classes, size):
    config["models"]["tiny"]["classes"] = classes
    config["synthesis"] = {"classes_per_shard": size}
    shards = [shard_classes(name) for name in plan(config).shards("tiny", "hard")]
    assert [number for shard in shards for number in shard] == list(range(classes))
    assert {len(shard) for shard in shards[:-1]} <= {size}
    assert 1 <= len(shards[-1]) <= size


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        (3, 3, "class-0003"),
        (2, 3, "classes-0002-0003"),
        (9998, 10001, "classes-9998-10001"),
    ],
)
def test_the_name_of_a_shard_gives_its_classes(first, last, name):
    assert shard_name(first, last) == name
    assert shard_classes(name) == list(range(first, last + 1))


def test_the_store_is_that_of_all_models_but_those_that_name_their_own(config):
    config["models"]["other"] = {**config["models"]["tiny"], "store": "/mine"}
    assert plan(config).models["tiny"].store == "~/.cache/synq"
    models = plan({**config, "store": "/all"}).models
    assert (models["tiny"].store, models["other"].store) == ("/all", "/mine")


@pytest.mark.parametrize("store", [3, "", ["a"]])
def test_a_store_that_is_no_folder_is_refused(config, store):
    assert message({**config, "store": store}).startswith(f"store is {store!r}; write the path")


def test_a_network_of_the_zoo_needs_its_name_alone(config):
    config["models"]["tiny"] = {"source": "pytorchcv", "architecture": "resnet20_cifar10"}
    assert plan(config).shards("tiny", "hard") == ["classes-0000-0009"]
    config["models"]["tiny"] = {"source": "torchvision", "architecture": "resnet18"}
    assert len(plan(config).shards("tiny", "hard")) == 100


def test_an_image_set_of_real_images_has_their_settings(config):
    config["image_sets"]["few"] = {"source": "real", "images_per_class": 5}
    config["models"]["tiny"]["real"] = {"dataset": "folder", "path": "photographs"}
    whole = plan(config)
    settings = whole.image_settings("tiny", "few")
    assert whole.image_sets["few"].stage == "real"
    assert (settings.dataset, settings.path, settings.images_per_class) == (
        "folder",
        "photographs",
        5,
    )
    assert len(whole.shards("tiny", "few")) == 10


def test_a_method_of_the_grid_without_its_real_images_is_refused(config):
    config["image_sets"]["few"] = {"source": "real"}
    config["methods"]["few-shot"] = {"images": "few"}
    plan(config)
    config["grid"]["methods"] = ["ours", "few-shot"]
    assert "models.tiny.real names none" in message(config)


def test_an_unknown_source_of_an_image_set_is_refused(config):
    config["image_sets"]["few"] = {"source": "reel"}
    assert message(config) == "image_sets.few.source is 'reel'; did you mean real?"


@pytest.mark.parametrize(
    ("ablation", "text"),
    [
        ({"methods": ["our"], "full": "ours"}, "did you mean ours?"),
        ({"methods": ["ours"]}, "'synq'; there is ours, other"),
        ({"methods": ["other"], "full": "ours"}, "not among grid.methods"),
        ({"rows": ["ours"]}, "ablation.rows is not a setting"),
    ],
)
def test_an_ablation_of_methods_that_are_not_run_is_refused(config, ablation, text):
    config["methods"]["other"] = {"images": "hard"}
    config["ablation"] = ablation
    assert text in message(config)


def shown(config):
    whole = plan(config)
    return {
        name: (
            method.images,
            whole.settings("calibration", "digits-resnet20", method=name),
            whole.settings("finetune", "digits-resnet20", method=name),
        )
        for name, method in whole.methods.items()
    }


def test_no_two_methods_of_the_project_are_the_same():
    methods = shown(read(PROJECT / "config.yaml"))
    assert len(set(methods.values())) == len(methods)


def test_the_ablation_switches_exactly_its_three_parts():
    methods = shown(read(PROJECT / "config.yaml"))
    parts = {
        "filter": ("lowpass", "batch"),
        "cam": ("cam", "gradcam"),
        "soft": ("hard_labels", "easy"),
    }
    rows = ["none", "filter", "cam", "soft", "filter-cam", "filter-soft", "cam-soft"]
    *same, full = methods["synq"]
    for row in rows:
        *others, settings = methods[row]
        assert others == same
        for part, (field, value) in parts.items():
            assert (getattr(settings, field) == value) == (part in row)
        changed = {field for field, _ in parts.values()}
        assert {
            name for name, value in vars(settings).items() if value != getattr(full, name)
        } <= changed


def released(overlay, model):
    whole = plan(merged(read(PROJECT / "config.yaml"), read(PROJECT / "experiments" / overlay)))
    images = whole.image_settings(model, whole.methods["synq-released"].images)
    return images, whole.settings("finetune", model, method="synq-released")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_released_program_on_cifar(name):
    images, settings = released(f"{name}.yaml", f"resnet20-{name}")
    assert (images.target_weight, images.target_gamma, images.deep_weight) == (0.1, 0.5, 0)
    assert not settings.perturbed_features
    assert settings.lowpass_sigma == pytest.approx(32 / (2 * math.pi * 80), abs=1e-3)
    assert (settings.batch_size, settings.learning_rate) == (64, 1e-5)
    assert settings.lr_milestones == (20, 40, 60)


def test_the_released_program_on_imagenet():
    images, settings = released("imagenet.yaml", "resnet18-old")
    assert (images.target_weight, images.target_gamma) == (0.1, 0.5)
    assert (images.bn_weight, images.deep_weight, images.deep_norm) == (0.4, 0.02, "released")
    assert settings.perturbed_features
    assert settings.lowpass_sigma == pytest.approx(224 / (2 * math.pi * 80), abs=5e-3)
    assert (settings.batch_size, settings.learning_rate) == (4, 1e-6)


def test_the_papers_ranges_are_those_of_the_released_program():
    whole = plan(read(PROJECT / "config.yaml"))
    paper, program = (
        whole.settings("calibration", "digits-resnet20", method=f"synq-{name}")
        for name in ("paper", "released")
    )
    assert paper == program
    assert paper.clip_ratio == 0.7


def test_real_images_are_not_filtered():
    whole = plan(read(PROJECT / "config.yaml"))
    for name, method in whole.methods.items():
        if whole.image_sets[method.images].stage == "real":
            settings = whole.settings("finetune", "digits-resnet20", method=name)
            assert settings.lowpass == "off", name


def test_a_ceiling_counts_where_both_are_in_the_grid(config):
    config["methods"] |= {"real": {"images": "hard"}, "more": {"images": "hard", "ceiling": "real"}}
    config["methods"]["ours"]["ceiling"] = "real"
    assert plan(config).ceilings() == []
    config["grid"]["methods"] = ["ours", "real"]
    assert plan(config).ceilings() == [("ours", "real")]


@pytest.mark.parametrize(
    ("ceiling", "text"),
    [("rael", "did you mean real?"), ("ours", "another method's name: there is real"), (3, "'3'")],
)
def test_a_ceiling_that_is_no_other_method_is_refused(config, ceiling, text):
    config["methods"] |= {"real": {"images": "hard"}}
    config["methods"]["ours"]["ceiling"] = ceiling
    assert message(config).startswith("methods.ours.ceiling names ")
    assert text in message(config)


def test_the_ceiling_of_synq_plus_differs_by_its_images_alone():
    whole = plan(read(PROJECT / "config.yaml"))
    assert whole.methods["synq-plus"].ceiling == "synq-plus-real"
    images = {whole.methods[name].images for name in ("synq-plus", "synq-plus-real")}
    assert images == {"natural", "real"}
    for stage in ("calibration", "finetune"):
        one, other = (
            whole.settings(stage, "digits-resnet20", method=name)
            for name in ("synq-plus", "synq-plus-real")
        )
        assert one == other


def held_out(config, images, finetune, **model):
    config["image_sets"]["hard"]["images_per_class"] = images
    config["finetune"] = finetune
    config["models"]["tiny"]["test"] = {"dataset": "digits"}
    config["models"]["tiny"] |= model
    return config


@pytest.mark.parametrize(
    ("images", "finetune"), [(9, {}), (5, {"holdout": 0.19}), (512, {"holdout": 0.0}), (1, {})]
)
def test_a_selection_without_a_held_out_image_of_each_class_is_refused(config, images, finetune):
    held_out(config, images, finetune)
    text = message(config)
    assert text.startswith("method ours holds out no image of tiny to select the epoch by")
    assert text.endswith("raise it or synthesis.images_per_class, or write finetune.select: last")
    held_out(config, images, {**finetune, "select": "last"})
    plan(config)
    held_out(config, images, {**finetune, "epochs": 0})
    plan(config)


def test_agreement_without_a_held_out_image_of_each_class_is_refused(config):
    held_out(config, 9, {"select": "last"}, test={"dataset": "none"})
    assert "to measure agreement on: finetune.holdout is 0.1 of 9" in message(config)
    held_out(config, 9, {"epochs": 0}, test={"dataset": "none"})
    assert "to measure agreement on" in message(config)


@pytest.mark.parametrize(("images", "finetune"), [(10, {}), (5, {"holdout": 0.2}), (512, {})])
def test_one_held_out_image_of_each_class_is_enough(config, images, finetune):
    plan(held_out(config, images, finetune))


def test_what_is_not_in_the_grid_may_hold_nothing_out(config):
    config["methods"]["other"] = {"images": "hard", "finetune": {"holdout": 0.0}}
    plan(config)


@pytest.mark.parametrize("names", [["cat", "dog"], "names.txt"])
def test_the_names_of_a_models_classes_are_those_of_its_real_images(config, names):
    (model, *_) = config["models"]
    config["models"][model]["names"] = names
    listed = (names,) if isinstance(names, str) else tuple(names)
    config["image_sets"]["few"] = {"source": "real", "images_per_class": 2}
    for own in ({}, {"test": {"part": "report"}, "real": {"part": "report"}}):
        config["models"][model] |= own
        test = plan(config).settings("test", model)
        assert test.names == plan(config).image_settings(model, "few").names == listed
        assert test.part == own.get("test", {}).get("part", "all")


@pytest.mark.parametrize(("names", "text"), [([1, 2], "names[0] is 1, not a text"), (3, "a list")])
def test_names_that_are_none_are_refused(config, names, text):
    (model, *_) = config["models"]
    config["models"][model]["names"] = names
    assert f"models.{model}.names" in message(config)
    assert text in message(config)


@pytest.mark.parametrize("sha256", [123, 1.5, None, ["0" * 64], True])
def test_a_sha256_that_yaml_reads_as_something_else_says_what_it_is(config, sha256):
    (model, *_) = config["models"]
    config["models"][model]["sha256"] = sha256
    said = f"models.{model}.sha256 is {sha256!r}, not 64 hexadecimal digits; "
    assert message(config) == f"{said}`sha256sum FILE` prints it"


def test_a_method_like_another_takes_over_what_it_does_not_name(config):
    config["image_sets"]["soft"] = {"like": "hard", "target_gamma": 0.5}
    config["methods"]["ours"] |= {
        "text": "ours",
        "ceiling": "other",
        "calibration": {"range_images": 8},
        "finetune": {"epochs": 3, "temperature": 2.0},
    }
    config["methods"]["other"] = {"like": "ours", "images": "soft", "finetune": {"epochs": 5}}
    config["methods"]["third"] = {"like": "other"}
    whole = plan(config)
    for name in ("other", "third"):
        settings = whole.settings("finetune", "tiny", method=name)
        assert (settings.epochs, settings.temperature) == (5, 2.0)
        assert whole.settings("calibration", "tiny", method=name).range_images == 8
        # A row of its own in the tables.
        assert (whole.methods[name].text, whole.methods[name].ceiling) == ("", "")
    assert whole.settings("finetune", "tiny", method="ours").epochs == 3
    images = whole.image_settings("tiny", whole.methods["third"].images)
    assert (images.target, images.target_gamma) == ("hard", 0.5)


@pytest.mark.parametrize("base", ["our", ["ours"], "other", "third"])
def test_what_a_method_is_like_is_another_method(config, base):
    config["methods"]["third"] = {"like": "other"}
    config["methods"]["other"] = {"like": base}
    assert message(config).startswith(("methods.other.like names", "methods.third.like names"))


def test_nothing_is_judged_unless_the_config_says_by_what(config):
    assert plan(config).accept.points < 0
    assert flags(plan(config).accept) == []
    config["accept"] = {"points": 0}
    assert flags(plan(config).accept) == ["--points", "0.0"]


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ({"points": -1}, "accept.points is -1.0 points; it must be at least 0"),
        ({"points": "1 %"}, "accept.points is '1 %', not a number"),
        ({"loss": 1}, "accept.loss is not a setting"),
        (1.0, "accept is 1.0, not a mapping"),
    ],
)
def test_a_tolerance_that_is_none_is_refused(config, accept, text):
    config["accept"] = accept
    assert text in message(config)


def test_a_rounding_that_is_learned_needs_learned_steps(config):
    config["methods"]["ours"]["finetune"] = {"reconstruct": "rounding"}
    text = message(config)
    assert text.startswith("method ours has finetune.reconstruct: rounding, and ")
    assert "write calibration.weights: learned, or finetune.reconstruct: weights" in text
    config["methods"]["ours"]["calibration"] = {"weights": "learned"}
    plan(config)
    config["methods"]["ours"] = {"images": "hard", "finetune": {"reconstruct": "weights"}}
    plan(config)


def test_gradients_that_are_scaled_need_learned_steps(config):
    config["methods"]["ours"]["finetune"] = {"gradient_scaling": 0.2}
    text = message(config)
    assert text.startswith("method ours has finetune.gradient_scaling above 0, and ")
    assert "write calibration.weights: learned, or finetune.gradient_scaling: 0" in text
    config["methods"]["ours"]["calibration"] = {"weights": "learned"}
    plan(config)


@pytest.fixture
def related(config):
    """A second model that borrows the images of the first, which the grid has not."""
    config["models"]["other"] = {**config["models"]["tiny"], "relative": "tiny"}
    config["models"]["tiny"]["synthesis"] = {"images_per_class": 10, "classes_per_shard": 5}
    config["grid"]["models"] = ["other"]
    return config


def test_a_relative_makes_the_images_by_its_own_settings(related):
    whole = plan(related)
    assert whole.image_settings("other", "hard") == whole.image_settings("tiny", "hard")
    assert whole.shards("other", "hard") == whole.shards("tiny", "hard")
    assert whole.maker("other", "hard") == "tiny"
    assert whole.image_rule("other", "hard") == "borrow"
    assert whole.image_rule("tiny", "hard") == "synthesize"
    assert whole.lenders() == ["tiny"]
    assert whole.models["other"] == whole.models["tiny"]  # it is no setting of the network


def test_real_images_are_the_own_ones_of_a_model_with_a_relative(related):
    related["image_sets"]["few"] = {"source": "real"}
    related["models"]["other"]["real"] = {"dataset": "digits", "images_per_class": 20}
    whole = plan(related)
    assert whole.maker("other", "few") == "other"
    assert whole.image_rule("other", "few") == "collect"
    assert whole.image_settings("other", "few").images_per_class == 20


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"relative": "tinny"}, "models.other.relative is 'tinny'; it is the name of another"),
        ({"relative": "other"}, "models.other.relative is 'other'; it is the name of another"),
        ({"relative": None}, "models.other.relative is None; it is the name of another"),
        ({"relative": "third"}, "which borrows its images itself; write 'tiny'"),
        ({"classes": 11}, "which has 10 classes and other has 11; images are borrowed of a model"),
        (
            {"synthesis": {"iterations": 3}},
            "models.other.synthesis has no meaning with relative: tiny, which makes the images; "
            "write it as models.tiny.synthesis",
        ),
    ],
)
def test_a_relative_that_cannot_be_one_is_refused(related, changes, text):
    related["models"]["third"] = {**related["models"]["other"]}
    related["models"]["other"] |= changes
    assert text in message(related)
