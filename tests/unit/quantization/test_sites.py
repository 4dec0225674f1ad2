"""Call sites: networks of functions and of modules that are called again give the same students."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import onnx_ir
import pytest
import torch
from test_coverage import FUNCTIONAL, SHAPE, Apply, wrapped
from test_onnx import run
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from vision import torchvision_models

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.errors import ModelError
from synq.finetuning.objective import Objective
from synq.models.build import build, frozen
from synq.models.features import residual_units
from synq.models.hooks import recorded
from synq.models.teacher import Teacher
from synq.quantization.calibration import calibrate
from synq.quantization.convert import activation_quantizers, observing, packed_bytes, quantize
from synq.quantization.coverage import examine
from synq.quantization.onnx import to_onnx
from synq.quantization.quantizers import Recipe
from synq.quantization.student import opened, student_of
from synq.runtime.process import generator_for

LEARNED = {"weights": "learned", "activations": "learned"}


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.add_activations()

    def add_activations(self):
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def first(self, x):
        return self.relu1(x)

    def second(self, x):
        return self.relu2(x)

    def forward(self, x):
        y = self.first(self.bn1(self.conv1(x)))
        return self.second(self.bn2(self.conv2(y)) + x)


class Again(Unit):
    """One module for both, as torchvision's ResNets have it."""

    def add_activations(self):
        self.relu = nn.ReLU(inplace=True)

    def first(self, x):
        return self.relu(x)

    second = first


class Functions(Unit):
    def add_activations(self):
        pass

    def first(self, x):
        return F.relu(x, inplace=True)

    def second(self, x):
        return x.relu()


class Statements(Functions):
    """What is given is altered in place, and what is returned is not looked at."""

    def first(self, x):
        torch.relu_(x)
        return x

    def second(self, x):
        x.clamp_(min=0)
        return x


class Net(nn.Module):
    def __init__(self, unit):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.unit1, self.unit2 = unit(), unit()
        self.output = nn.Linear(6, 5)
        if unit is Unit:
            self.relu = nn.ReLU()

    def forward(self, x):
        x = self.stem(x)
        x = self.relu(x) if hasattr(self, "relu") else torch.relu(x)
        return self.output(self.unit2(self.unit1(x)).mean((2, 3)))


def made(unit):
    torch.manual_seed(0)
    net = Net(unit)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return frozen(net)


IMAGES = torch.randn(8, *SHAPE, generator=generator_for(0))
SITES = {
    Again: ["relu/0", "unit1.relu/forward/1", "unit2.relu/forward/1"],
    Functions: ["relu/0", *(f"unit{n}/relu/{index}" for n in (1, 2) for index in (0, 1))],
    Statements: ["relu/0", *(f"unit{n}/{name}/0" for n in (1, 2) for name in ("relu", "clamp"))],
}


def student_of_net(model, bits=4, **kinds):
    student = quantize(copy.deepcopy(model), Recipe(bits, bits, **kinds), SHAPE).eval()
    calibrate(student, [IMAGES], Calibration(range_estimator="minmax"))
    return student


def in_order(student):
    """The activation quantizers in the order in which a forward calls them."""
    found, handles = [], []
    for quantizer in activation_quantizers(student).values():
        handles.append(quantizer.register_forward_hook(lambda module, *_: found.append(module)))
    with torch.no_grad():
        student(IMAGES)
    for handle in handles:
        handle.remove()
    return found


def activations_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.ReLU)}


def modes():
    return len(_get_current_function_mode_stack())


