import pytest
import torch

from synq.data.augment import crop_and_flip, jittered, random_jitter
from synq.runtime.process import generator_for


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(count=64, size=32):
    """Images whose pixel says where it is: rows in channel 0, columns in channel 1."""
    line = (torch.arange(size) + 0.5) / size
    return torch.stack([line[:, None].expand(size, size), line.expand(size, size)]).repeat(
        count, 1, 1, 1
    )


def test_nothing_to_do_gives_the_images_themselves():
    images = torch.randn(3, 3, 8, 8)
    assert crop_and_flip(images, generator(), crop_min=1.0, flip=0.0) is images


def test_flip_alone_mirrors_columns_and_nothing_else():
    images = torch.randn(200, 3, 8, 8)
    result = crop_and_flip(images, generator(), crop_min=1.0, flip=0.3)
    same = [bool(torch.allclose(a, b, atol=1e-5)) for a, b in zip(images, result, strict=True)]
    mirrored = [
        bool(torch.allclose(a.flip(2), b, atol=1e-5)) for a, b in zip(images, result, strict=True)
    ]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0.15 < sum(mirrored) / 200 < 0.45


@pytest.mark.parametrize("crop_min", [0.4, 0.8])
def test_crops_keep_the_share_and_aspect_that_they_say(crop_min):
    result = crop_and_flip(ramp(500), generator(), crop_min=crop_min, flip=0.0)
    # The slope of the ramp tells the share of each side that the crop kept.
    height = (result[:, 0, 24, 16] - result[:, 0, 8, 16]) * 2
    width = (result[:, 1, 16, 24] - result[:, 1, 16, 8]) * 2
    area, aspect = height * width, width / height
    assert area.min() > crop_min - 0.01
    assert area.max() < 1.001
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    assert area.std() > (1 - crop_min) / 8
    assert result.min() >= 0
    assert result.max() <= 1


def test_crops_lie_anywhere():
    result = crop_and_flip(ramp(500), generator(), crop_min=0.4, flip=0.0)
    centres = result[:, 0, 15:17, 15:17].mean((1, 2))
    assert centres.min() < 0.4
    assert centres.max() > 0.6
    assert float(centres.mean()) == pytest.approx(0.5, abs=0.02)


def test_same_generator_same_images():
    images = torch.randn(4, 3, 16, 16)
    one, other, third = (
        crop_and_flip(images, generator(seed), crop_min=0.5, flip=0.5) for seed in (1, 1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_gradient_reaches_the_images():
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    crop_and_flip(images, generator(), crop_min=0.9, flip=0.5).sum().backward()
    assert (images.grad > 0).float().mean() > 0.8


def test_jitter_changes_contrast_and_brightness_within_its_limits():
    images = torch.randn(500, 3, 8, 8, generator=generator_for(0))
    factors, offsets = random_jitter(500, 3, generator_for(1), 0.4)
    assert factors.shape == (500, 1, 1, 1)
    assert offsets.shape == (500, 3, 1, 1)
    assert 0.6 <= float(factors.min()) < 0.62
    assert 1.38 < float(factors.max()) <= 1.4
    assert 0.25 < float(offsets.abs().max()) <= 0.3
    seen = jittered(images, (factors, torch.zeros_like(offsets)))
    torch.testing.assert_close(seen.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=0, atol=1e-5)
    spread = seen.flatten(1).std(1) / images.flatten(1).std(1)
    torch.testing.assert_close(spread, factors.flatten(), rtol=1e-4, atol=0)
    assert random_jitter(5, 3, generator_for(1), 0.0) is None
