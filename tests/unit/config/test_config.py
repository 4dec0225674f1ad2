"""Settings: what the converter refuses and says, and flags that give the same settings again."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from synq import cli
from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.fields import convert, flags, settings_of
from synq.config.finetune import Finetune
from synq.config.grid import parse_bits, wider
from synq.config.images import TestSet
from synq.config.model import PLACES, Model
from synq.config.plan import STAGES as SECTIONS
from synq.config.synthesis import Synthesis
from synq.config.train import Train
from synq.errors import ConfigError

ZOO = {"source": "torchvision", "architecture": "resnet18", "classes": 10, "image_size": 32}
FROM_FILE = {
    **ZOO,
    "source": "file",
    "weights": "weights.pt",
    "sha256": "0123456789abcdef" * 4,
    "channels": 2,
    "mean": [-0.1, 0.2],
    "std": [1, 0.25],
}
STAGES = {
    Model: "fetch",
    Train: "train",
    Synthesis: "synthesize",
    Calibration: "finetune",
    Finetune: "finetune",
    TestSet: "evaluate",
    Evaluation: "evaluate",
}


def finetune(**values):
    return convert(Finetune, values, "finetune")


def model(**values):
    return convert(Model, values, "models.x")


def message(call, *args, **values):
    with pytest.raises(ConfigError) as caught:
        call(*args, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_one():
    text = message(finetune, learning_rte=0.1)
    assert text == "finetune.learning_rte is not a setting; did you mean learning_rate?"


def test_an_unknown_key_unlike_all_others_is_refused_with_what_there_is():
    text = message(convert, Evaluation, {"qqq": 1}, "evaluation")
    assert text == "evaluation.qqq is not a setting; there is batch_size"


@pytest.mark.parametrize(
    ("cls", "former"),
    [
        (Synthesis, ["batch_size", "augment", "crop_min", "precision", "compile"]),
        (
            Train,
            ["epochs", "batch_size", "learning_rate", "weight_decay", "crop_min", "noise", "seed"],
        ),
        (Evaluation, ["batch_size"]),
        (Export, ["images"]),
    ],
)
def test_a_name_that_repeats_its_section_is_refused_with_the_one_without(cls, former):
    section = cls.__name__.lower()
    for name in former:
        text = message(convert, cls, {f"{section}_{name}": 1}, section)
        assert text == f"{section}.{section}_{name} is not a setting; did you mean {name}?"


def test_no_setting_repeats_the_name_of_its_section():
    for section, cls in SECTIONS.items():
        assert not [name for name in settings_of(cls) if name.startswith(f"{section}_")]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_no_two_settings_or_arguments_of_a_command_are_one_flag(name):
    command = cli.COMMANDS[name]
    names = [*command.arguments, *(["device", "threads"] if command.computes else [])]
    for cls in command.settings.values():
        names += settings_of(cls)
    twice = {word for word in names if names.count(word) > 1}
    assert not twice, f"{name} would have these flags twice; name one of each otherwise: {twice}"


@pytest.mark.parametrize("name", ["source", "architecture"])
def test_a_missing_key_without_default_is_named(name):
    rest = {key: value for key, value in ZOO.items() if key != name}
    assert message(model, **rest).startswith(f"models.x.{name} is missing")


@pytest.mark.parametrize(
    ("values", "wrong", "wanted"),
    [
        ({"epochs": 1.0}, "epochs is 1.0", "a whole number"),
        ({"epochs": True}, "epochs is True", "a whole number"),
        ({"epochs": None}, "epochs is None", "a whole number"),
        ({"epochs": "many"}, "epochs is 'many'", "a whole number"),
        ({"learning_rate": False}, "learning_rate is False", "a number"),
        (
            {"learning_rate": [0.1]},
            "learning_rate is [0.1]",
            "a number (learning rate of the optimizer)",
        ),
        ({"perturbed_features": 1}, "perturbed_features is 1", "true or false"),
        ({"perturbed_features": "yes"}, "perturbed_features is 'yes'", "true or false"),
        ({"cam": 3}, "cam is 3", "a text"),
        ({"lr_milestones": [1, True]}, "lr_milestones[1] is True", "a whole number"),
        ({"lr_milestones": [1, 2.5]}, "lr_milestones[1] is 2.5", "a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(values, wrong, wanted):
    assert message(finetune, **values) == f"finetune.{wrong}, not {wanted}"


def test_a_scalar_for_a_list_is_refused_with_the_list_to_write():
    text = message(finetune, lr_milestones=30)
    assert text == "finetune.lr_milestones is 30, not a list; write [30]"


def test_a_number_that_yaml_reads_as_text_is_a_number():
    settings = finetune(learning_rate="1e-5", epochs="3", lr_milestones=["1"])
    assert settings == finetune(learning_rate=1.0e-5, epochs=3, lr_milestones=[1])
    assert isinstance(settings.epochs, int)
    assert finetune(perturbed_features="false") == finetune(perturbed_features=False)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"epochs": "2.5"}, "finetune.epochs is '2.5', not a whole number"),
        ({"learning_rate": "fast"}, "finetune.learning_rate is 'fast', not a number"),
        ({"learning_rate": "nan"}, "finetune.learning_rate is nan, not a finite number"),
        ({"perturbed_features": "no"}, "finetune.perturbed_features is 'no', not true or false"),
    ],
)
def test_a_text_that_is_no_such_number_is_refused(values, wanted):
    assert message(finetune, **values) == wanted


def test_a_whole_number_is_a_number():
    settings = finetune(learning_rate=1)
    assert settings.learning_rate == 1.0
    assert isinstance(settings.learning_rate, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(value):
    assert "not a finite number" in message(finetune, ce_weight=value)
    assert "models.x.mean[1]" in message(model, **ZOO, mean=[0, value, 0])


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({"epochs": -1}, "at least 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"momentum": 0}, "above 0"),
        ({"momentum": 1.1}, "at most 1"),
        ({"holdout": 0.91}, "at most 0.9"),
        ({"lowpass_sigma": 0}, "is 0.0 px; it must be above 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_limit(values, limit):
    assert limit in message(finetune, **values)


def test_a_limit_of_a_list_holds_for_each_entry():
    assert message(model, **ZOO, std=[1, 1, 0]).startswith("models.x.std[2] is 0.0; it must")


@pytest.mark.parametrize("values", [{"epochs": 0}, {"momentum": 1}, {"holdout": 0.9}])
def test_limits_are_allowed_values_themselves(values):
    assert dataclasses.asdict(finetune(**values)).items() >= values.items()


def test_a_value_that_is_no_choice_is_refused_with_the_nearest_or_all():
    assert message(finetune, cam="gradcm") == "finetune.cam is 'gradcm'; did you mean gradcam?"
    assert message(finetune, keep="zzz") == "finetune.keep is 'zzz'; there is all, ends"


@pytest.mark.parametrize("values", [None, 3, "text", ["epochs"]])
def test_what_is_no_mapping_is_refused(values):
    assert message(convert, Finetune, values, "here").startswith("here is ")


def test_a_key_that_is_no_text_is_refused():
    assert "has the key 1; quote it" in message(convert, Finetune, {1: 2}, "here")


def test_one_mean_a_channel_is_needed():
    assert message(model, **ZOO, mean=[0.5]).startswith("models.x.mean has 1 values")
    for wrong in ({"mean": [123.7, 116.3, 103.5]}, {"std": [58.4, 57.1, 57.4]}):
        assert "images in [0, 1]: divide both by 255" in message(model, **ZOO, **wrong)
    assert model(**ZOO, channels=1, mean=[0.5]).mean == (0.5,)


@pytest.mark.parametrize("name", ["weights", "sha256", "mean", "std"])
def test_a_model_from_a_file_needs_its_origin_and_normalisation(name):
    rest = {key: value for key, value in FROM_FILE.items() if key != name}
    assert message(model, **rest) == f"models.x.{name} is missing; source: file needs it"


@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 65, "g" * 64])
def test_a_sha256_is_64_hexadecimal_digits(sha256):
    assert "64 hexadecimal digits" in message(model, **{**FROM_FILE, "sha256": sha256})


def zoo_model(architecture, source="pytorchcv", **values):
    return model(source=source, architecture=architecture, **values)


def test_the_name_of_a_network_of_the_zoo_is_enough():
    known = zoo_model("resnet20_cifar100")
    assert (known.classes, known.channels, known.image_size) == (100, 3, 32)
    assert known.mean == (0.4914, 0.4822, 0.4465)
    assert known.weights == "resnet20_cifar100-2964-a5322afe"
    assert known == Model(source="pytorchcv", architecture="resnet20_cifar100")


def test_what_is_written_wins_over_the_zoo():
    own = zoo_model("resnet18", image_size=160, mean=[0, 0, 0], weights="resnet18-0982-0126861b")
    assert (own.image_size, own.mean, own.classes) == (160, (0, 0, 0), 1000)
    assert own.weights == "resnet18-0982-0126861b"


def test_what_the_zoo_does_not_know_is_asked_for_at_once():
    text = message(zoo_model, "resnet10_cub", image_size=224)
    assert text == (
        "models.x.classes, mean, std are missing; source: pytorchcv needs them for resnet10_cub"
    )
    values = {"classes": 200, "image_size": 224, "mean": [0.5] * 3, "std": [0.2] * 3}
    assert zoo_model("resnet10_cub", **values).classes == 200


def test_a_name_that_the_zoo_does_not_have_is_refused_with_its_place():
    text = message(zoo_model, "resnet20_cifar11")
    assert text.startswith("models.x.architecture is 'resnet20_cifar11'")
    assert message(zoo_model, "resnet18", weights="x").startswith("models.x.weights is 'x'")


def test_torchvision_itself_tells_all_but_the_classes():
    known = zoo_model("resnet18", "torchvision")
    assert (known.classes, known.image_size, known.mean, known.std) == (1000, 0, (), ())
    assert "--image-size" not in flags(known)
    assert zoo_model("resnet18", "torchvision", image_size=160).image_size == 160


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("torchvision", "sha256", "0" * 64),
        ("file", "factory", "a:b"),
        ("file", "mirror", "http://a"),
        ("pytorchcv", "sha256", "0" * 64),
        ("torchvision", "factory", "a:b"),
        ("python", "architecture", "resnet18"),
    ],
)
def test_a_setting_that_the_source_does_not_read_is_refused(source, name, value):
    text = message(model, source=source, **{name: value})
    assert text == f"models.x.{name} has no meaning with source: {source}; remove it"


@pytest.mark.parametrize("name", ["factory", "weights", "sha256", "classes", "image_size", "std"])
def test_a_model_of_the_users_own_code_needs_all_of_it(name):
    values = {**FROM_FILE, "source": "python", "factory": "my.models:build"}
    del values["architecture"]
    assert model(**values).factory == "my.models:build"
    assert message(model, **{k: v for k, v in values.items() if k != name}) == (
        f"models.x.{name} is missing; source: python needs it"
    )


@pytest.mark.parametrize(
    "factory", ["build", "my.models", "my.models:", ":build", "a b:c", "a/b:c"]
)
def test_a_factory_is_a_module_and_a_function(factory):
    values = {**FROM_FILE, "source": "python", "factory": factory, "architecture": ""}
    assert "write it as package.module:function" in message(model, **values)


def test_a_mirror_is_an_address_and_a_store_a_folder():
    assert "http(s) URL" in message(zoo_model, "resnet18", mirror="/a/folder")
    assert "store is empty" in message(zoo_model, "resnet18", store="")


SOURCES = {
    "pytorchcv": zoo_model("resnet20_svhn", store="/a b", mirror="http://a/b"),
    "torchvision": zoo_model("resnet18", "torchvision", weights="IMAGENET1K_V1"),
    "python": model(**{**FROM_FILE, "source": "python", "factory": "a.b:c", "architecture": ""}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_flags_give_a_model_of_every_source_again(source):
    assert parsed(SOURCES[source]) == SOURCES[source]


def test_flags_can_leave_some_settings_out():
    settings = SOURCES["pytorchcv"]
    both = ["--store", "/a b", "--mirror", "http://a/b"]
    assert flags(settings, only=PLACES) == both
    assert flags(settings, without=PLACES) + both == flags(settings)


def test_an_image_folder_needs_its_path():
    text = message(convert, TestSet, {"dataset": "folder"}, "test")
    assert text.startswith("test.path is missing")


@pytest.mark.parametrize(("bits", "pair"), [("w4a4", (4, 4)), ("w2a8", (2, 8)), ("w8a2", (8, 2))])
def test_widths_are_weights_then_activations(bits, pair):
    assert parse_bits(bits) == pair


@pytest.mark.parametrize(
    "bits", ["", "4", "w4", "w4a", "a4w4", "w4a4a4", "w10a4", "W4A4", "w4a4 ", "w²a4", 44, None]
)
def test_what_is_no_pair_of_widths_is_refused(bits):
    assert message(parse_bits, bits).startswith(f"bits is {bits!r}; write the widths")


@pytest.mark.parametrize(("bits", "part"), [("w1a4", "weights"), ("w4a9", "activations")])
def test_widths_outside_2_to_8_are_refused(bits, part):
    assert f"{part} of" in message(parse_bits, bits, "grid.bits[0]")
    assert "not among 2 to 8" in message(parse_bits, bits)


@pytest.mark.parametrize(
    ("bits", "above"),
    [
        ("w2a2", "w3a3"),
        ("w3a3", "w4a4"),
        ("w2a4", "w3a4"),
        ("w8a3", "w8a4"),
        ("w4a4", None),
        ("w8a8", None),
    ],
)
def test_a_rung_is_one_bit_more_of_what_has_under_four(bits, above):
    assert wider(bits) == above


def another(field, kind):
    """A valid value that is not the default."""
    limits = field.metadata
    if kind is bool:
        return not field.default
    if limits["choices"]:
        return next(choice for choice in limits["choices"] if choice != field.default)
    if kind is float:
        top = 12.3 if limits["maximum"] is None else limits["maximum"]
        return 0.7 * top if field.default != 0.7 * top else 0.6 * top
    if kind is int and limits["maximum"] == field.default:
        return limits["minimum"]
    most = min(11, limits["maximum"] or 11)
    words = {"a*": 8, "b c/ü": "float"} if field.metadata["pairs"] else ["a b", "ü"]
    return {int: most, str: "a b/ü", tuple[int, ...]: [3, most], tuple[str, ...]: words}[kind]


# Each excludes another one.
ALONE = ("budget", "swing", "range_search")


def changed(cls):
    """Settings that all differ from their defaults."""
    if cls is Model:
        return model(**FROM_FILE)
    own = {name: known for name, known in settings_of(cls).items() if name not in ALONE}
    values = {name: another(field, kind) for name, (field, kind) in own.items()}
    settings = convert(cls, values, "settings")
    assert not [name for name in own if getattr(settings, name) == own[name][0].default]
    return settings


def parsed(settings):
    """What the command line makes of the flags of these settings."""
    cls = type(settings)
    command = cli.COMMANDS[STAGES[cls]]
    words = [STAGES[cls]]
    for name, options in command.arguments.items():
        words += ["--" + name.replace("_", "-"), "x" if options["type"] in (str, Path) else "1"]
    for other in set(command.settings.values()) - {cls}:
        words += flags(model(**ZOO) if other is Model else other())
    found = vars(cli.parser().parse_args(words + flags(settings)))
    given = {name: found[name] for name in settings_of(cls) if found[name] is not None}
    return convert(cls, given, "flags")


@pytest.mark.parametrize("cls", list(STAGES))
def test_flags_give_the_same_settings_again(cls):
    assert parsed(changed(cls)) == changed(cls)


@pytest.mark.parametrize(
    "settings",
    [Calibration(budget="1.5 MB"), Synthesis(swing=1), Calibration(range_search=True)],
    ids=str,
)
def test_what_excludes_another_setting_is_a_flag(settings):
    assert parsed(settings) == settings


@pytest.mark.parametrize("cls", [cls for cls in STAGES if cls is not Model])
def test_flags_of_the_defaults_give_the_defaults(cls):
    assert parsed(cls()) == cls()


@pytest.mark.parametrize("value", [1e-300, 0.1 + 0.2, 1e22, 5e-324, 123456789.123456789])
def test_a_number_keeps_every_digit_as_a_flag(value):
    settings = finetune(ce_weight=value)
    assert parsed(settings).ce_weight == value


def test_a_bare_off_which_yaml_reads_as_false_is_off():
    assert finetune(**yaml.safe_load("{lowpass: off, cam: off}")).lowpass == "off"
    assert "keep is False, not a text" in message(finetune, keep=False)
