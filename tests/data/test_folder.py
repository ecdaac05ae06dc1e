"""Folders of images and masks: pairs, splits, classes and every coding of a mask."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.cli.main import main
from segjax.data import datasets, folder
from segjax.inference import check
from support.errors import refusal
from support.folders import make_folder

# CamVid's own colors (label_colors.txt); Void is black.
CAMVID = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}
BINARY = {"Background": 0, "Cell": 255}
LABEL = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)


def write_classes(path, content):
    (path / "classes.json").write_text(json.dumps(content), encoding="utf-8")
    return folder.read_classes(path)


def write_pair(path, name, label=LABEL, image_suffix=".jpg", mask_name=None):
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True, exist_ok=True)
    image = np.full((*label.shape, 3), 128, np.uint8)
    Image.fromarray(image).save(path / "images" / f"{name}{image_suffix}")
    Image.fromarray(255 * label).save(path / "masks" / f"{mask_name or name}.png")


def test_masks_of_0_and_255_are_two_classes(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    write_pair(tmp_path, "a")
    label = folder.read_label(tmp_path / "masks" / "a.png", classes)
    np.testing.assert_array_equal(label, LABEL, strict=True)
    assert classes.names == ("Background", "Cell")
    assert len(set(classes.palette)) == 2


def test_camvids_colors(tmp_path):
    classes = write_classes(tmp_path, {"classes": CAMVID, "void": [[0, 0, 0]], "mask_suffix": "_L"})
    rng = np.random.default_rng(0)
    label = rng.integers(0, len(CAMVID) + 1, (20, 30)).astype(np.uint8)
    colors = np.array([*CAMVID.values(), (0, 0, 0)], np.uint8)
    expected = np.where(label == len(CAMVID), 255, label).astype(np.uint8)
    pixels = Image.fromarray(colors[label])
    modes = {"rgb": pixels, "rgba": pixels.convert("RGBA"), "palette": Image.fromarray(label)}
    modes["palette"].putpalette(colors.tobytes())
    assert modes["palette"].mode == "P"
    for name, mask in modes.items():
        for suffix in (".png", ".tif", ".webp"):
            if (name, suffix) == ("palette", ".webp"):
                continue
            path = tmp_path / f"{name}{suffix}"
            mask.save(path, **({"lossless": True} if suffix == ".webp" else {}))
            np.testing.assert_array_equal(folder.read_label(path, classes), expected, strict=True)
    assert classes.palette == tuple(CAMVID.values())


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "1", "RGB"])
def test_every_mode_of_integers(tmp_path, mode):
    values = {"A": 0, "B": 1} if mode == "1" else {"A": 7, "B": 12}
    classes = write_classes(tmp_path, values)
    stored = np.array(list(values.values()))[LABEL]
    if mode == "P":
        mask = Image.fromarray(stored.astype(np.uint8))
        mask.putpalette(bytes(range(256)) * 3)
    elif mode == "RGB":
        mask = Image.fromarray(stored.astype(np.uint8)).convert("RGB")
    elif mode == "1":
        mask = Image.fromarray(stored.astype(bool))
    else:
        dtype = {"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]
        mask = Image.fromarray(stored.astype(dtype))
    assert mask.mode == mode
    path = tmp_path / "mask.tif"
    mask.save(path)
    np.testing.assert_array_equal(folder.read_label(path, classes), LABEL, strict=True)


def test_16_bit_values_are_not_clipped(tmp_path):
    classes = write_classes(tmp_path, {"A": 300, "B": 44})  # 300 is 44 in eight bits
    Image.fromarray(np.array([[300, 44]], np.uint16)).save(tmp_path / "mask.png")
    found = folder.read_label(tmp_path / "mask.png", classes)
    np.testing.assert_array_equal(found, np.array([[0, 1]], np.uint8), strict=True)


def test_a_stray_value_is_named_with_its_place(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    values = np.array([[0, 255, 3], [3, 255, 0]], np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    said = refusal(folder.read_label, tmp_path / "mask.png", classes)
    assert said == (
        f"{tmp_path / 'mask.png'}: 2 pixels, the first at row 0, column 2, have the value 3, "
        "which classes.json does not declare"
    )
    classes = write_classes(tmp_path, {"classes": BINARY, "void": [3]})
    found = folder.read_label(tmp_path / "mask.png", classes)
    np.testing.assert_array_equal(found, [[0, 1, 255], [255, 1, 0]])


def test_a_stray_color_is_named(tmp_path):
    classes = write_classes(tmp_path, {"Road": [128, 64, 128]})
    Image.fromarray(np.array([[[128, 64, 128], [1, 2, 3]]], np.uint8)).save(tmp_path / "mask.png")
    assert "value (1, 2, 3)" in refusal(folder.read_label, tmp_path / "mask.png", classes)


def test_masks_that_have_no_such_values_are_refused(tmp_path):
    integers = write_classes(tmp_path, BINARY)
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(path)
    assert "mode RGB in colors" in refusal(folder.read_label, path, integers)
    colored = write_classes(tmp_path, {"Road": [0, 0, 0]})
    Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(path)
    assert "transparent" in refusal(folder.read_label, path, colored)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    assert "mode L, expected RGB" in refusal(folder.read_label, path, colored)
    pages = [Image.fromarray(LABEL), Image.fromarray(LABEL)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    assert "2 pages" in refusal(folder.read_label, tmp_path / "mask.tif", integers)
    path.write_bytes(path.read_bytes()[:30])
    assert "cannot be read" in refusal(folder.read_label, path, integers)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "0 classes"),
        ([], "expected an object"),
        ({"A": -1}, "A is -1, expected an integer"),
        ({"A": True}, "A is True"),
        ({"A": 0.5}, "A is 0.5"),
        ({"A": [1, 2]}, "expected three integers"),
        ({"A": [1, 2, 256]}, "expected three integers"),
        ({"A": 0, "B": 0}, "B and A both have the value 0"),
        ({"classes": {"A": 0}, "void": [0]}, "void and A both"),
        ({"A": 0, "B": [0, 0, 0]}, "all integers or all RGB"),
        ({"classes": {"A": 0}, "colors": {"B": [0, 0, 0]}}, "'B', which is no class"),
        ({"classes": {"A": 0}, "void": 255}, "void is 255, expected a list"),
        ({"classes": {"A": 0}, "names": []}, "no field 'names'"),
        ({"classes": {"A": 0}, "share": {"val": 0.9, "test": 0.2}}, "parts of 1"),
        ({"classes": {"A": 0}, "share": {"valid": 0.9}}, "expected val, test and seed"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, content, said):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert said in refusal(folder.read_classes, tmp_path)


def test_a_class_that_is_there_twice_or_no_file(tmp_path):
    assert "does not exist" in refusal(folder.read_classes, tmp_path)
    (tmp_path / "classes.json").write_text('{"A": 0, "A": 1}')
    assert "'A' is there twice" in refusal(folder.read_classes, tmp_path)
    (tmp_path / "classes.json").write_text('{"A": ')
    assert "cannot be read" in refusal(folder.read_classes, tmp_path)


def test_splits_by_folders(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    for split, name in (("train", "b"), ("train", "a b"), ("val", "ü"), ("test", "D")):
        write_pair(tmp_path / split, name, image_suffix=".JPG")
    (tmp_path / "train" / "images" / "._a b.JPG").write_bytes(b"")  # of macOS
    (tmp_path / "train" / "images" / "notes.txt").write_text("")
    pairs = folder.find_pairs(tmp_path, classes)
    assert {split: [pair.name for pair in found] for split, found in pairs.items()} == {
        "train": ["a b", "b"],
        "val": ["ü"],
        "test": ["D"],
    }
    assert pairs["test"][0].mask == tmp_path / "test" / "masks" / "D.png"
    shutil.rmtree(tmp_path / "test")
    assert list(folder.find_pairs(tmp_path, classes)) == ["train", "val"]
    shutil.rmtree(tmp_path / "val")
    assert "val/images is not a folder" in refusal(folder.find_pairs, tmp_path, classes)


def test_splits_by_lists(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    for name in "abcd":
        write_pair(tmp_path, name)
    (tmp_path / "train.txt").write_text("c\na.jpg\n\n")
    (tmp_path / "val.txt").write_text("b\n")
    pairs = folder.find_pairs(tmp_path, classes)
    assert [pair.name for pair in pairs["train"]] == ["c", "a"]
    assert list(pairs) == ["train", "val"]
    for text, said in (
        ("b\nz\n", "names 1 images that are not there: z"),
        ("\n", "is empty"),
        ("b\nb\n", "names b twice"),
        ("a\n", "is in train and in val"),
    ):
        (tmp_path / "val.txt").write_text(text)
        assert said in refusal(folder.find_pairs, tmp_path, classes)
    lists = {"train.txt": "a\n", "val.txt": "c\n", "test.txt": "d\n"}
    for name in lists:
        for other, text in lists.items():
            (tmp_path / other).write_text(text)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        assert f"{name} cannot be read" in refusal(folder.find_pairs, tmp_path, classes)
        (tmp_path / name).rmdir()
    for other in ("train.txt", "val.txt"):  # not a folder whose images are shared out
        (tmp_path / other).unlink(missing_ok=True)
    (tmp_path / "test.txt").write_text("d\n")
    assert "train.txt cannot be read" in refusal(folder.find_pairs, tmp_path, classes)


def test_images_in_no_list_are_named(tmp_path, capsys):
    classes = write_classes(tmp_path, BINARY)
    for name in "abcd":
        write_pair(tmp_path, name)
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("c\n")
    unused = folder.find_unused(tmp_path, folder.find_pairs(tmp_path, classes))
    said = f"2 images are in no list: {', '.join(unused)}"
    assert [Path(name).stem for name in unused] == ["b", "d"]
    assert said in check.check(tmp_path)[1]
    capsys.readouterr()
    place = {"data_dir": tmp_path / "data", "folder": tmp_path, "resolution": (4, 4)}
    for _ in range(2):
        datasets.info("folder", **place)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "in no list" in line]
    assert line == f"segjax: warning: {tmp_path}: {said}"


def test_splits_by_a_seeded_share(tmp_path):
    names = [f"{k:02d}" for k in range(20)]
    for name in names:
        write_pair(tmp_path, name)
    found = []
    for seed in (0, 0, 1):
        share = {"val": 0.25, "test": 0.1, "seed": seed}
        classes = write_classes(tmp_path, {"classes": BINARY, "share": share})
        pairs = folder.find_pairs(tmp_path, classes)
        found.append({split: [pair.name for pair in of] for split, of in pairs.items()})
    assert found[0] == found[1] != found[2]
    assert {split: len(of) for split, of in found[0].items()} == {"train": 13, "val": 5, "test": 2}
    assert sorted(itertools.chain(*found[0].values())) == names
    assert all(of == sorted(of) for of in found[0].values())


def test_partners_that_are_missing_are_named(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    for name in "abcdefg":
        write_pair(tmp_path, name)
    for name in "abcdfg":
        (tmp_path / "masks" / f"{name}.png").unlink()
    said = refusal(folder.find_pairs, tmp_path, classes)
    assert "6 of 7 images" in said
    assert "f.jpg and 1 more" in said
    write_pair(tmp_path, "e", image_suffix=".png")
    assert "e.jpg have the same name" in refusal(folder.find_pairs, tmp_path, classes)


def test_a_suffix_of_the_masks(tmp_path):
    classes = write_classes(tmp_path, {"classes": BINARY, "mask_suffix": "_L"})
    for name in "abc":
        write_pair(tmp_path, name, mask_name=f"{name}_L")
    assert sum(map(len, folder.find_pairs(tmp_path, classes).values())) == 3
    write_pair(tmp_path, "d")
    assert "does not end with the mask_suffix" in refusal(folder.find_pairs, tmp_path, classes)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return make_folder(tmp_path / "my photos")


def train(folder, workdir, *more):
    arguments = ["--config", "experiments/folder.py:smoke", "--workdir", str(workdir)]
    return main(["train", *arguments, f"--config.data.folder={folder}", *more])


@pytest.mark.slow
def test_a_folder_is_trained_evaluated_and_predicted(photos, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train(photos, workdir) == 0
    row = json.loads((workdir / "result.json").read_text())
    assert (row["dataset"], row["class_names"]) == ("folder", ["Ground", "Disk"])
    # Resized from 40x56 to 24x32 by nearest neighbor, no pixel is lost.
    assert np.sum(row["confusion"]) == 4 * 24 * 32
    assert main(["evaluate", "--workdir", str(workdir), "--split", "val"]) == 0
    image = photos / "test" / "images" / "test 0.JPG"
    output = tmp_path / "out"
    assert main(["predict", str(image), "--workdir", str(workdir), "--output", str(output)]) == 0
    with Image.open(output / "test 0.png") as label:
        assert label.size == (56, 40)


def test_a_prepared_folder_holds_the_images_at_their_own_size(photos, tmp_path):
    write_pair(photos / "train", "large", np.zeros((60, 70), np.uint8), ".png")
    options = {"data_dir": tmp_path / "prepared", "folder": photos}
    info = datasets.info("folder", **options, resolution=(24, 32))
    assert {split: of.num_images for split, of in info.splits.items()} == {
        "train": 9,
        "val": 4,
        "test": 4,
    }
    source = datasets.open_split("folder", "train", **options)
    shapes = [source[k]["image"].shape for k in range(len(source))]
    assert shapes == [(60, 70, 3), *[(40, 56, 3)] * 8]
    assert source[0]["id"] == "large"
    np.testing.assert_array_equal(
        source[1]["label"],
        folder.read_label(photos / "train" / "masks" / "train 0.png", folder.read_classes(photos)),
    )
    assert datasets.shape("folder", photos) == (3, 2)


def test_a_changed_folder_is_prepared_again(photos, tmp_path):
    options = {"data_dir": tmp_path / "prepared", "folder": photos, "resolution": (24, 32)}
    before = datasets.info("folder", **options)
    assert datasets.info("folder", **options) == before
    write_pair(photos / "train", "new", np.ones((40, 56), np.uint8))
    after = datasets.info("folder", **options)
    assert after.splits["train"].num_images == 9
    assert after.splits["train"].pixel_counts[1] == before.splits["train"].pixel_counts[1] + 2240


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "classes.json").unlink(), "classes.json does not exist"),
        (lambda path: (path / "val" / "masks" / "val 1.png").unlink(), "1 of 4 images in"),
        (
            lambda path: Image.new("L", (56, 40), 9).save(path / "val" / "masks" / "val 1.png"),
            "have the value 9",
        ),
        (
            lambda path: Image.new("L", (40, 56)).save(path / "train" / "masks" / "train 1.png"),
            "is 40x56, its mask 56x40 pixels",
        ),
        (
            lambda path: (path / "train" / "images" / "train 1.JPG").write_bytes(b"\xff\xd8"),
            "cannot be read",
        ),
        (lambda path: shutil.rmtree(path / "test"), "test_split is 'test'"),
    ],
)
def test_a_bad_folder_is_refused_before_step_1(photos, tmp_path, capsys, spoil, said):
    spoil(photos)
    assert train(photos, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_class_without_a_training_pixel_is_said(photos, tmp_path, capsys):
    write_classes(photos, {"Ground": 0, "Disk": 255, "Bird": 7})
    datasets.info("folder", data_dir=tmp_path / "prepared", folder=photos, resolution=(24, 32))
    assert "no training pixel of Bird" in capsys.readouterr().err


def test_a_folder_and_its_dataset_belong_together(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path / "run")]
    assert main(["train", "--config", "experiments/folder.py:smoke", *arguments]) == 2
    assert "data.folder=DIR" in capsys.readouterr().err
    arguments += ["--config.data.folder=photos"]
    assert main(["train", "--config", "experiments/quickstart.py:smoke", *arguments]) == 2
    assert "data.folder=DIR" in capsys.readouterr().err


def test_a_folder_is_prepared_drawn_and_has_baselines_by_command(photos, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    command = ["data", "folder", "--source", str(photos)]
    assert main(command) == 2
    assert "images of folder have their own sizes" in capsys.readouterr().err
    assert not (tmp_path / "prepared").exists()
    assert main([*command, "--resolution", "24x32", "--sheet", str(sheet)]) == 0
    assert "train 8, val 4, test 4 images of 24x32" in capsys.readouterr().out
    assert sheet.is_file()
    floors = ["floors", "--dataset", "folder", "--resolution", "24x32"]
    assert main([*floors, "--folder", str(photos)]) == 0
    assert "all Ground" in capsys.readouterr().out
    assert main(floors) == 2
    assert "belong together" in capsys.readouterr().err


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    assert f"{tmp_path / 'none'} is not a folder" in refusal(folder.read_classes, tmp_path / "none")


@pytest.mark.slow
def test_data_that_change_under_a_run_are_refused(photos, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train(photos, workdir) == 0
    path = photos / "test" / "masks" / "test 0.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 255 - mask[0, 0]
    Image.fromarray(mask).save(path)
    said = "the test split of folder has changed since the run began: its digest is"
    assert main(["evaluate", "--workdir", str(workdir)]) == 2
    assert said in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(workdir), "--split", "val"]) == 0
    (workdir / "result.json").unlink()
    capsys.readouterr()
    assert train(photos, workdir) == 2
    assert said in capsys.readouterr().err
