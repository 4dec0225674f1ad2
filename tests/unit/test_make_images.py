"""docs/make_images.py draws the first image of each class, as it was before mean and std."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from documents import ROOT
from PIL import Image


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_has_the_first_image_of_each_class(tmp_path, channels):
    shard, drawn = tmp_path / "shard.h5", tmp_path / "drawn.png"
    mean, std = np.full(channels, 0.5), np.full(channels, 0.25)
    grey = np.array([0.2, 0.9, 0.6])  # of the second one of class 3, and the first ones of 3 and 7
    labels = np.array([3, 3, 7])
    values = (grey[[1, 0, 2], None, None, None] - 0.5) / 0.25
    with h5py.File(shard, "w") as file:
        file["images"] = np.broadcast_to(values, (3, channels, 8, 8)).astype(np.float16)
        file["labels"] = labels
        file.attrs["mean"], file.attrs["std"] = mean, std
    script = [sys.executable, str(ROOT / "docs/make_images.py"), str(shard), str(shard)]
    subprocess.run([*script, "--output", str(drawn)], check=True)
    pixels = np.asarray(Image.open(drawn))
    assert pixels.shape == (134, 134, 3)  # two rows of two images of 64 px, and 6 px between
    corners = pixels[[0, 0, 133], [0, 133, 0], :].astype(float) / 255
    assert np.abs(corners - np.array([0.9, 0.6, 0.9])[:, None]).max() < 0.01
    assert (pixels[66] == 255).all()
