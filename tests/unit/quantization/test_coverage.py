"""What one forward tells of a network, of networks written here and of pytorchcv's."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from pytorchcv.models.common.activ import HSigmoid, HSwish
from torch import nn
from torch.nn import functional as F

from synq.errors import ModelError
from synq.models.build import build, frozen
from synq.models.teacher import Teacher
from synq.quantization.convert import activation_quantizers
from synq.quantization.coverage import examine, require_activations
from synq.quantization.quantizers import Recipe
from synq.quantization.student import student_of
from synq.quantization.trace import Trace

SHAPE = (3, 8, 8)


class Apply(nn.Module):
    """A module whose forward is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, values):
        return self.function(values)


def wrapped(*modules):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *modules)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# How an activation is written, and its name in a site's.
FUNCTIONAL = {
    "F.relu": (F.relu, "relu"),
    "F.relu, in place": (lambda x: F.relu(x, True), "relu"),
    "F.relu of a keyword": (lambda x: F.relu(input=x, inplace=True), "relu"),
    "F.relu_": (F.relu_, "relu"),
    "torch.relu": (torch.relu, "relu"),
    "Tensor.relu": (lambda x: x.relu(), "relu"),
    "Tensor.relu_": (lambda x: x.relu_(), "relu"),
    "F.relu6": (F.relu6, "relu6"),
    "F.hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True), "hardtanh"),
    "F.silu": (F.silu, "silu"),
    "F.hardswish": (F.hardswish, "hardswish"),
    "F.gelu": (F.gelu, "gelu"),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.1), "leaky_relu"),
    "F.elu": (F.elu, "elu"),
    "F.elu_": (F.elu_, "elu"),
    "F.selu": (F.selu, "selu"),
    "F.celu": (F.celu, "celu"),
    "F.mish": (F.mish, "mish"),
    "F.prelu": (lambda x: F.prelu(x, torch.ones(1)), "prelu"),
    "Tensor.clamp": (lambda x: x.clamp(min=0), "clamp"),
    "Tensor.clamp_": (lambda x: x.clamp_(0, 6), "clamp"),
    "torch.clamp": (lambda x: torch.clamp(x, 0.0), "clamp"),
    "torch.clip": (lambda x: torch.clip(x, min=0, max=6), "clamp"),
    "Tensor.clamp_min": (lambda x: x.clamp_min(0), "clamp"),
    "torch.maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), "maximum"),
    "Tensor.maximum": (lambda x: x.maximum(torch.tensor(0.0)), "maximum"),
}


def test_the_network_itself_can_be_the_caller_and_all_callers_are_told():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = wrapped(nn.ReLU(), Apply(F.relu))

        def forward(self, images):
            return F.silu(self.body(images))

    anatomy = examine(Own(), SHAPE)
    assert [(call.module, call.function) for call in anatomy.functional_activations] == [
        ("body.3", "F.relu"),
        ("the model", "F.silu"),
    ]
    rows = [(part.name, part.kind, part.input) for part in anatomy.of("activation")]
    assert rows == [
        ("body.2", "ReLU", "batch_norm"),
        ("body.3/relu/0", "F.relu", "quantized"),
        ("silu/0", "F.silu", "quantized"),
    ]
    require_activations(Own(), SHAPE)


@pytest.mark.parametrize("module", [HSwish, HSigmoid, nn.ReLU6, nn.Hardswish, nn.PReLU])
def test_what_a_module_that_is_known_calls_is_its_own_matter(module):
    assert not examine(wrapped(nn.ReLU(), module()), SHAPE).functional_activations


def test_a_network_that_passes_by_its_activations_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.spare = wrapped(), nn.ReLU()

        def forward(self, images):
            return self.body(images).tanh()

    assert examine(Own(), SHAPE).never_called == ["spare"]
    with pytest.raises(ModelError, match="passes an activation"):
        require_activations(Own(), SHAPE)


def test_no_hook_and_no_change_stays_also_after_an_exception():
    model = wrapped(nn.ReLU(), nn.Dropout()).train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examine(model, SHAPE)
    with pytest.raises(RuntimeError):
        examine(model, (2, 8, 8))
    failing = Apply(lambda x: 1 / 0)
    model.append(failing)
    with pytest.raises(ZeroDivisionError):
        examine(model, SHAPE)
    assert hooks_of(model) == 0
    assert [module.training for module in model[:4]] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    # No mode is left behind: the trace of another network does not see this call.
    trace = Trace(model, ())
    torch.relu(torch.zeros(1))
    assert not trace.functions


def test_the_forward_of_another_hook_keeps_its_hook():
    model, seen = wrapped(nn.ReLU()), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    examine(model, SHAPE)
    assert hooks_of(model) == 1
    assert seen


