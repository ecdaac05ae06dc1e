"""Streetscenes as a dataset: sizes, splits, statistics, and preparation on first use."""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segjax import results
from segjax.data import datasets, streetscenes
from segjax.data.datasets import VOID
from segjax.data.streetscenes import scene
from segjax.errors import UserError
from segjax.system import locks
from support import ROOT

FEW = {"train": range(3), "val": range(3, 5), "test": range(5, 6)}


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(streetscenes, "SPLITS", FEW)


def test_splits_share_no_scene():
    indices = [index for split in streetscenes.SPLITS.values() for index in split]
    assert len(indices) == len(set(indices))
    sizes = {split: len(indices) for split, indices in streetscenes.SPLITS.items()}
    assert sizes == {"train": 400, "val": 50, "test": 100}


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
    assert info.class_names == datasets.DATASETS["camvid"].class_names
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


def test_what_a_killed_build_left_is_deleted(few_scenes, tmp_path):
    parent = tmp_path / "streetscenes" / "24x32"
    left = parent / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "streetscenes-train.array_record-00000-of-00001").write_bytes(b"half")
    with ThreadPoolExecutor() as pool:
        with locks.acquire(parent / ".lock"):  # of a build by a living process, its own folder
            built = pool.submit(
                datasets.prepare, "streetscenes", data_dir=tmp_path, resolution=(24, 32)
            )
            with pytest.raises(TimeoutError):
                built.result(timeout=1)
            assert left.exists()
        assert built.result().splits["val"].num_images == 2
    assert sorted(path.name for path in parent.iterdir()) == [".lock", "1.0.0"]


def test_digests_change_with_anything_in_an_example(few_scenes, tmp_path, monkeypatch):
    def digests(folder):
        info = datasets.info("streetscenes", data_dir=folder, resolution=(24, 32))
        return {split: counts.digest for split, counts in info.splits.items()}

    plain = digests(tmp_path / "plain")
    expected = {}
    for split, indices in FEW.items():
        whole = hashlib.sha256()
        for index in indices:
            image, label = scene.render(streetscenes.SEED, index, 24, 32)
            head = f"scene_{index:05d} (24, 32, 3) ".encode()
            whole.update(hashlib.sha256(head + image.tobytes() + label.tobytes()).digest())
        expected[split] = whole.hexdigest()
    assert plain == digests(tmp_path / "again") == expected

    render = scene.render

    def changed(seed, index, *size):
        image, label = render(seed, index, *size)
        image[0, 0, 0] ^= index == 1
        label[-1, -1] ^= index == 4
        return image, label

    monkeypatch.setattr(scene, "render", changed)
    other = digests(tmp_path / "changed")
    assert [other[split] == plain[split] for split in FEW] == [False, False, True]


def test_a_dataset_prepared_before_there_were_digests(few_scenes, tmp_path):
    prepared = datasets.info("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    path = tmp_path / "streetscenes" / "24x32" / "1.0.0" / "metadata.json"
    metadata = json.loads(path.read_text())
    for split in metadata.values():
        del split["digest"], split["checksum"]
    path.write_text(json.dumps(metadata))
    info = datasets.info("streetscenes", data_dir=tmp_path, resolution=(24, 32))
    source = datasets.open_split("streetscenes", "val", data_dir=tmp_path, resolution=(24, 32))
    assert info.splits["val"].digest == source.digest == ""
    assert dataclasses.replace(prepared.splits["val"], digest="") == info.splits["val"]


def test_a_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="takes no source"):
        datasets.prepare("streetscenes", data_dir=tmp_path, source=tmp_path)


@pytest.mark.slow
def test_the_scenes_of_the_committed_rows_are_still_drawn():
    row = results.read([ROOT / "experiments" / "results" / "quickstart.jsonl"])[0]
    counts = np.zeros(256, np.int64)
    for index in streetscenes.SPLITS["test"]:
        _, label = scene.render(streetscenes.SEED, index, 96, 128)
        counts += np.bincount(label.ravel(), minlength=256)
    np.testing.assert_array_equal(counts[:11], np.sum(row["confusion"], 1))
