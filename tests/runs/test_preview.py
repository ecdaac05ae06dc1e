"""Test `segjax preview`, the picture of augmented training images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.cli.main import main
from segjax.data import pictures
from segjax.runs.preview import preview
from support.runs import tiny_config

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def drawn(monkeypatch):
    """Return the rows and titles that `preview` passes to `pictures.grid`."""
    seen = {}

    def grid(rows, titles, **_):
        seen.update(rows=rows, titles=titles)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(pictures, "grid", grid)
    return seen


def test_preview_shows_augmented_images_with_weights(scenes_data_dir, drawn):
    config = tiny_config(
        scenes_data_dir,
        augment__scale=(1.0, 1.0),
        augment__elastic=2.0,
        augment__outside="mirror",
        loss__border_weight=10.0,
    )
    preview(config, 3)
    assert drawn["titles"] == [
        *("image", "label", "weight", "augmented image", "augmented label", "augmented weight"),
    ]
    assert len(drawn["rows"]) == 3
    for row in drawn["rows"]:
        assert [(cell.shape, cell.dtype) for cell in row] == [((24, 32, 3), np.uint8)] * 6
        assert not np.array_equal(row[0], row[3])
        assert not np.array_equal(row[2], row[5])
    assert max(row[2].max() for row in drawn["rows"]) == 255


def test_images_without_augmentation_are_unchanged(scenes_data_dir, drawn):
    plain = {f"augment__{name}": 0.0 for name in ("brightness", "contrast")}
    config = tiny_config(scenes_data_dir, augment__scale=(1.0, 1.0), augment__flip=False, **plain)
    preview(config, 99)
    assert len(drawn["rows"]) == 10
    for image, label, augmented, augmented_label in drawn["rows"]:
        np.testing.assert_array_equal(image, augmented)
        np.testing.assert_array_equal(label, augmented_label)
    assert config.data.normalization == "mean_std"


def test_command_writes_picture(isbi2012_data_dir, tmp_path):
    path = tmp_path / "preview.png"
    config = f"{EXPERIMENTS}/unet_isbi.py:smoke"
    data = f"--config.data.data_dir={isbi2012_data_dir}"
    assert main(["preview", "--config", config, "--output", str(path), "--count", "2", data]) == 0
    with Image.open(path) as picture:
        assert picture.width > 6 * 240