def test_multiply_adds_are_those_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2),
        nn.Flatten(2),
        nn.Conv1d(6, 2, 5),
        nn.Flatten(),
        nn.Linear(120, 10),
    )
    layers = {layer.name: layer for layer in examine(model, SHAPE).of("layer")}
    assert {name: layer.multiply_adds for name, layer in layers.items()} == {
        "0": 4 * 4 * 8 * 3 * 9,
        "2": 4 * 4 * 8 * 9,
        "3": 4 * 4 * 4 * 4,
        "4": 4 * 4 * 4 * 3 * 16,  # every pixel of the input is spread over 3 channels of 4x4
        "6": 60 * 2 * 6 * 5,
        "8": 1200,
    }
    assert layers["0"].weight == [8, 3, 3, 3]
    assert layers["0"].output == [8, 4, 4]
    assert layers["4"].output == [6, 8, 8]
    assert layers["8"].output == [10]


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_multiply_adds_of_a_layer_that_stays_in_full_precision_are_counted_too():
    model = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    first, last = examine(model, SHAPE).of("layer")
    assert first.reason == "a subclass of Conv2d"
    assert (first.multiply_adds, last.multiply_adds) == (6 * 6 * 8 * 27, 288 * 5)


def test_a_layer_that_is_called_twice_counts_twice():
    layer = nn.Linear(5, 5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), layer, layer)
    (*_, last) = examine(model, SHAPE).of("layer")
    assert (last.name, last.calls, last.multiply_adds) == ("3", 2, 50)


def test_without_counting_all_but_the_multiply_adds_is_the_same():
    model = build("resnet20_cifar10", 10, 3, 32)
    counted = examine(model, (3, 32, 32))
    uncounted = examine(model, (3, 32, 32), counting=False)
    plain = [dataclasses.replace(part, multiply_adds=None) for part in counted.parts]
    assert uncounted == dataclasses.replace(counted, parts=plain)


def test_resnet20_has_the_published_size():
    model = build("resnet20_cifar10", 10, 3, 32)
    anatomy = examine(model, (3, 32, 32))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 0.27
    total = sum(layer.multiply_adds for layer in anatomy.of("layer"))
    assert round(total / 1e6, 1) == 40.8
    # 21 convolutions and the classifier, whose input is an average; 9 units of two activations.
    assert [layer.input for layer in anatomy.of("layer")].count("quantized") == 20
    assert anatomy.of("layer")[0].input == "image"
    assert anatomy.of("layer")[-1].input == "avg_pool2d"
    assert len(anatomy.batchnorms) == 21
    assert len(anatomy.of("activation")) == 19
    assert not anatomy.repeated_activations
    assert not anatomy.never_called


def test_the_inputs_that_stay_in_full_precision_are_told():
    anatomy = examine(build("mobilenetv2_w1", 5, 3, 224), (3, 224, 224))
    # Sums of linear bottlenecks and bottlenecks alone go into the next expansion unrounded.
    assert Counter(layer.input for layer in anatomy.of("layer")) == {
        "quantized": 35,
        "sum": 10,
        "batch_norm": 7,
        "image": 1,
        "avg_pool2d": 1,
    }


def test_codes_stay_codes_through_what_only_moves_them():
    moved = nn.Sequential(
        *(nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.ChannelShuffle(2), nn.Dropout(), nn.Identity()),
        Apply(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1).permute(0, 2, 3, 1).contiguous()),
        Apply(lambda x: x.index_select(1, torch.tensor([0, 2]))),
        Apply(lambda x: x[:, 1:].transpose(1, 3).flatten(1)),
        *(nn.Flatten(), nn.Linear(64, 5)),
    )
    model = wrapped(nn.ReLU(), *moved)
    model[-1] = nn.Linear(model[:-1](torch.zeros(1, *SHAPE)).shape[1], 5)
    assert examine(model, SHAPE).of("layer")[-1].input == "quantized"
    mixed = wrapped(nn.ReLU(), Apply(lambda x: torch.cat([x, x + 1], 1)), nn.Conv2d(8, 1, 1))
    assert examine(mixed, SHAPE).of("layer")[-1].input == "sum"


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x.sigmoid(), "sigmoid"),
        (F.hardsigmoid, "hardsigmoid"),
    ],
)
def test_gates_that_are_functions_and_other_norms_are_told(gate, name):
    anatomy = examine(wrapped(nn.GroupNorm(2, 4), nn.ReLU(), Apply(gate), nn.SiLU()), SHAPE)
    (call,) = anatomy.functional_gates
    assert (call.module, call.function) == ("4", name)
    assert anatomy.other_norms == ["2 (GroupNorm)"]


