"""Streetscenes as a dataset: sizes, splits, statistics, and preparation on first use."""

import numpy as np
import pytest

from segjax.data import datasets, streetscenes
from segjax.data.datasets import VOID
from segjax.data.streetscenes import scene
from segjax.errors import UserError

FEW = {"train": range(3), "val": range(3, 5), "test": range(5, 6)}


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(streetscenes, "SPLITS", FEW)


def test_splits_share_no_scene():
    indices = [index for split in streetscenes.SPLITS.values() for index in split]
    assert len(indices) == len(set(indices)) == 550
    assert {split: len(indices) for split, indices in streetscenes.SPLITS.items()} == {
        "train": 400,
        "val": 50,
        "test": 100,
    }


@pytest.mark.parametrize("resolution", [(24, 32), (45, 61)])
def test_the_dataset_is_drawn_at_its_size(resolution, few_scenes, tmp_path):
    height, width = resolution
    for split, indices in FEW.items():
        source = datasets.open_split(
            "streetscenes", split, data_dir=tmp_path, resolution=resolution
        )
        assert len(source) == len(indices)
        for position, index in enumerate(indices):
            image, label = scene.render(streetscenes.SEED, index, height, width)
            example = source[position]
            np.testing.assert_array_equal(example["image"], image)
            np.testing.assert_array_equal(example["label"], label)
            assert example["id"] == f"scene_{index:05d}"


def test_statistics_are_those_of_the_scenes(few_scenes, tmp_path):
    info = datasets.info("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    assert info.resolution == (24, 32)
    assert info.class_names == datasets.DATASETS["camvid"].CLASS_NAMES
    assert set(info.splits) == set(FEW)
    for split, indices in FEW.items():
        scenes = [scene.render(streetscenes.SEED, index, 24, 32) for index in indices]
        images = np.stack([image for image, _ in scenes]) / 255
        labels = np.stack([label for _, label in scenes])
        counts = info.splits[split]
        assert counts.num_images == len(indices)
        assert counts.pixel_counts == tuple((labels == k).sum() for k in range(11))
        assert counts.void_pixels == (labels == VOID).sum()
        present = [sum(24 * 32 for label in labels if (label == k).any()) for k in range(11)]
        assert counts.present_pixel_counts == tuple(present)
        np.testing.assert_allclose(counts.mean, images.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(counts.std, images.std((0, 1, 2)), rtol=1e-9)
    assert info.mean == info.splits["train"].mean


def test_sizes_coexist_and_are_drawn_once(few_scenes, tmp_path, monkeypatch):
    small = datasets.info("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    large = datasets.info("streetscenes", data_dir=tmp_path, resolution=(48, 64))
    assert large.splits["train"].num_images == small.splits["train"].num_images
    monkeypatch.setattr(scene, "render", None)
    assert datasets.prepare("streetscenes", data_dir=tmp_path, resolution=(24, 32)) == small
    assert datasets.info("streetscenes", data_dir=tmp_path, resolution=(48, 64)) == large


def test_the_default_size_is_96x128(few_scenes, tmp_path):
    assert datasets.info("streetscenes", data_dir=tmp_path).resolution == (96, 128)
    source = datasets.open_split("streetscenes", "test", data_dir=tmp_path)
    assert source[0]["image"].shape == (96, 128, 3)


def test_an_interrupted_build_leaves_nothing(few_scenes, tmp_path, monkeypatch):
    render = scene.render

    def stopped(seed, index, height, width):
        if index == 4:
            raise KeyboardInterrupt
        return render(seed, index, height, width)

    monkeypatch.setattr(scene, "render", stopped)
    with pytest.raises(KeyboardInterrupt):
        datasets.prepare("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    assert not list(tmp_path.rglob("*.array_record*"))
    monkeypatch.setattr(scene, "render", render)
    info = datasets.prepare("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    assert info.splits["val"].num_images == 2


def test_a_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="take no source"):
        datasets.prepare("streetscenes", data_dir=tmp_path, source=tmp_path)
