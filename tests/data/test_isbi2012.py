"""ISBI 2012: errors, stored examples, and the counts of the published slices."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets, isbi2012
from support.errors import refusal

TINY = {"train": range(2), "val": range(2, 3), "test": range(3, 4)}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder like the published one with fewer slices; `isbi2012` is patched to expect it."""
    rng = np.random.default_rng(0)
    folder, digest = tmp_path / "membrane", hashlib.sha256()
    for kind in ("image", "label"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(4):
        coarse = rng.integers(0, 256, (2, 16, 16), np.uint8)
        image, label = coarse.repeat(32, axis=1).repeat(32, axis=2)
        label = np.where(label > 60, np.uint8(255), np.uint8(0))
        Image.fromarray(image).save(folder / "train" / "image" / f"{number}.png")
        Image.fromarray(label).save(folder / "train" / "label" / f"{number}.png")
        digest.update(image.tobytes() + (label // 255).tobytes())
    monkeypatch.setattr(isbi2012, "SPLITS", TINY)
    monkeypatch.setattr(isbi2012, "PIXELS_SHA256", digest.hexdigest())
    return folder


def png(array):
    return lambda path: Image.fromarray(array).save(path)


DAMAGES = {
    "no image": ("image/2.png", lambda p: p.unlink(), "not found; expected the published folder"),
    "no label": ("label/3.png", lambda p: p.unlink(), "not found; expected the published folder"),
    "not an image": ("image/0.png", lambda p: p.write_text("<html>"), "not a PNG"),
    "truncated": ("label/1.png", lambda p: p.write_bytes(p.read_bytes()[:200]), "cannot be read"),
    "size": ("image/1.png", png(np.zeros((512, 256), np.uint8)), "256x512 pixels, expected 512x5"),
    "colored": ("image/1.png", png(np.zeros((512, 512, 3), np.uint8)), "RGB, expected L"),
    "label value": ("label/0.png", png(np.full((512, 512), 7, np.uint8)), "label value 7, expec"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_error_in_a_damaged_folder_names_the_file(damage, published, tmp_path):
    file, do_damage, found = DAMAGES[damage]
    do_damage(published / "train" / file)
    place = {"data_dir": tmp_path / "data"}
    message = refusal(datasets.prepare, "isbi2012", **place, source=published)
    assert str(published / "train" / file) in message
    assert found in message
    message = refusal(datasets.open_split, "isbi2012", "train", **place)
    assert "segjax data isbi2012 --source DIR" in message


def test_one_changed_pixel_is_refused(published, tmp_path):
    path = published / "train" / "image" / "3.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels.flat[77] ^= 1
    Image.fromarray(pixels).save(path)
    message = refusal(datasets.prepare, "isbi2012", data_dir=tmp_path / "data", source=published)
    assert "some pixels differ from the published files" in message


def test_without_a_source_the_error_says_where_to_get_it(tmp_path):
    message = refusal(datasets.prepare, "isbi2012", data_dir=tmp_path / "data")
    assert message.endswith("unet, then segjax data isbi2012 --source DIR")


def test_examples_are_the_published_pixels(published, tmp_path):
    info = datasets.prepare("isbi2012", data_dir=tmp_path / "data", source=published)
    assert (info.resolution, len(info.mean), len(info.std)) == ((512, 512), 1, 1)
    for split, numbers in TINY.items():
        source = datasets.open_split("isbi2012", split, data_dir=tmp_path / "data")
        examples = [source[i] for i in range(len(source))]
        assert [example["id"] for example in examples] == [f"slice_{n:02d}" for n in numbers]
        for number, example in zip(numbers, examples, strict=True):
            with Image.open(published / "train" / "image" / f"{number}.png") as image:
                np.testing.assert_array_equal(example["image"], np.array(image)[..., None])
            with Image.open(published / "train" / "label" / f"{number}.png") as image:
                np.testing.assert_array_equal(example["label"], np.array(image) == 255)
            assert example["image"].dtype == example["label"].dtype == np.uint8
        counts = info.splits[split]
        cells = sum(int(example["label"].sum()) for example in examples)
        assert counts.pixel_counts == (512 * 512 * len(numbers) - cells, cells)
        values = np.stack([example["image"] for example in examples]) / 255
        np.testing.assert_allclose(counts.mean, [values.mean()], rtol=1e-12)
        np.testing.assert_allclose(counts.std, [values.std()], rtol=1e-9)


def test_it_is_read_at_another_size(published, tmp_path):
    datasets.prepare("isbi2012", data_dir=tmp_path / "data", source=published)
    options = {"data_dir": tmp_path / "data", "resolution": (32, 16)}
    example = datasets.open_split("isbi2012", "test", **options)[0]
    assert (example["image"].shape, example["label"].shape) == ((32, 16, 1), (32, 16))
    assert datasets.info("isbi2012", **options).resolution == (32, 16)


def test_the_splits_are_blocks_and_the_last_six_slices_are_the_test():
    assert list(isbi2012.SPLITS["test"]) == [24, 25, 26, 27, 28, 29]
    slices = [number for split in ("train", "val", "test") for number in isbi2012.SPLITS[split]]
    assert slices == list(range(30))


def test_exact_counts_of_the_published_labels(isbi2012_data_dir):
    info = datasets.info("isbi2012", data_dir=isbi2012_data_dir)
    assert info.class_names == ("Membrane", "Cell")
    counts = np.array([info.splits[split].pixel_counts for split in ("train", "val", "test")])
    assert counts.sum() == 30 * 512 * 512
    np.testing.assert_allclose(counts.sum(0)[0] / counts.sum(), 0.2196, atol=5e-5)
    assert counts.tolist() == [[1200085, 4042795], [218160, 830416], [309005, 1263859]]
    assert [info.splits[s].num_images for s in ("train", "val", "test")] == [20, 4, 6]
