import pytest
import torch
from reference_values import Reference, student, teacher
from torch import nn

from synq.errors import ModelError
from synq.finetuning.saliency import activation_map
from synq.models.features import cam_layer
from synq.models.hooks import recorded

REFERENCE = Reference("step")
LAYER = "features.stage3.unit3.body.conv2.conv"


def saliency(model, kind):
    with recorded({"map": model.get_submodule(LAYER)}, transform=_graph) as record:
        logits = model(REFERENCE["images"])
    return activation_map(logits.amax(1), record["map"], (32, 32), kind), record["map"]


def _graph(output):
    return output if output.requires_grad else output.requires_grad_()


@pytest.mark.parametrize(("kind", "name"), [("gradcam", "gradcam"), ("gradcam++", "gradcampp")])
def test_maps_of_the_teacher_are_those_of_the_reference(kind, name):
    ours, _ = saliency(teacher(), kind)
    theirs = REFERENCE[f"w3a3/{name}_teacher"]
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("kind", "name"), [("gradcam", "gradcam"), ("gradcam++", "gradcampp")])
def test_maps_of_the_student_are_those_of_the_reference(kind, name, bits):
    ours, _ = saliency(student(REFERENCE, bits), kind)
    theirs = REFERENCE[f"w{bits}a{bits}/{name}_student"]
    tolerance = 1e-5 if bits < 8 else 1e-2  # at 8 bits single codes flip between torch versions
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=tolerance)


def test_map_is_between_0_and_1_and_reaches_both():
    ours, _ = saliency(teacher(), "gradcam")
    assert torch.allclose(ours.flatten(1).amin(1), torch.tensor(0.0))
    assert torch.allclose(ours.flatten(1).amax(1), torch.tensor(1.0))


def test_gradient_flows_through_the_activations_alone():
    model = student(REFERENCE, 4)
    ours, activations = saliency(model, "gradcam")
    (gradient,) = torch.autograd.grad(ours.square().sum(), activations, retain_graph=True)
    assert gradient.abs().sum() > 0
    output = model.get_submodule("output").weight
    assert torch.autograd.grad(ours.sum(), output, allow_unused=True) == (None,)


@pytest.mark.parametrize("kind", ["gradcam", "gradcam++"])
def test_the_gradient_of_a_map_is_that_of_finite_differences(kind):
    """Also through the weights of Grad-CAM++, where the tail is linear piece by piece."""
    torch.manual_seed(0)
    tail = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    activations = torch.rand(1, 6, 4, 4) + 0.5
    direction, weights = torch.randn(1, 6, 4, 4), torch.randn(1, 1, 8, 8)
    # Gradients of the size of the maps, so that alpha is not always a half.
    tail[3].weight.data.mul_(16)

    def value(moved):
        moved = moved.detach().requires_grad_()
        scores = tail(moved)[:, 1]
        return (activation_map(scores, moved, (8, 8), kind) * weights).sum(), moved

    result, moved = value(activations)
    (gradient,) = torch.autograd.grad(result, moved)
    step = 1e-3
    ends = [value(activations + sign * step * direction)[0] for sign in (1, -1)]
    wanted = float(ends[0] - ends[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(wanted, rel=0.02)


def test_a_map_that_is_zero_everywhere_stays_finite():
    activations = -torch.ones(2, 3, 4, 4, requires_grad=True)
    result = activation_map(activations.sum((1, 2, 3)), activations, (8, 8))
    (gradient,) = torch.autograd.grad(result.sum(), activations)
    assert torch.equal(result, torch.zeros(2, 1, 8, 8))
    assert torch.isfinite(gradient).all()


def test_layer_is_the_last_convolution_with_more_than_one_pixel():
    assert cam_layer(teacher(), (3, 32, 32)) == LAYER
    # A 1x1 classifier after the pooling, as in MobileNetV2.
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 7, 1)
    )
    assert cam_layer(model, (3, 8, 8)) == "1"


def test_a_convolution_that_gives_a_pair_of_maps_is_no_layer_for_a_map():
    class Pair(nn.Conv2d):
        def forward(self, input):
            output = super().forward(input)
            return output, output

    class Join(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    assert cam_layer(nn.Sequential(nn.Conv2d(3, 4, 3), Pair(4, 4, 3), Join()), (3, 8, 8)) == "0"


def test_a_model_without_a_spatial_map_is_refused():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match="cam: off"):
        cam_layer(model, (3, 8, 8))
