"""Draw synthetic images in rows: a row for each shard, the first image of each of its classes.

    python docs/make_images.py SHARD [SHARD ...] --output FILE.png

Images are enlarged to 64 px, each pixel as it is.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

SIDE, GAP = 64, 6  # px of an image as it is drawn


def row(path: Path) -> np.ndarray:
    """The images of a shard side by side, ``[H, W, 3]`` uint8, white between them."""
    with h5py.File(path) as file:
        labels, mean, std = file["labels"][:], file.attrs["mean"], file.attrs["std"]
        firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
        images = np.stack([file["images"][first] for first in firsts]).astype(np.float32)
    images = images * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1)
    drawn = np.full((SIDE, len(pixels) * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    for number, image in enumerate(pixels):
        enlarged = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        drawn[:, number * (SIDE + GAP) :][:, :SIDE] = enlarged
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path, nargs="+", metavar="SHARD")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    rows = [row(path) for path in args.shards]
    height = len(rows) * (SIDE + GAP) - GAP
    canvas = np.full((height, max(one.shape[1] for one in rows), 3), 255, np.uint8)
    for number, one in enumerate(rows):
        canvas[number * (SIDE + GAP) :][:SIDE, : one.shape[1]] = one
    Image.fromarray(canvas).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