def test_layers_that_stay_in_full_precision_are_told_with_the_reason():
    class Own(nn.Conv2d):
        pass

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.norm = nn.LayerNorm((4, 4))

        def forward(self, x):
            x = self.norm(x.flatten(2)[:, :, :4]).transpose(1, 2)
            return self.attention(x, x, x)[0]

    model = wrapped(
        *(Own(4, 4, 1), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), Attention()),
        *(Apply(lambda x: F.linear(x, torch.ones(2, 4))), nn.Conv1d(4, 3, 1)),
    )
    model.add_module("unused", nn.Identity())
    model[2].spare = nn.Conv2d(4, 4, 1)
    anatomy = examine(model, SHAPE)
    rows = anatomy.parts
    assert {row.name: (row.kind, row.reason) for row in rows} == {
        "0": ("Conv2d", ""),
        "2": ("Own", "a subclass of Conv2d"),
        "2.spare": ("Conv2d", "never called"),
        "3": ("ReLU", ""),
        "4": ("Tanh", "type not supported"),
        "5": ("Sigmoid", "a gate"),
        "6.attention": ("MultiheadAttention", ""),
        "6.attention.out_proj": ("NonDynamicallyQuantizableLinear", ""),
        "8": ("Conv1d", "type not supported"),
    }
    assert anatomy.never_called == ["2.spare"]
    (call,) = anatomy.functional_layers
    assert (call.module, call.function) == ("7", "F.linear")
    assert anatomy.other_norms == ["6.norm (LayerNorm)"]
    assert not anatomy.functional_gates
    adds = {row.name: row.multiply_adds for row in rows if row.name.startswith("6.attention")}
    tokens, width = 4, 4
    assert adds == {
        "6.attention": tokens * 3 * width * width,
        "6.attention.out_proj": tokens * width * width,
    }


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.weights[0].softmax(0))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.movedim(1, 3) @ self.linear.weight.t()).movedim(3, 1)


class Owner(nn.Module):
    """Has a table and parts, and calls an activation between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = F.relu(torch.einsum("bchw,cd->bhwd", x, self.table))
        return F.linear(seen, self.linear.weight).movedim(3, 1)


class Gram(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.transpose(2, 3)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Einsum(), [("2", "einsum with a weight")]),
        (Product(), [("2", "matmul with a weight")]),
        (Owner(), [("2", "F.linear"), ("2", "einsum with a weight")]),
        (Gram(), []),
    ],
)
def test_weights_that_a_product_uses_are_told(module, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), module, nn.ReLU())
    calls = examine(frozen(model), SHAPE).functional_layers
    assert [(call.module, call.function) for call in calls] == expected


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (wrapped(*[nn.ReLU()] * 2), SHAPE),
        (lambda: build("shufflenetv2_wd2", 10, 3, 224), (3, 224, 224)),
    ],
)
def test_activation_modules_that_are_called_again_are_told_and_have_a_range_a_call(model, shape):
    model = frozen(model if isinstance(model, nn.Module) else model())
    anatomy = examine(model, shape)
    teacher = Teacher(model, "", "own", 10, shape, [0.0] * 3, [1.0] * 3)
    quantizers = activation_quantizers(student_of(teacher, Recipe(4, 4)))
    assert anatomy.repeated_activations
    for name, calls in anatomy.repeated_activations.items():
        assert calls > 1
        assert f"{name}.quantizer" in quantizers
        further = [f"{name}/forward/{index}" for index in range(1, calls)]
        assert [part.name for part in anatomy.parts if part.name.startswith(f"{name}/")] == further
        assert all(n.replace("/", ".call_sites.", 1) in quantizers for n in further)
    assert len(quantizers) == len(anatomy.of("activation"))
    if shape == SHAPE:
        assert anatomy.repeated_activations == {"2": 2}
    else:
        # The first unit of a stage has a second branch of its own.
        assert Counter(anatomy.repeated_activations.values()) == {2: 13, 3: 3}


def test_one_channel_and_an_odd_number_of_classes():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(144, 7)),
    )
    anatomy = examine(model, (1, 28, 28))
    assert [layer.output for layer in anatomy.of("layer")] == [[4, 24, 24], [7]]
    assert anatomy.of("layer")[1].input == "quantized"
    assert (
        sum(layer.multiply_adds for layer in anatomy.of("layer"))
        == math.prod([24, 24, 4, 25]) + 1008
    )


def test_squeeze_and_excitation_has_its_gates_told():
    anatomy = examine(build("seresnet20_cifar10", 10, 3, 32), (3, 32, 32))
    assert len(anatomy.of("gate")) == 9
    assert {gate.reason for gate in anatomy.of("gate")} == {"a gate"}
    assert {gate.kind for gate in anatomy.of("gate")} == {"Sigmoid"}
