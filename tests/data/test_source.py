"""Reading by index: resizing, threads, bounds; and the errors of `datasets`."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segjax.data import datasets
from segjax.errors import UserError


@pytest.fixture
def data_dir(tiny_camvid, tmp_path):
    datasets.prepare("camvid", data_dir=tmp_path / "data", source=tiny_camvid)
    return tmp_path / "data"


@pytest.mark.parametrize("resolution", [(96, 128), (45, 61), (360, 480), (400, 500)])
def test_resizing_keeps_dtype_and_label_values(resolution, data_dir):
    stored = datasets.open_split("camvid", "train", data_dir=data_dir)[0]
    source = datasets.open_split("camvid", "train", data_dir=data_dir, resolution=resolution)
    example = source[0]
    assert example["image"].shape == (*resolution, 3)
    assert example["label"].shape == resolution
    assert example["image"].dtype == example["label"].dtype == np.uint8
    assert set(np.unique(example["label"])) == set(np.unique(stored["label"]))
    info = datasets.info("camvid", data_dir=data_dir, resolution=resolution)
    assert info.resolution == resolution


def test_labels_take_the_nearest_pixel_and_images_the_average(data_dir):
    stored = datasets.open_split("camvid", "train", data_dir=data_dir)[0]
    small = datasets.open_split("camvid", "train", data_dir=data_dir, resolution=(9, 12))[0]
    # The labels are constant on cells of 40x40, so that each cell's own value must come out.
    np.testing.assert_array_equal(small["label"], stored["label"][20::40, 20::40])
    # Antialiasing keeps the mean of an image; picking pixels does not, and neither does a
    # bilinear filter two pixels wide.
    thin = datasets.open_split("camvid", "train", data_dir=data_dir, resolution=(5, 5))[0]
    np.testing.assert_allclose(thin["image"].mean(), stored["image"].mean(), rtol=0.03)


def test_native_resolution_is_not_resampled(data_dir):
    stored = datasets.open_split("camvid", "test", data_dir=data_dir)[1]
    same = datasets.open_split("camvid", "test", data_dir=data_dir, resolution=(360, 480))[1]
    np.testing.assert_array_equal(same["image"], stored["image"])


def test_threads_read_what_one_reader_reads(data_dir):
    source = datasets.open_split("camvid", "train", data_dir=data_dir)
    alone = [source[i] for i in range(len(source))]
    fresh = datasets.open_split("camvid", "train", data_dir=data_dir)
    indices = [0, 1] * 12
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fresh.__getitem__, indices))
    for index, example in zip(indices, together, strict=True):
        assert example["id"] == alone[index]["id"]
        np.testing.assert_array_equal(example["image"], alone[index]["image"])
        np.testing.assert_array_equal(example["label"], alone[index]["label"])


def test_indices_are_those_of_a_sequence(data_dir):
    source = datasets.open_split("camvid", "test", data_dir=data_dir)
    assert source[-1]["id"] == source[len(source) - 1]["id"] == "d_4"
    assert [example["id"] for example in source] == ["e_5", "d_4"]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"name": "cityscapes", "split": "train"}, "'cityscapes', expected one of camvid, folder"),
        ({"name": "camvid", "split": "trainval"}, "'trainval', only train, val, test"),
        (
            {"name": "camvid", "split": "val", "resolution": (96,)},
            "(96,), expected (height",
        ),
        ({"name": "camvid", "split": "val", "resolution": (0, 128)}, "(0, 128)"),
        ({"name": "camvid", "split": "val", "resolution": (96.0, 128)}, "(96.0, 128)"),
    ],
)
def test_errors_are_one_line(arguments, found, data_dir):
    with pytest.raises(UserError) as refused:
        datasets.open_split(data_dir=data_dir, **arguments)
    assert found in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_dataset_is_named(data_dir):
    (data_dir / "camvid" / "1.0.0" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="lost files: delete it"):
        datasets.info("camvid", data_dir=data_dir)


def test_building_is_quiet_and_needs_no_tensorflow(tmp_path):
    program = """
import sys
from segjax.data import datasets
datasets.streetscenes.SPLITS = {"train": range(2), "val": range(2, 3), "test": range(3, 4)}
source = datasets.open_split("streetscenes", "val", data_dir=sys.argv[1], resolution=(24, 32))
assert source[0]["image"].shape == (24, 32, 3)
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