@pytest.mark.parametrize("kinds", [{}, LEARNED], ids=["static", "learned"])
@pytest.mark.parametrize("unit", [Again, Functions, Statements])
def test_the_student_is_that_of_the_network_of_modules(unit, kinds):
    settings = Finetune(
        feature_weight=1000.0,
        perturbation=0.01,
        block_weight=1.0,
        activation_weight=1.0,
        cam="gradcam",
    )
    found = []
    for kind in (Unit, unit):
        teacher = made(kind)
        student = student_of_net(teacher, **kinds).requires_grad_(True)
        with Objective(teacher, student, settings, SHAPE) as objective:
            terms = objective.backward(IMAGES, torch.arange(8) % 5)
        torch.optim.SGD(student.parameters(), 1e-3).step()
        ranges = [[*q.state_dict().values()] for q in in_order(student)]
        gradients = {n: p.grad for n, p in student.named_parameters() if not n.endswith("scale")}
        scales = [[p.grad for p in q.parameters()] for q in in_order(student)]
        found.append((ranges, scales, student(IMAGES), gradients, terms, packed_bytes(student)))
    assert len(found[0][0]) == 5
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("unit", [Unit, Again, Functions, Statements])
def test_an_open_copy_computes_the_same_and_shows_what_the_student_rounds(unit):
    teacher = made(unit)
    copied, seen = opened(teacher, SHAPE), {}
    assert list(activation_quantizers(copied)) == [*activation_quantizers(student_of_net(teacher))]
    keep = {name: partial(seen.__setitem__, name) for name in activation_quantizers(copied)}
    with torch.no_grad(), observing(copied, keep):
        assert torch.equal(copied(IMAGES), teacher(IMAGES))
    # Activations in the order of the modules, as every kind of this network has them.
    plain = made(Unit)
    plain.load_state_dict(teacher.state_dict())
    with torch.no_grad(), recorded(activations_of(plain)) as wanted:
        plain(IMAGES)
    found = sorted(float(tensor.double().norm()) for tensor in seen.values())
    assert found == sorted(float(tensor.double().norm()) for tensor in wanted.values())


@pytest.mark.parametrize("unit", SITES)
def test_the_sites_have_names_and_rows(unit):
    teacher = made(unit)
    anatomy = examine(teacher, SHAPE)
    rows = [part for part in anatomy.parts if "/" in part.name]
    assert [part.name for part in rows] == SITES[unit]
    assert {part.reason for part in rows} == {""}
    assert [part.output for part in rows] == [[6, 8, 8]] * len(rows)
    inputs = [part.input for part in examine(made(Unit), SHAPE).parts]
    assert [part.input for part in anatomy.parts] == inputs
    assert anatomy.repeated_activations == (
        {"unit1.relu": 2, "unit2.relu": 2} if unit is Again else {}
    )
    names = [name for name in activation_quantizers(student_of_net(teacher)) if "/" in name]
    assert sorted(n.replace(".call_sites.", "/").replace("call_sites.", "") for n in names) == (
        sorted(SITES[unit])
    )


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_every_way_to_write_an_activation_is_a_site(name):
    function, site = FUNCTIONAL[name]
    model = frozen(wrapped(nn.ReLU(), nn.Sequential(Apply(function)), nn.Flatten()))
    (call,) = examine(model, SHAPE).functional_activations
    assert call.module == "3.0"
    student = student_of_net(model, 3)
    assert list(activation_quantizers(student)) == ["2.quantizer", f"3.0.call_sites.{site}/0"]
    assert len(student(IMAGES).unique()) <= 8


IN_PLACE = {
    "the result": (lambda x: F.relu(x, inplace=True) + 0, False),
    "the result, whose size is asked of the other": (
        lambda x: torch.relu_(x).view(x.shape),
        False,
    ),
    "what was given": (lambda x: [F.relu(x, inplace=True), x][1] + 0, True),
    "both": (lambda x: F.relu(x, inplace=True) + x, True),
    "a part of what was given": (lambda x: [x[:, :2].relu_(), x][1] + 0, True),
    "what was given, as the output": (lambda x: [F.relu(x, inplace=True), x][1], True),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_call_in_place_writes_codes_where_the_network_goes_on_with_what_it_gave(name):
    function, overwriting = IN_PLACE[name]
    model = frozen(wrapped(Apply(function)))
    student = student_of_net(model)
    assert bool(student[2].call_sites.overwriting) == overwriting
    if name != "a part of what was given":
        assert len(student(IMAGES).unique()) <= 16
    else:
        assert len(student(IMAGES)[:, :2].unique()) <= 16


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp(min=1e-6),
        lambda x: x.clamp_max(0),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: torch.maximum(x, torch.ones(1)),
        lambda x: x * x.mean().relu(),
        lambda x: x.sigmoid(),
    ],
)
def test_what_is_no_activation_is_no_site(function):
    model = frozen(wrapped(nn.ReLU(), Apply(function)))
    # No bias and statistics of nothing: an image of zeros is zeros everywhere.
    model[0].bias.zero_()
    assert not [part for part in examine(model, SHAPE).parts if "/" in part.name]
    assert len(activation_quantizers(student_of_net(model))) == 1


