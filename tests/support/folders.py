"""Folders of images and masks, as a user has them."""

import json

import numpy as np
from PIL import Image


def make_folder(path, numbers=(("train", 8), ("val", 4), ("test", 4)), size=(40, 56)):
    """Make a folder of photographs with a bright disk on noise, masks of 0 and 255."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for split, number in numbers:
        for kind in ("images", "masks"):
            (path / split / kind).mkdir(parents=True)
        for k in range(number):
            y, x = rng.integers(10, size[0] - 10), rng.integers(10, size[1] - 10)
            disk = (rows - y) ** 2 + (columns - x) ** 2 < 64
            image = rng.integers(0, 120, (*size, 3)) + 120 * disk[..., None]
            Image.fromarray(image.astype(np.uint8)).save(
                path / split / "images" / f"{split} {k}.JPG"
            )
            mask = Image.fromarray((255 * disk).astype(np.uint8))
            mask.save(path / split / "masks" / f"{split} {k}.png")
    (path / "classes.json").write_text(json.dumps({"Ground": 0, "Disk": 255}))
    return path
