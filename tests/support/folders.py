"""Folders of images and masks, as a user has them."""

import json

import numpy as np
from PIL import Image


def save_pair(folder, name, image, mask, suffix=".png", mask_suffix=".png"):
    """Save pixels as `images/NAME` and `masks/NAME` of a folder, as pictures or `.npy` arrays."""
    for kind, pixels, ending in (("images", image, suffix), ("masks", mask, mask_suffix)):
        path = folder / kind / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".npy":
            np.save(path, pixels)
        else:
            Image.fromarray(pixels).save(path)


def make_folder(path, numbers=(("train", 8), ("val", 4), ("test", 4)), size=(40, 56)):
    """Make a folder of photographs with a bright disk on noise, masks of 0 and 255."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for split, number in numbers:
        for k in range(number):
            y, x = rng.integers(10, size[0] - 10), rng.integers(10, size[1] - 10)
            disk = (rows - y) ** 2 + (columns - x) ** 2 < 64
            image = rng.integers(0, 120, (*size, 3)) + 120 * disk[..., None]
            mask = (255 * disk).astype(np.uint8)
            save_pair(path / split, f"{split} {k}", image.astype(np.uint8), mask, ".JPG")
    (path / "classes.json").write_text(json.dumps({"Ground": 0, "Disk": 255}))
    return path