def test_a_maximum_of_two_maps_does_not_move_the_index_of_one_with_zero():
    def both(x):
        return torch.maximum(torch.maximum(x, x.flip(1)), torch.zeros_like(x))

    student = student_of_net(frozen(wrapped(nn.ReLU(), Apply(both))))
    assert list(activation_quantizers(student))[1:] == ["3.call_sites.maximum/1"]


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU])
def test_what_a_module_calls_is_no_site_and_a_subclass_is_one(kind):
    class Own(kind):
        pass

    assert not examine(wrapped(nn.ReLU(), kind()), SHAPE).functional_activations
    rows = examine(wrapped(nn.ReLU(), Own()), SHAPE).of("activation")
    assert [part.name.split("/")[0] for part in rows] == ["2", "3"]
    assert [part.reason for part in rows] == ["", ""]


def test_a_network_without_sites_has_no_hook_and_no_mode_more():
    model = made(Unit)
    plain = quantize(copy.deepcopy(model), Recipe(4, 4))
    student = quantize(copy.deepcopy(model), Recipe(4, 4), SHAPE)
    for one, other in zip(plain.modules(), student.modules(), strict=True):
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            assert len(getattr(one, kind)) == len(getattr(other, kind))
    assert not student._forward_pre_hooks


class Turning(nn.Module):
    """Takes another path where an attribute says so."""

    def __init__(self):
        super().__init__()
        self.body, self.relu, self.calls, self.again = wrapped(), nn.ReLU(), 2, 2

    def forward(self, x):
        x = self.body(x)
        for _ in range(self.calls):
            x = F.relu(x)
        for _ in range(self.again):
            x = self.relu(x)
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"calls": 3}, r"^the model calls relu 3 times .* 2 times"),
        ({"calls": 1}, r"^the model calls relu 1 times .* 2 times"),
        ({"again": 3}, r"^relu is called 3 times .* 2 times"),
        ({"again": 0}, r"^relu is called 0 times .* 2 times"),
    ],
    ids=str,
)
def test_another_path_is_an_error_with_the_modules_name(change, words):
    student = student_of_net(frozen(Turning()))
    for name, value in change.items():
        setattr(student, name, value)
    with pytest.raises(ModelError, match=words) as caught:
        student(IMAGES)
    assert "\n" not in str(caught.value)
    assert modes() == 0
    student.calls = student.again = 2
    student(IMAGES)


def test_a_module_that_called_nothing_may_not_begin_to():
    student = student_of_net(frozen(wrapped(nn.ReLU(), Apply(F.relu), Apply(lambda x: x))))
    student[4].function = lambda x: x.relu()
    with pytest.raises(ModelError, match=r"^4 calls relu 1 times .* and 0 times"):
        student(IMAGES)


def branch(kernel):
    convolution = nn.Conv2d(6, 6, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(6))


class Named(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return F.relu(self.a(x) + self.b(x))


class ByChildren(Named):
    def forward(self, x):
        return F.relu(torch.stack([child(x) for child in self.children()]).sum(0))


class ByList(nn.ModuleList):
    def __init__(self, *branches):
        super().__init__(branches)

    def forward(self, x):
        assert [*reversed(self._modules)] == ["1", "0"]
        return F.relu(sum(child(x) for child in self))


class ByNumber(nn.Sequential):
    def forward(self, x):
        return F.relu(self[0](x) + self[-1](x) if len(self) == 2 else x)


class ByName(nn.ModuleDict):
    def __init__(self, a, b):
        super().__init__({"a": a, "b": b})

    def forward(self, x):
        own = [*self.values()]
        assert [*self] == [*self.keys()] == [name for name, _ in self.items()] == ["a", "b"]
        return F.relu(own[0](x) + own[1](x))


class ByKind(Named):
    """Finds the quantizers, too."""

    def forward(self, x):
        return F.relu(sum(own(x) for own in self.modules() if not any(own.children())))


def of_branches(kind):
    torch.manual_seed(0)
    units = [kind(branch(3), branch(1)) for _ in range(2)]
    stem = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*stem, *units, nn.AvgPool2d(6), nn.Flatten(), nn.Linear(6, 5)).eval()


