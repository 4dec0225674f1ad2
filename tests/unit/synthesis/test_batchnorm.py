import copy

import pytest
import torch
from reference_values import teacher
from torch import nn

from synq.models.build import frozen
from synq.models.hooks import recorded
from synq.models.structure import batchnorms
from synq.runtime import process
from synq.runtime.process import autocast, generator_for
from synq.synthesis.batchnorm import Statistician

SHAPE = (3, 32, 32)


class ActivatedNorm(nn.BatchNorm2d):
    """A BatchNorm layer that does more than normalise, as timm's."""

    def forward(self, x):
        return super().forward(x).relu() + x.mean()


def network(norm, **settings):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), norm(4, **settings), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in (model[1], model[3]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return frozen(model.double())


def by_autograd(model, images):
    """The same three things as torch makes them, by hooks."""
    with recorded(batchnorms(model), inputs=True) as record:
        logits = model(images)
    moments = [torch.var_mean(x, dim=(0, 2, 3), correction=0) for x in record.values()]
    return logits, [mean for _, mean in moments], [variance for variance, _ in moments]


def gradient(outcome, images):
    """Of a sum with other weights for each number."""
    logits, means, variances = outcome
    torch.manual_seed(1)
    parts = [(tensor * torch.randn_like(tensor)).sum() for tensor in (logits, *means, *variances)]
    return torch.autograd.grad(torch.stack(parts).sum(), images)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("norm", "settings"),
    [(nn.BatchNorm2d, {}), (nn.BatchNorm2d, {"affine": False}), (ActivatedNorm, {})],
)
@pytest.mark.parametrize("offset", [0, 100])
def test_logits_moments_and_their_gradient_are_torchs(norm, settings, layout, offset):
    model = network(norm, **settings).to(memory_format=layout)
    images = torch.randn(6, 3, 5, 7, dtype=torch.float64, generator=generator_for(0)) + offset
    images.requires_grad_()
    logits, batch = Statistician(model, (3, 5, 7))(images)
    ours, wanted = (logits, batch.means, batch.variances), by_autograd(model, images)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(gradient(ours, images), gradient(wanted, images))


def test_gradients_keep_the_channels_last():
    model = network(nn.BatchNorm2d).to(memory_format=torch.channels_last)
    reader = Statistician(model[1:4], (4, 8, 8))
    maps = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    logits, batch = reader(maps)
    (found,) = torch.autograd.grad(logits.sum() + batch.variances[0].sum(), maps)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_moments_stay_in_float32_where_the_network_runs_in_bfloat16(monkeypatch):
    monkeypatch.setattr(process, "has_bfloat16", lambda device: True)  # emulated where it is not
    reader = Statistician(teacher(), SHAPE)
    images = torch.randn(4, *SHAPE, generator=generator_for(0)).requires_grad_()
    _, exact = reader(images)
    with autocast(images.device, "bfloat16"):
        logits, batch = reader(images)
    assert {tensor.dtype for part in batch for tensor in part} == {torch.float32}
    for part, other in zip(batch, exact, strict=True):
        for one, wanted in zip(part, other, strict=True):
            torch.testing.assert_close(one, wanted, rtol=0.05, atol=0.05)
    loss = logits.float().square().sum() + torch.stack([v.sum() for v in batch.variances]).sum()
    (found,) = torch.autograd.grad(loss, images)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_the_teacher_is_left_as_it_was_and_its_parameters_are_shared():
    model = copy.deepcopy(teacher())
    images = torch.randn(2, *SHAPE, generator=generator_for(0))
    before = model(images)
    reader = Statistician(model, SHAPE)
    assert all("forward" not in vars(layer) for layer in model.modules())
    assert torch.equal(model(images), before)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert own == {parameter.data_ptr() for parameter in reader._network.parameters()}
