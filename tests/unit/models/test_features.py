"""Which layers are aligned: found by what they do, in networks of several zoos and of one's own."""

import copy

import pytest
import torch
from torch import nn
from vision import torchvision_models

from synq.config.finetune import Finetune
from synq.errors import ModelError
from synq.finetuning.objective import Objective
from synq.models.build import build
from synq.models.features import cam_layer, feature_blocks, fitted_parts, residual_units
from synq.models.hooks import recorded


def units(stages, end):
    """Names of pytorchcv's units: the number of them in each stage, and what each ends with."""
    return [
        f"features.stage{stage}.unit{unit}.{end}"
        for stage, count in enumerate(stages, 1)
        for unit in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("architecture", "size", "wanted"),
    [
        ("resnet20_cifar10", 32, units([3, 3, 3], "body")),
        ("resnet18", 224, units([2, 2, 2, 2], "body")),
        # The branch ends behind its gate.
        ("sepreresnet20_cifar10", 32, units([3, 3, 3], "se")),
        ("mobilenet_w1", 224, units([1, 2, 2, 6, 2], "pw_conv.bn")),
        (
            "bn_vgg11b",
            224,
            [f"features.stage{s}.unit{1 + (s > 2)}.bn" for s in range(1, 6)],
        ),
    ],
)
def test_the_layers_of_pytorchcvs_networks(architecture, size, wanted):
    assert feature_blocks(build(architecture, 10, 3, size), (3, size, size)) == wanted


def test_every_linear_bottleneck_is_aligned_whether_it_is_residual_or_not():
    found = feature_blocks(build("mobilenetv2_w1", 10, 3, 224), (3, 224, 224))
    # conv3 has no activation: its BatchNorm's output is its own.
    bare = [name.removesuffix(".bn") for name in found]
    assert bare == units([1, 2, 3, 7, 4], "conv3")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet18", [f"layer{layer}.{block}.bn2" for layer in range(1, 5) for block in (0, 1)]),
        (
            "mobilenet_v2",
            [
                "features.1.conv.2",
                *(
                    f"features.{block}.conv" + ".3" * (block in (2, 4, 7, 11, 14, 17))
                    for block in range(2, 18)
                ),
            ],
        ),
    ],
)
def test_the_layers_of_torchvisions_networks(name, wanted):
    model = torchvision_models().get_model(name, weights=None).eval()
    assert feature_blocks(model, (3, 64, 64)) == wanted


class Unit(nn.Module):
    """A residual unit whose projection runs after its branch, and whose sum is in place."""

    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)),
            *(nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1)),
        )
        self.short = nn.Conv2d(channels, channels, 1)

    def forward(self, images):
        out = self.branch(images)
        out += self.short(images)
        return out.relu_()


def test_the_branch_is_the_deeper_of_the_two():
    model = nn.Sequential(Unit(3), Unit(3)).eval()
    assert feature_blocks(model, (3, 8, 8)) == ["0.branch", "1.branch"]


