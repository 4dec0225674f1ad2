import math

import pytest
import torch
from reference_values import Reference

from synq.data.lowpass import blur_transfer, cutoff_bins, lowpass, transfer_function

REFERENCE = Reference("lowpass")


@pytest.mark.parametrize("size", ["32x32", "33x48"])
@pytest.mark.parametrize("cutoff", [5, 20, 80])
def test_filter_is_that_of_the_reference(size, cutoff):
    images = REFERENCE[f"{size}_input"]
    ours = lowpass(images, transfer_function(*images.shape[-2:], (cutoff, cutoff)))
    torch.testing.assert_close(ours, REFERENCE[f"{size}_d{cutoff}"], rtol=1e-6, atol=2e-6)


def test_the_papers_cutoff_is_a_blur_of_045_pixels_at_224():
    assert cutoff_bins(224, 0.45) == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize("sigma", [1.2, 2.0])
def test_filter_is_a_gaussian_blur_of_that_many_pixels(sigma):
    impulse = torch.zeros(1, 1, 32, 48)
    impulse[0, 0, 16, 24] = 1
    blurred = lowpass(impulse, blur_transfer(32, 48, sigma))[0, 0]
    steps = torch.arange(-8.0, 9.0)
    expected = torch.exp(-steps.square() / (2 * sigma**2)) / math.sqrt(2 * math.pi) / sigma
    for line in (blurred[:, 24] / blurred[16, 24], blurred[16] / blurred[16, 24]):
        middle = int(line.argmax())
        ours = line[middle - 8 : middle + 9] * expected[8]
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)


def test_mean_stays_and_noise_shrinks():
    noise = torch.randn(2, 3, 32, 32)
    filtered = lowpass(noise, blur_transfer(32, 32, 1.0))
    torch.testing.assert_close(filtered.mean((2, 3)), noise.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert filtered.std() < 0.5 * noise.std()
