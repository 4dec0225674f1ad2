"""Which tensors the wider scopes quantize, told from one forward."""

import copy
from dataclasses import replace

import pytest
import small_transformers
import torch
from test_integers import SHAPE, Everything, Plain
from torch import nn
from torch.nn import functional as F

from synq.config.calibration import Calibration
from synq.errors import ModelError
from synq.models.build import frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import (
    activation_quantizers,
    input_bits,
    layers_of,
    quantize,
    quantized_names,
    weight_quantizers,
)
from synq.quantization.dataflow import work_of
from synq.quantization.quantizers import Recipe
from synq.reporting.inspection import inspect_model
from synq.runtime.process import generator_for


class Bottleneck(nn.Module):
    """A layer reads what a sum reads as well."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, images):
        x = self.conv1(images)
        return F.relu(self.conv2(x) + x).mean((2, 3))


def student_of(scope, make=Everything, bits=(4, 4), **others):
    torch.manual_seed(0)
    recipe = Recipe(*bits, scope=scope, **others)
    return quantize(frozen(make()), recipe, SHAPE).eval()


def names(student):
    return set(activation_quantizers(student))


CALLS = {"first.quantizer", "relu6.quantizer", "last.quantizer"}


def test_by_default_activations_alone_are_quantized():
    assert names(student_of("calls")) == CALLS


def test_inputs_adds_the_layers_that_read_no_codes():
    student = student_of("inputs")
    # The other layers read an activation: conv1 the image, gate and linear what was averaged.
    added = {"conv1.input", "gate.input", "linear.input"}
    assert names(student) == CALLS | added
    assert student.conv1.input.bits == 8
    assert student.gate.input.bits == 4


def test_everything_adds_what_an_engine_would_write_down():
    student = student_of("everything")
    assert names(student) - CALLS == {
        "conv1.input",
        "gate.input",  # of the average, which nothing else reads
        "linear.input",
        "bn3.call_sites.batch_norm/0",  # averaged and multiplied
        "gate.call_sites.conv2d/0",
        "sigmoid.call_sites.forward/0",
        "call_sites.mul/0",  # added
        "side.call_sites.conv2d/0",
        "call_sites.cat/0",
        "linear.call_sites.linear/0",
    }
    # The sum is read by a ReLU alone: one kernel has both.
    assert student.call_sites["cat/0"].bits == 8


def test_what_is_read_by_a_sum_too_has_a_grid_where_it_is_made():
    assert names(student_of("everything", Plain)) == {
        "conv1.input",
        "conv1.call_sites.conv2d/0",
        "call_sites.relu/0",
        "conv2.call_sites.conv2d/0",
        "out.input",  # of the sum, which nothing else reads
        "out.call_sites.linear/0",
    }


def test_layers_that_read_a_finer_grid_than_their_own_round_again():
    def own(*bits, sum_bits=8):
        student = student_of("everything", Bottleneck, bits, sum_bits=sum_bits)
        assert "conv1.call_sites.conv2d/0" in names(student)
        return "conv2.input" in names(student)

    assert own(4, 4)
    assert not own(8, 8)
    assert not own(4, 4, sum_bits=4)


def test_sums_have_their_own_bits_and_span_the_extremes():
    student = student_of("everything", sum_bits=5)
    images = torch.randn(16, *SHAPE, generator=generator_for(1))
    seen = []
    student.call_sites["mul/0"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    calibrate(student, [images], Calibration(range_estimator="mse", clip_ratio=0.5))
    quantizer = student.call_sites["mul/0"]
    assert quantizer.bits == 5
    assert float(quantizer.hi) == pytest.approx(float(seen[0].max()))
    assert len(student.call_sites["mul/0"](images).unique()) <= 32


def test_batchnorm_is_corrected_in_a_student_of_everything():
    student = student_of("everything", bits=(2, 2))
    torch.manual_seed(0)
    teacher = frozen(Everything())
    images = torch.randn(16, *SHAPE, generator=generator_for(1))
    before = student.bn2.running_mean.clone()
    calibrate(student, [images], Calibration(batchnorm="corrected"), teacher)
    assert not torch.equal(student.bn2.running_mean, before)
    assert torch.isfinite(student(images)).all()


@pytest.mark.parametrize("scope", ["inputs", "everything"])
@pytest.mark.parametrize("make", [Everything, Plain])
def test_the_rounding_is_the_only_difference(scope, make):
    student = student_of(scope, make, (8, 8))
    torch.manual_seed(0)
    teacher = frozen(make())
    images = torch.randn(8, *SHAPE, generator=generator_for(1))
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    wanted, found = teacher(images), student(images)
    assert float((found - wanted).abs().max()) < 0.1 * float(wanted.std())
    assert not torch.equal(found, wanted)


def test_students_are_trained_copied_and_exact_where_their_calls_change():
    student = student_of("everything")
    images = torch.randn(4, *SHAPE, generator=generator_for(1))
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    other = copy.deepcopy(student)
    assert torch.equal(student(images), other(images))
    student.requires_grad_(True)
    student(images).square().sum().backward()
    assert all(layer.weight.grad.any() for layer in weight_quantizers(student).values())

    class Depends(nn.Module):
        def __init__(self, from_on):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.from_on = from_on

        def forward(self, images):
            x = F.relu(self.conv(images))
            return (x + images if float(images.max()) > self.from_on else x).mean((2, 3))

    recipe, words = Recipe(4, 4, scope="everything"), "calls add 1 times in this .* and 0 times"
    with pytest.raises(ModelError, match=words):
        quantize(frozen(Depends(0)), recipe, SHAPE)
    # Of an image that no random one is like, it is seen where it comes.
    odd = quantize(frozen(Depends(100)), recipe, SHAPE)
    with pytest.raises(ModelError, match=words):
        odd(1000 * images)


def test_the_share_of_the_multiply_adds_is_that_of_the_inspection():
    torch.manual_seed(0)
    model = frozen(Everything())
    works = {s: work_of(model, SHAPE, Recipe(4, 3, scope=s), {}) for s in ("calls", "inputs")}
    told = inspect_model(model, SHAPE)["quantized_inputs"]
    assert works["calls"].reading == told["layers"]
    assert len(works["calls"].layers) == told["of"]
    assert works["calls"].share == pytest.approx(told["multiply_adds_share"])
    assert works["inputs"].share == 1


@pytest.mark.parametrize(
    "make",
    [
        small_transformers.small,
        lambda: small_transformers.fused(False),
        lambda: small_transformers.separate(("to_q", "to_k", "to_v")),
        small_transformers.blocks_that_attend,
        small_transformers.small_swin_v2,
    ],
)
def test_a_student_of_a_transformer_reads_what_its_inspection_says(make):
    torch.manual_seed(0)
    model, shape, recipe = frozen(make()), small_transformers.SHAPE, Recipe(4, 3)
    student = quantize(copy.deepcopy(model), recipe, shape)
    work = work_of(model, shape, recipe, {}, input_bits(student))
    found = inspect_model(model, shape)
    assert work.reading == found["quantized_inputs"]["layers"]
    assert len(work.layers) == found["quantized_inputs"]["of"] == len(layers_of(student))
    assert sum(products for _, products, *_ in work.layers) == found["multiply_adds"]
    assert work.share == pytest.approx(found["quantized_inputs"]["multiply_adds_share"])


def test_bit_operations_are_counted_by_hand():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU()
            self.linear = nn.Linear(4, 5)

        def forward(self, images):
            return self.linear(self.relu(self.conv(images)).amax((2, 3)))

    products = 12 * 12 * 4 * 3 * 9, 4 * 5
    bits = {"conv": 4, "linear": 8}
    everything = work_of(frozen(Two()), SHAPE, Recipe(4, 3, scope="everything"), bits)
    assert [layer[1] for layer in everything.layers] == list(products)
    assert everything.bit_operations == products[0] * 4 * 8 + products[1] * 8 * 3
    calls = work_of(frozen(Two()), SHAPE, Recipe(4, 3), bits)
    assert calls.bit_operations == products[0] * 4 * 32 + products[1] * 8 * 32
    # The image and what the first kernel makes of it are there at once; then the image is not.
    image, activation = 3 * 12 * 12, 4 * 12 * 12
    assert everything.peak_bytes == (image * 8 + activation * 3) // 8
    assert calls.peak_bytes == (image * 32 + activation * 3) // 8
    assert everything.peak_bytes < everything.activation_bytes
    with pytest.raises(ModelError, match="needs the shape of an image"):
        quantize(Two(), Recipe(4, 4, scope="inputs"))


@pytest.mark.parametrize(
    ("scope", "keep", "read"),
    [
        ("calls", {}, [32, 3, 3, 32]),
        ("calls", {"relu": 6}, [32, 6, 3, 32]),
        ("calls", {"relu": 32, "relu/0": 5}, [32, 32, 5, 32]),
        ("inputs", {"relu": 6, "last.input": 7}, [8, 6, 3, 7]),
        ("inputs", {"first.input": 32}, [32, 3, 3, 3]),
        ("everything", {"add/0": 4, "relu/0": 2}, [8, 3, 2, 3]),
    ],
)
def test_what_layers_read_has_the_width_that_it_is_kept_at(scope, keep, read):
    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.relu, self.third = nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Linear(4, 5)

        def forward(self, images):
            x = self.relu(self.first(images))
            y = self.third(F.relu(self.second(x)))
            return self.last((x + y).mean((2, 3)))

    recipe = Recipe(4, 3, scope=scope, keep=keep or None)
    work = work_of(frozen(Four()), SHAPE, recipe, {})
    assert [bits for *_, bits in work.layers] == read
    # The names are those of the student's own quantizers.
    recipe.resolved(quantized_names(quantize(frozen(Four()), replace(recipe, keep=None), SHAPE)))
    alike = work_of(frozen(Four()), SHAPE, replace(recipe, keep=None), {})
    if scope == "everything":  # the sum of 4 x 10 x 10 is in memory at 4 bits and not at 8, ...
        saved = 4 * 10 * 10 * (8 - 4 + 3 - 2)  # ... and the second activation at 2, not 3
        assert alike.activation_bytes - work.activation_bytes == saved // 8


def test_what_a_sum_still_reads_is_in_memory_until_then():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
            self.conv2, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

        def forward(self, images):
            x = F.relu(self.conv1(images))
            return F.relu(self.bn(self.conv2(x)) + x).mean((2, 3))

    work = work_of(frozen(Block()), SHAPE, Recipe(4, 4, scope="everything"), {})
    # Both parts of the sum and, with its ReLU, the sum: of 4, 8 and 4 bits.
    assert work.peak_bytes == 6 * 12 * 12 * (4 + 8 + 4) // 8
    paper = work_of(frozen(Block()), SHAPE, Recipe(4, 4), {})
    assert paper.peak_bytes == 6 * 12 * 12 * (4 + 32 + 4) // 8
    whole = work_of(frozen(Block()), SHAPE, Recipe(4, 32), {})
    assert whole.peak_bytes == 6 * 12 * 12 * 3 * 4
