"""Block reconstruction, on a network of two residual units that is quickly fitted."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.errors import ConfigError, DivergenceError
from synq.finetuning.batches import Images
from synq.finetuning.reconstruction import Seen, _Part, dropped, output_error, reconstruct
from synq.finetuning.resume import Work, begun
from synq.finetuning.training import Progress
from synq.models.build import frozen
from synq.models.features import fitted_parts
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize, weight_quantizers
from synq.quantization.quantizers import Recipe
from synq.runtime.process import generator_for

SHAPE = (3, 8, 8)


class Unit(nn.Module):
    """Its first activation is a module of its own, a function, or the one at the end once more."""

    def __init__(self, channels, function):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.end = nn.ReLU(inplace=function == "")
        self.active = {"": nn.ReLU(), "function": functional.relu, "again": self.end}[function]

    def forward(self, x):
        branch = self.active(self.norm(self.first(x)))
        return self.end(self.second(branch).add_(x))


class Network(nn.Module):
    """A stem, two units and a classifier."""

    def __init__(self, function=""):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.units = nn.Sequential(Unit(8, function), Unit(8, function))
        self.output = nn.Linear(8, 5)

    def forward(self, x):
        return self.output(self.units(self.stem(x)).mean((2, 3)))


PARTS = ["stem", "units.0", "units.1", "output"]


def teacher(function=""):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return frozen(Network(function))


class Pictures:
    labels = torch.arange(40) % 5
    image_shape = SHAPE
    pixels = torch.randn(40, *SHAPE, generator=generator_for(0))

    def images(self, rows):
        return self.pixels[rows]


SHORT = Finetune(
    reconstruct="rounding",
    reconstruct_steps=20,
    reconstruct_batch_size=8,
    lowpass="off",
    rounding_learning_rate=0.05,
    scale_learning_rate=1e-3,
    learning_rate=1e-3,
    optimizer="adam",
)
LEARNED = {"weights": "learned", "activations": "learned"}


def student(function="", scope="calls", **kinds):
    kinds = kinds or LEARNED
    recipe = Recipe(3, 3, **kinds, scope=scope)
    network = quantize(copy.deepcopy(teacher(function)), recipe, SHAPE).eval()
    calibrate(network, [Pictures.pixels], Calibration(**kinds))
    return network


def fitted(settings=SHORT, network=None, done=0, seed=3, full=None, **options):
    network = network or student()
    images = Images(Pictures(), settings, torch.device("cpu"))
    found = list(reconstruct(full or teacher(), network, images, settings, seed, done, **options))
    return found, network


def distance(network, full=None):
    with torch.no_grad():
        return float(
            (network(Pictures.pixels) - (full or teacher())(Pictures.pixels)).square().mean()
        )


def test_the_error_sums_channels_and_means_the_rest():
    one, other = torch.randn(2, 2, 3, 4, 5, generator=generator_for(0))
    wanted = sum(
        sum(float(one[n, c, y, x] - other[n, c, y, x]) ** 2 for c in range(3))
        for n in range(2)
        for y in range(4)
        for x in range(5)
    ) / (2 * 4 * 5)
    assert float(output_error(one, other)) == pytest.approx(wanted, rel=1e-5)
    flat, wished = one[0, 0], other[0, 0]
    assert float(output_error(flat, wished)) == pytest.approx(
        float((flat - wished).square().sum() / 4), rel=1e-5
    )


def test_a_share_of_the_values_is_dropped():
    own, others = torch.zeros(10_000), torch.ones(10_000)
    generator = generator_for(0)
    assert torch.equal(dropped(own, others, 0.0, generator), own)
    assert torch.equal(dropped(own, others, 1.0, generator), others)
    assert float(dropped(own, others, 0.25, generator).mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("mode", ["rounding", "weights"])
@pytest.mark.parametrize("function", ["", "function", "again"])
def test_every_part_comes_closer_and_so_does_the_student(mode, function):
    full, network = teacher(function), student(function)
    before = distance(network, full)
    found, _ = fitted(replace(SHORT, reconstruct=mode, reconstruct_steps=80), network, full=full)
    assert [part.name for part in found] == PARTS == fitted_parts(full, SHAPE)
    assert [(part.number, part.parts) for part in found] == [(n, 4) for n in range(1, 5)]
    assert all(part.after <= part.before for part in found)
    assert sum(part.after < part.before for part in found) >= 3
    assert distance(network, full) < 0.9 * before
    assert not any(module._forward_pre_hooks for module in full.modules())


def test_a_student_of_integers_is_fitted_too():
    network = student(scope="everything")
    before = distance(network)
    fitted(network=network)
    assert distance(network) < before


def test_weights_are_rounded_up_or_down_and_nothing_else_of_the_layers_moves():
    network, begun = student(), student()
    fitted(network=network)
    flips = 0
    pairs = zip(weight_quantizers(network).values(), weight_quantizers(begun).values(), strict=True)
    for now, was in pairs:
        weight = was.by_output(was.weight.detach())
        grid = was.weight_quantizer.grid(weight)
        places = weight / grid.scale + grid.zero_point
        own = now.weight.detach()
        if torch.equal(own, was.weight.detach()):
            continue  # its part did not come closer, and was put back
        codes = now.weight_quantizer.grid(own).codes(own)
        assert ((codes - places.clamp(-grid.half, grid.half - 1)).abs() <= 1 + 1e-3).all()
        assert torch.equal(now.weight_quantizer(own), own)
        flips += int((codes != grid.codes(weight)).sum())
    assert flips > 0
    for name in ("units.0.norm", "units.1.second"):
        one, other = network.get_submodule(name), begun.get_submodule(name)
        assert torch.equal(one.bias, other.bias)


def test_a_part_sees_what_both_networks_give_it():
    images = Images(Pictures(), replace(SHORT, crop_min=1.0, flip=0.0), torch.device("cpu"))
    full, network = teacher(), student()
    part = _Part(full, network, "units.1", images, images.settings, 0)
    (rows,) = part.turns
    seen = part._seen(rows)
    pixels = Pictures.pixels[rows]
    with torch.no_grad():
        given, wanted = full.units[0](full.stem(pixels)), full.units(full.stem(pixels))
        own = network.units[0](network.stem(pixels))
    for found, tensor in zip(seen, Seen(own, given, wanted), strict=True):
        torch.testing.assert_close(found, tensor)


def test_same_seed_same_student_and_another_seed_another():
    (_, one), (_, other), (_, third) = fitted(), fitted(), fitted(seed=4)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert any(not torch.equal(v, third.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("rounding", {"reconstruct": "weights"}),
        ("rounding", {"reconstruct_steps": 10}),
        ("rounding", {"reconstruct_images": 12}),
        ("rounding", {"reconstruct_batch_size": 4}),
        ("rounding", {"reconstruct_drop": 0.0}),
        ("rounding", {"rounding_learning_rate": 0.01}),
        ("rounding", {"rounding_weight": 0.0}),
        ("rounding", {"scale_learning_rate": 1e-2}),
        ("weights", {"learning_rate": 1e-4}),
        ("weights", {"weight_decay": 0.5}),
    ],
    ids=str,
)
def test_every_switch_acts_on_the_student(mode, change):
    base = replace(SHORT, reconstruct=mode)
    (_, one), (_, other) = fitted(base), fitted(replace(base, **change))
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_where_the_memory_has_no_room_for_all_images_they_take_turns():
    settings = replace(SHORT, reconstruct_memory=1)
    images = Images(Pictures(), settings, torch.device("cpu"))
    images.train = torch.arange(40).repeat(10)
    part = _Part(teacher(), student(), "units.1", images, settings, 0)
    # Two inputs and an output of 8 x 8 x 8 float32 an image.
    room = 10**6 // (3 * 8 * 8 * 8 * 4)
    # A turn ends where a batch does, so that every part sees the same crops.
    room -= room % settings.reconstruct_batch_size
    assert [len(turn) for turn in part.turns] == [room, room, 400 - 2 * room]
    seen = []
    look = part._seen
    part._seen = lambda rows: seen.append(len(rows)) or look(rows)
    errors = part.fit(generator_for(0), "1/1", lambda: False)
    assert seen == [room, room, 400 - 2 * room]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("mode", ["rounding", "weights"])
def test_a_resumed_reconstruction_is_the_uninterrupted_one(mode):
    settings = replace(SHORT, reconstruct=mode)
    _, whole = fitted(settings)
    # Told to end in the third part.
    steps = iter(range(1000))
    limit = 2 * settings.reconstruct_steps + 5
    found, network = fitted(settings, ended=lambda: next(steps) >= limit)
    assert [part.number for part in found] == [1, 2]
    assert not torch.equal(network.units[1].first.weight, whole.units[1].first.weight)
    begun = student()
    assert torch.equal(network.units[1].first.weight, begun.units[1].first.weight)
    again = student()
    again.load_state_dict(network.state_dict())
    rest, again = fitted(settings, again, done=2)
    assert [part.number for part in rest] == [3, 4]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_the_work_folder_holds_the_newest_part_until_an_epoch_ends(tmp_path):
    record = {"seed": 3, "finetune": {"epochs": 1}}
    work = Work(tmp_path / "student.safetensors", record)
    network, other = fitted()[1], student()
    assert work.resume_fitted(other) == 0
    work.save_fitted(network, 2)
    assert Work(work.folder, {**record, "seed": 4}).resume_fitted(other) == 0
    assert not torch.equal(other.output.weight, network.output.weight)
    assert Work(tmp_path / "student.safetensors", record).resume_fitted(other) == 2
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())
    changed = Work(tmp_path / "student.safetensors", {**record, "seed": 4})
    assert changed.resume_fitted(other) == 0
    work.save(network, Progress())
    assert [file.name for file in sorted(work.folder.iterdir())] == [
        "epoch-0000.safetensors",
        "state.safetensors",
    ]


def test_what_other_code_began_is_begun_anew(tmp_path):
    place, record = tmp_path / "student.safetensors", {"recipe": {"bits": 2}, "seed": 3}
    network, other = fitted()[1], student()
    work = Work(place, record, "old")
    work.save_fitted(network, 2)
    assert Work(place, record, "new").resume_fitted(other) == 0
    assert Work(place, record, "old").resume_fitted(other) == 2
    work.save(network, Progress())
    progress, told = Work(place, record, "new").resume(other)
    assert progress is None
    assert "of other code" in told
    assert Work(place, record, "old").resume(other)[0] is not None
    assert begun(place, record, "new") is None
    assert begun(place, {**record, "recipe": None}, "old") == record["recipe"]


def test_without_it_nothing_happens():
    network = student()
    before = copy.deepcopy(network.state_dict())
    assert fitted(Finetune(), network)[0] == []
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_grids_that_follow_the_weights_are_fitted_by_the_weights_alone():
    kinds = {"weights": "minmax", "activations": "static"}
    network = student(**kinds)
    before = distance(network)
    fitted(replace(SHORT, reconstruct="weights"), network)
    assert distance(network) < before
    with pytest.raises(ConfigError, match="weights: learned"):
        fitted(network=student(**kinds))


def test_divergence_says_what_to_lower():
    settings = replace(SHORT, scale_learning_rate=1e30)
    with pytest.raises(DivergenceError, match=r"stem.*scale_learning_rate"):
        fitted(settings)
