"""Reading by index: resizing, threads, bounds; and the errors of `datasets`."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from segjax.cli import main
from segjax.data import datasets, loader
from segjax.errors import UserError
from support.errors import refusal


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
        ({"name": "camvid", "split": "val", "resolution": (96,)}, "(96,), expected (height"),
        ({"name": "camvid", "split": "val", "resolution": (0, 128)}, "(0, 128)"),
        ({"name": "camvid", "split": "val", "resolution": (96.0, 128)}, "(96.0, 128)"),
    ],
)
def test_errors_are_one_line(arguments, found, data_dir):
    assert found in refusal(datasets.open_split, data_dir=data_dir, **arguments)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


SHARD = "camvid-{}.array_record-00000-of-00001"
FILES = (
    "metadata.json",
    "dataset_info.json",
    "features.json",
    *map(SHARD.format, ("train", "test")),
)


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_with_the_remedy(data_dir, file, damage, capsys):
    folder = data_dir / "camvid" / "1.0.0"
    damage(folder / file)
    said = (
        f"{folder / file} is {'missing' if damage == Path.unlink else 'damaged'}: delete {folder} "
        f"and prepare it again with segjax data camvid --source DIR --data-dir {data_dir}"
    )
    for call in (datasets.info, datasets.prepare, partial(datasets.open_split, split="val")):
        assert refusal(call, "camvid", data_dir=data_dir) == said
    assert main.main(["data", "camvid", "--data-dir", str(data_dir)]) == 2
    assert capsys.readouterr().err == f"segjax: {said}\n"


@pytest.mark.parametrize("content", ["{}", '{"train": {}}', "[]", "null"])
def test_metadata_of_another_kind_is_named(data_dir, content):
    path = data_dir / "camvid" / "1.0.0" / "metadata.json"
    path.write_text(content)
    said = refusal(datasets.info, "camvid", data_dir=data_dir)
    assert "metadata.json is damaged: delete" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_images", 2), ("pixel_counts", [9] * 11), ("mean", [0.1] * 3), ("digest", "0" * 64)],
)
def test_a_number_changed_in_metadata_is_noticed(data_dir, name, value):
    path = data_dir / "camvid" / "1.0.0" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["val"][name] = value
    path.write_text(json.dumps(metadata))
    for call in (datasets.info, datasets.prepare, partial(datasets.open_split, split="train")):
        assert f"{path} is damaged: delete" in refusal(call, "camvid", data_dir=data_dir)


def test_a_count_that_is_not_that_of_the_metadata_is_noticed(data_dir):
    """In a dataset prepared before there were checksums."""
    folder = data_dir / "camvid" / "1.0.0"
    metadata = json.loads((folder / "metadata.json").read_text())
    for split in metadata.values():
        del split["checksum"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert datasets.info("camvid", data_dir=data_dir).splits["val"].num_images == 1
    for wrong in (2, "1", None, [1]):
        metadata["val"]["num_images"] = wrong
        (folder / "metadata.json").write_text(json.dumps(metadata))
        assert "is damaged" in refusal(datasets.info, "camvid", data_dir=data_dir)


def test_a_dataset_without_splits_is_named(data_dir):
    path = data_dir / "camvid" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    for splits in ([], info["splits"][1:]):
        path.write_text(json.dumps(info | {"splits": splits}))
        said = refusal(datasets.info, "camvid", data_dir=data_dir)
        assert "dataset_info.json is damaged: delete" in said


def test_what_is_prepared_on_first_use_is_to_be_deleted(scenes_data_dir, tmp_path):
    data_dir = shutil.copytree(scenes_data_dir, tmp_path / "data")
    folder = data_dir / "streetscenes" / "24x32" / "1.0.0"
    empty(folder / "dataset_info.json")
    place = {"data_dir": data_dir, "resolution": (24, 32)}
    assert refusal(datasets.open_split, "streetscenes", "val", **place) == (
        f"{folder / 'dataset_info.json'} is damaged: delete {folder}, and the next run prepares it "
        "again"
    )


def test_the_remedy_is_quoted_for_a_shell(data_dir, tmp_path):
    place = data_dir.rename(tmp_path / "a [b]")
    empty(place / "camvid" / "1.0.0" / "metadata.json")
    said = refusal(datasets.info, "camvid", data_dir=place)
    assert said.endswith(f"with segjax data camvid --source DIR --data-dir '{place}'")


def test_a_flipped_bit_is_noticed_when_it_is_read(scenes_data_dir, tmp_path):
    data_dir = shutil.copytree(scenes_data_dir, tmp_path / "data")
    folder = data_dir / "streetscenes" / "24x32" / "1.0.0"
    path = folder / "streetscenes-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    source = datasets.open_split("streetscenes", "train", data_dir=data_dir, resolution=(24, 32))
    for read in (list, lambda source: source.names):
        said = refusal(read, source)
        assert said.startswith(f"{path} is damaged, at example ")
        assert said.endswith(f": delete {folder}, and the next run prepares it again")
    with pytest.raises(UserError, match=f"{path} is damaged, at example "):
        list(loader.stream(source, 0, 5, 0, 2))


def test_names_are_read_without_the_images(data_dir):
    source = datasets.open_split("camvid", "test", data_dir=data_dir)
    assert source.names == ["e_5", "d_4"]
    assert source.digest == datasets.info("camvid", data_dir=data_dir).splits["test"].digest


def test_folders_whose_names_look_like_patterns(tiny_camvid, tmp_path):
    data_dir = tmp_path / "a [x] *?" / "back\\slash"
    for _ in range(2):
        datasets.prepare("camvid", data_dir=data_dir, source=tiny_camvid)
        assert len(list(datasets.open_split("camvid", "test", data_dir=data_dir))) == 2


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
