"""A tiny folder in the layout of the published CamVid."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.data import camvid

TINY = {"train": ["b_2", "a_1"], "val": ["c_3"], "test": ["e_5", "d_4"]}


def published_digest(folder: Path) -> str:
    """Hash a published folder: name, shape and pixels of each file, ordered by path."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.png"), key=lambda p: p.relative_to(folder).as_posix()):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + str(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


@pytest.fixture
def tiny_camvid(tmp_path, monkeypatch):
    """A folder like the published one with fewer images; `camvid` is patched to expect it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "CamVid"
    for split, names in TINY.items():
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
        lines = []
        for name in names:
            coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
            image = coarse.repeat(40, axis=0).repeat(40, axis=1)
            label = rng.integers(0, 12, (9, 12), np.uint8).repeat(40, axis=0).repeat(40, axis=1)
            Image.fromarray(image).save(folder / split / f"{name}.png")
            Image.fromarray(label).save(folder / f"{split}annot" / f"{name}.png")
            paths = (f"/SegNet/CamVid/{part}/{name}.png" for part in (split, f"{split}annot"))
            lines.append(" ".join(paths) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    monkeypatch.setattr(camvid, "SPLITS", {split: len(names) for split, names in TINY.items()})
    monkeypatch.setattr(camvid, "PIXELS_SHA256", published_digest(folder))
    return folder