@pytest.mark.parametrize("kind", [ByChildren, ByList, ByNumber, ByName])
def test_a_module_that_goes_through_its_children_does_not_meet_their_quantizers(kind):
    model, named = of_branches(kind), student_of_net(of_branches(Named))
    student = student_of_net(model)
    wanted = named(IMAGES)
    torch.testing.assert_close(student(IMAGES), wanted)
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(other(IMAGES), student(IMAGES))
    # Outside of a forward they are there.
    assert len(activation_quantizers(student)) == len(activation_quantizers(named)) == 3
    whole = student_of_net(model, bits=8, scope="everything")
    torch.testing.assert_close(whole(IMAGES), model(IMAGES), rtol=0, atol=0.05)


def test_a_student_that_is_another_network_before_it_rounds_is_refused():
    with pytest.raises(ModelError, match=r"something else with quantizers in it.* by its name$"):
        student_of_net(of_branches(ByKind))


def test_a_network_that_draws_numbers_is_compared_with_the_same_ones():
    noisy = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Apply(lambda x: x + torch.randn_like(x)))
    assert quantize(noisy, Recipe(4, 4), SHAPE) is noisy


def test_a_part_of_the_student_alone_is_refused():
    student = student_of_net(made(Functions))
    with pytest.raises(ModelError, match="unit1 is called outside of a forward"):
        student.unit1(torch.zeros(1, 6, 8, 8))


@pytest.mark.parametrize("unit", SITES)
def test_copies_and_pickles_have_sites_of_their_own(unit):
    student = student_of_net(made(unit))
    wanted = student(IMAGES)
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(other(IMAGES), wanted)
        for quantizer in activation_quantizers(other).values():
            quantizer.hi.mul_(0.1)
        assert not torch.equal(other(IMAGES), wanted)
        assert torch.equal(student(IMAGES), wanted)
    again = quantize(made(unit), Recipe(4, 4), SHAPE).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(IMAGES), wanted)


@pytest.mark.parametrize("unit", SITES)
def test_forwards_in_several_threads_do_not_meet(unit):
    student = student_of_net(made(unit))
    images = torch.randn(4, *SHAPE)
    wanted = student(images)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: student(images), range(40))]
    assert all(torch.equal(own, wanted) for own in found)


