"""Images of one network's input as another takes them."""

import torch

from synq.data.refit import refitted

MEAN, STD = [0.2, 0.4], [0.5, 0.25]


def test_normalisation_is_undone_and_done_anew():
    pixels = torch.rand(3, 2, 6, 6) * 3 - 1  # beyond [0, 1] too
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    made = refitted(images, MEAN, STD, [0.5, 0.1], [0.2, 2.0], 6)
    wanted = (pixels - torch.tensor([[[0.5]], [[0.1]]])) / torch.tensor([[[0.2]], [[2.0]]])
    torch.testing.assert_close(made, wanted)


def test_what_fits_is_given_back_as_it_is():
    images = torch.randn(2, 2, 5, 5)
    assert refitted(images, MEAN, STD, MEAN, STD, 5) is images


def test_a_smaller_image_has_the_mean_of_what_it_covers():
    images = torch.zeros(1, 1, 8, 8)
    images[..., ::2] = 1  # stripes that only a low-pass takes to their mean
    made = refitted(images, [0.0], [1.0], [0.0], [1.0], 4)
    assert made.shape == (1, 1, 4, 4)
    assert (made[..., 1:-1] - 0.5).abs().max() < 0.2


def test_a_larger_image_keeps_an_even_one_even():
    made = refitted(torch.full((1, 1, 4, 4), 0.3), [0.0], [1.0], [0.3], [1.0], 9)
    torch.testing.assert_close(made, torch.zeros(1, 1, 9, 9))
