"""CamVid for the tests: a tiny folder in the published layout, and the real one where it is."""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax import datasets
from segjax.datasets import camvid

TINY = {"train": ["b_2", "a_1"], "val": ["c_3"], "test": ["e_5", "d_4"]}


def published_digest(folder: Path) -> str:
    """The digest of a published folder: name, shape and pixels of each file, ordered by path."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.png"), key=lambda p: p.relative_to(folder).as_posix()):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + str(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


@pytest.fixture
def tiny_camvid(tmp_path, monkeypatch):
    """A folder like the published one but for the number of its images; `camvid` is told so."""
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


@pytest.fixture(scope="session")
def camvid_data_dir(tmp_path_factory):
    """A data directory with the real CamVid prepared in it, once for all workers.

    The published folder is named by SEGJAX_CAMVID, or restored from the packed copy beside the
    checkout.
    """
    packed = Path(__file__).parents[3] / "shared" / "data"
    published = os.environ.get("SEGJAX_CAMVID")
    if published is None and not (packed / "camvid").is_dir():
        pytest.skip("no CamVid: SEGJAX_CAMVID is unset and there is none beside the checkout")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "camvid.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if published is None:
            published = shared / "camvid_published"
            if not (shared / "tfds" / "camvid").exists():
                script = packed / "unpack_camvid.py"
                subprocess.run([sys.executable, script, published], check=True, capture_output=True)
        datasets.prepare("camvid", data_dir=shared / "tfds", source=published)
    return shared / "tfds"