def test_an_exception_leaves_no_mode_and_no_count():
    student = student_of_net(made(Functions))
    wanted, conv2 = student(IMAGES), student.unit1.conv2
    student.unit1.conv2 = Apply(lambda x: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            student(IMAGES)
        assert modes() == 0
    student.unit1.conv2 = conv2
    assert torch.equal(student(IMAGES), wanted)


def test_an_exception_that_the_network_catches_is_its_own_matter():
    class Trying(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.failing = wrapped(), Apply(lambda x: F.relu(x) + torch.zeros(3, 1, 1))

        def forward(self, x):
            x = self.body(x)
            try:
                x = self.failing(x)
            except RuntimeError:
                x = F.relu(x)
            return x.relu()

    student = student_of_net(frozen(Trying()))
    assert [name.split(".")[-1] for name in activation_quantizers(student)] == [
        "relu/0",  # of the module that fails
        "relu/0",
        "relu/1",
    ]
    student(IMAGES)
    assert modes() == 0


def test_a_student_runs_within_the_mode_of_another_and_within_another_module():
    student = student_of_net(made(Functions))
    wanted = student(IMAGES)

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Watching():
        assert torch.equal(student(IMAGES), wanted)
        assert modes() == 1
    assert torch.equal(nn.Sequential(nn.Identity(), student, nn.ReLU())(IMAGES), wanted.relu())


class Rounds(nn.Module):
    """A module that is called twice and calls a function each time; and one that calls in turn."""

    class Turns(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(x)
            return F.silu(x)

    def __init__(self):
        super().__init__()
        self.body, self.own = wrapped(), self.Turns(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.own(self.own(self.body(x)))


def test_a_module_that_is_called_again_goes_on_counting():
    student = student_of_net(frozen(Rounds()))
    names = [f"own.call_sites.silu/{index}" for index in (0, 1)]
    assert list(activation_quantizers(student)) == names
    assert in_order(student) == list(activation_quantizers(student).values())


def test_an_mlp_of_functions_has_no_second_quantizer_behind_the_first():
    class Block(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc1 = nn.Linear(8, 16)
            self.act = None if functional else nn.GELU()
            self.drop, self.fc2 = nn.Dropout(0.1), nn.Linear(16, 8)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = x.flatten(2)[:, :, :8]
            x = x + self.attention(x, x, x)[0]
            y = self.fc1(x)
            x = x + self.fc2(self.drop(self.act(y) if self.act else F.gelu(y)))
            return self.head(x.mean(1))

    found = []
    for functional in (False, True):
        torch.manual_seed(0)
        student = student_of_net(frozen(Block(functional)))
        found.append((len(activation_quantizers(student)), student(IMAGES)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_torchs_encoder_layer_calls_its_activation_as_a_function():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), layer, nn.Flatten(), nn.Linear(24, 5))
    student = student_of_net(frozen(model))
    assert "2.call_sites.relu/0" in activation_quantizers(student)
    assert student[2].linear2.input is None
    student(IMAGES)


@pytest.mark.parametrize("unit", SITES)
def test_onnx_runtime_computes_the_student(unit):
    student = student_of_net(made(unit)).requires_grad_(False)
    exported = onnx_ir.to_proto(to_onnx(student, SHAPE, {}))
    operators = [node.op_type for node in exported.graph.node]
    assert operators.count("QuantizeLinear") == 5
    torch.testing.assert_close(run(exported, IMAGES), student(IMAGES), rtol=1e-3, atol=1e-3)
    assert modes() == 0


# The activations of a forward, how many of them are sites, and the layers whose input is quantized.
VISION = {
    "resnet18": (32, 17, 8, 19),
    "googlenet": (64, 57, 57, 56),
    "densenet121": (32, 121, 1, 119),
    "mobilenet_v3_small": (32, 33, 0, 23),
    "inception_v3": (96, 94, 94, 84),
}


@pytest.mark.parametrize("name", VISION)
def test_torchvisions_networks_are_quantized_whole(name):
    size, activations, sites, inputs = VISION[name]
    shape = (3, size, size)
    torch.manual_seed(0)
    more = {} if name not in ("googlenet", "inception_v3") else {"init_weights": False}
    model = frozen(getattr(torchvision_models(), name)(weights=None, num_classes=5, **more))
    anatomy = examine(model, shape, counting=False)
    rows = [part.name for part in anatomy.of("activation") if part.calls]
    assert len(rows) == activations
    assert sum("/" in row for row in rows) == sites
    assert [part.input for part in anatomy.of("layer") if part.calls].count("quantized") == inputs
    student = student_of(Teacher(model, "", name, 5, shape, [0.0] * 3, [1.0] * 3), Recipe(4, 4))
    quantizers = activation_quantizers(student)
    called = [n for n in quantizers if not n.startswith(("aux", "AuxLogits"))]
    assert len(called) == activations
    images = torch.randn(2, *shape, generator=generator_for(0))
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    assert student(images).shape == (2, 5)


def test_resnet18_of_torchvision_is_the_one_with_a_module_for_each_call():
    torch.manual_seed(0)
    model = frozen(torchvision_models().resnet18(weights=None, num_classes=5))
    found = []
    for apart in (False, True):
        net = copy.deepcopy(model)
        if apart:
            for block in [m for m in net.modules() if type(m).__name__ == "BasicBlock"]:
                block.more = nn.ReLU(inplace=True)
                block.forward = _forward_of(block)
        student = quantize(net, Recipe(3, 3), SHAPE).eval()
        calibrate(student, [IMAGES], Calibration(range_estimator="minmax"))
        found.append([student(IMAGES), [(q.lo, q.hi) for q in in_order(student)]])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def _forward_of(block):
    def forward(x):
        y = block.relu(block.bn1(block.conv1(x)))
        y = block.bn2(block.conv2(y))
        return block.more(y + (x if block.downsample is None else block.downsample(x)))

    return forward


def test_blocks_of_a_plain_network_of_functions_are_those_that_give_activations():
    class Cell(nn.Module):
        def __init__(self, given):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(given, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            return F.relu(self.bn(self.conv(x)), inplace=True)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell1, self.cell2 = Cell(3), Cell(4)
            self.conv, self.output = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x):
            x = torch.relu(self.conv(self.cell2(self.cell1(x))))
            return self.output(F.relu(x.mean((2, 3))))

    assert residual_units(Plain().eval(), SHAPE) == ["cell1", "cell2", "conv"]


def test_the_reference_network_has_no_site():
    assert "/" not in "".join(
        activation_quantizers(
            quantize(build("resnet20_cifar10", 10, 3, 32), Recipe(4, 4), (3, 32, 32))
        )
    )