def test_finding_them_leaves_no_hook():
    model = build("resnet20_cifar10", 10, 3, 32)
    feature_blocks(model, (3, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_transformer_and_a_network_without_any_are_refused():
    attends = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    attends.attention = nn.MultiheadAttention(4, 1)
    for model in (attends, nn.Sequential(nn.Conv2d(3, 3, 1))):
        with pytest.raises(ModelError, match="feature_weight: 0"):
            feature_blocks(model.eval(), (3, 8, 8))


def test_a_record_holds_the_output_before_it_is_altered_in_place():
    torch.manual_seed(0)
    model, images = nn.Sequential(Unit(3), nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 8, 8)
    alone = copy.deepcopy(model[0].branch)
    with torch.no_grad():
        with recorded({"branch": model[0].branch}, apart=True) as record:
            after = model(images)
        torch.testing.assert_close(record["branch"], alone(images))
        torch.testing.assert_close(after, model(images))


def step_of(in_place):
    """The losses of a step on a map whose layer an activation follows directly."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.BatchNorm2d(3), Unit(3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=in_place)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        ).eval()

    teacher, student = network().requires_grad_(False), network()
    with torch.no_grad():
        student[1].branch[3].weight += 0.1
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    settings = Finetune(feature_weight=1.0, hard_labels="all")
    with Objective(teacher, student, settings, (3, 8, 8)) as objective:
        return objective.backward(images, labels)


def test_a_step_has_the_same_losses_with_activations_in_place():
    plain, altering = step_of(False), step_of(True)
    assert min(plain["cam"], plain["features"]) > 0
    torch.testing.assert_close(altering, plain)


def test_residual_units_are_the_modules_that_add():
    model = build("resnet20_cifar10", 10, 3, 32)
    units = [f"features.stage{stage}.unit{unit}" for stage in (1, 2, 3) for unit in (1, 2, 3)]
    assert residual_units(model, (3, 32, 32)) == units
    assert not any(module._forward_hooks for module in model.modules())


def test_without_sums_the_activations_stand_for_blocks():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten()),
        *(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
    )
    assert residual_units(model, (3, 6, 6)) == ["1", "3"]


def test_a_sum_outside_of_all_modules_is_no_unit():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, images):
            return self.act(self.first(images) + self.second(images)).mean((2, 3))

    assert residual_units(Bare(), (3, 6, 6)) == ["act"]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ModelError, match=r"finetune\.block_weight: 0"):
        residual_units(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("architecture", "size", "wanted"),
    [
        ("resnet20_cifar10", 32, units([3, 3, 3], "")),
        # Those with a stride have no sum, and are of the same class.
        ("mobilenetv2_w1", 224, [*units([1, 2, 3, 7, 4], ""), "features.final_block"]),
    ],
)
def test_the_parts_that_are_fitted_are_units_and_single_layers(architecture, size, wanted):
    found = fitted_parts(build(architecture, 10, 3, size), (3, size, size))
    middle = [name.removesuffix(".") for name in wanted]
    assert found == ["features.init_block", *middle, "output"]


def test_a_network_without_units_is_fitted_layer_by_layer():
    model = torchvision_models().get_model("vgg11", weights=None).eval()
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert fitted_parts(model, (3, 224, 224)) == layers
    assert not any(module._forward_hooks for module in model.modules())


def test_a_unit_that_holds_units_is_divided_and_an_attention_is_left_out():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(Unit(4), Unit(4))

        def forward(self, x):
            return self.inner(x) + x

    assert fitted_parts(nn.Sequential(Outer(), nn.Conv2d(4, 4, 1)), (4, 8, 8)) == [
        "0.inner.0",
        "0.inner.1",
        "1",
    ]
    model = torchvision_models().VisionTransformer(32, 8, 1, 2, 16, 32).eval()
    found = fitted_parts(model, (3, 32, 32))
    assert found[0] == "conv_proj"
    assert found[-1] == "heads"
    assert not [name for name in found if "attention" in name]


def test_a_layer_that_is_called_again_or_sees_parts_of_images_is_no_part():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.again, self.windows = nn.Conv2d(3, 3, 1), nn.Linear(8, 8)

        def forward(self, x):
            x = self.again(self.again(x))
            return self.windows(x.flatten(0, 2)).sum().expand(len(x), 2)

    with pytest.raises(ModelError, match="reconstruct: off"):
        fitted_parts(Windows(), (3, 8, 8))


class _Auxiliary(nn.Module):
    """A head beside the logits, which is called after them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Conv2d(8, 4, 1)
        self.beside = None

    def forward(self, images):
        features = self.body(images)
        logits = self.head(features.mean((2, 3)))
        self.beside = self.auxiliary(features)
        return logits


def test_the_map_is_of_a_layer_that_the_logits_come_from():
    assert cam_layer(_Auxiliary().eval().requires_grad_(False), (3, 16, 16)) == "body.0"
