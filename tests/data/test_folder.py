"""Folders of images and masks: pairs, splits, classes and every coding of a mask."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.cli.main import main
from segjax.data import camvid, datasets, folder, isbi2012
from segjax.inference import check
from support.errors import refusal
from support.folders import make_folder, save_pair
from support.runs import TINY

CAMVID = dict(zip(camvid.CLASS_NAMES, camvid.PALETTE, strict=True))
BINARY = {"Background": 0, "Cell": 255}
LABEL = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)


def write_classes(path, content):
    (path / "classes.json").write_text(json.dumps(content), encoding="utf-8")
    return folder.read_classes(path)


def write_pair(path, name, label=LABEL, suffix=".jpg"):
    save_pair(path, name, np.full((*label.shape, 3), 128, np.uint8), 255 * label, suffix)


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
    dtype = {"1": bool, "I;16": np.uint16, "I": np.int32}.get(mode, np.uint8)
    mask = Image.fromarray(stored.astype(dtype))
    if mode == "P":
        mask.putpalette(bytes(range(256)) * 3)
    elif mode == "RGB":
        mask = mask.convert("RGB")
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
        f"{tmp_path / 'mask.png'}: 2 pixels, the first at row 0, column 2, with the value 3, "
        "which classes.json does not declare: add it to the classes or to void"
    )
    classes = write_classes(tmp_path, {"classes": BINARY, "void": [3]})
    found = folder.read_label(tmp_path / "mask.png", classes)
    np.testing.assert_array_equal(found, [[0, 1, 255], [255, 1, 0]])


def test_a_stray_color_is_named(tmp_path):
    classes = write_classes(tmp_path, {"Road": [128, 64, 128]})
    Image.fromarray(np.array([[[128, 64, 128], [1, 2, 3]]], np.uint8)).save(tmp_path / "mask.png")
    assert "value (1, 2, 3)" in refusal(folder.read_label, tmp_path / "mask.png", classes)


def test_a_transparent_mask_is_refused(tmp_path):
    classes = write_classes(tmp_path, {"Road": [0, 0, 0]})
    Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(tmp_path / "mask.png")
    assert "transparent" in refusal(folder.read_label, tmp_path / "mask.png", classes)


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
        ({"classes": {"A": 0}, "void": [0]}, "void and A both"),
        ({"A": 0, "B": [0, 0, 0]}, "all integers or all RGB"),
        ({"classes": {"A": 0}, "colors": {"B": [0, 0, 0]}}, "'B', which is no class"),
        ({"classes": {"A": 0}, "void": 255}, "void is 255, expected a list"),
        ({"classes": {"A": 0}, "share": {"val": 0.9, "test": 0.2}}, "parts of 1"),
        ({"classes": {"A": 0}, "share": {"valid": 0.9}}, "expected val, test and seed"),
        ({"classes": {"A": 0}, "share": {"seed": -1}}, "the seed of share is -1"),
        ({"classes": {"A": 0}, "share": {"seed": 1.5}}, "the seed of share is 1.5"),
        ({"": 0, "A": 1}, "a class without a name"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, content, said):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert said in refusal(folder.read_classes, tmp_path)


def test_a_class_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('{"A": 0, "A": 1}')
    assert "'A' is there twice" in refusal(folder.read_classes, tmp_path)


def test_splits_by_folders(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    for split, name in (("train", "b"), ("train", "a b"), ("val", "ü"), ("test", "D")):
        write_pair(tmp_path / split, name, suffix=".JPG")
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
    said = f"2 images in no list: {', '.join(unused)}"
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
    shares = folder.find_pairs(tmp_path, write_classes(tmp_path, BINARY))
    assert {split: len(of) for split, of in shares.items()} == {"train": 14, "val": 3, "test": 3}


def test_partners_that_are_missing_are_named(tmp_path):
    classes = write_classes(tmp_path, BINARY)
    for name in "abcdefg":
        write_pair(tmp_path, name)
    for name in "abcdfg":
        (tmp_path / "masks" / f"{name}.png").unlink()
    said = refusal(folder.find_pairs, tmp_path, classes)
    assert "6 of 7 images" in said
    assert "f.jpg and 1 more" in said


def test_a_suffix_of_the_masks(tmp_path):
    classes = write_classes(tmp_path, {"classes": BINARY, "mask_suffix": "_L"})
    for name in "abc":
        write_pair(tmp_path, name)
        (tmp_path / "masks" / f"{name}.png").rename(tmp_path / "masks" / f"{name}_L.png")
    assert sum(map(len, folder.find_pairs(tmp_path, classes).values())) == 3
    write_pair(tmp_path, "d")
    assert "does not end with the mask_suffix" in refusal(folder.find_pairs, tmp_path, classes)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return make_folder(tmp_path / "my photos")


def train(folder, workdir, *more):
    arguments = ["--config", TINY, "--workdir", str(workdir), "--config.data.dataset=folder"]
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
    sizes = {split: of.num_images for split, of in info.splits.items()}
    assert sizes == {"train": 9, "val": 4, "test": 4}
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


def void_masks(path):
    write_classes(path, {"classes": {"Ground": 0, "Disk": 255}, "void": [7]})
    for mask in (path / "val" / "masks").iterdir():
        Image.new("L", (56, 40), 7).save(mask)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "classes.json").unlink(), "classes.json does not exist"),
        (
            lambda path: Image.new("L", (56, 40), 9).save(path / "val" / "masks" / "val 1.png"),
            "with the value 9",
        ),
        (lambda path: shutil.rmtree(path / "test"), "test_split is 'test'"),
        (void_masks, "the val split of folder has no pixel of any class, its labels are all void"),
    ],
)
def test_a_bad_folder_is_refused_before_step_1(photos, tmp_path, capsys, spoil, said):
    spoil(photos)
    assert train(photos, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def image_of(path, pixels, name="train 1.tif", **options):
    """Replace the image `train 1` by other pixels, in a file of any kind."""
    (path / "train" / "images" / "train 1.JPG").unlink()
    save(path / "train" / "images" / name, pixels, **options)


def mask_of(path, pixels, suffix=".png", **options):
    """Replace the mask of the image `train 1`."""
    (path / "train" / "masks" / "train 1.png").unlink()
    save(path / "train" / "masks" / f"train 1{suffix}", pixels, **options)


def save(path, pixels, **options):
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        picture.save(path, **options)


def as_lists(path, train, val):
    """Turn the folder into one of lists, with these lines."""
    for kind in ("images", "masks"):
        (path / "train" / kind).rename(path / kind)
    shutil.rmtree(path / "train")
    (path / "train.txt").write_text(train)
    (path / "val.txt").write_text(val)


def sideways(path):
    photograph = Image.new("RGB", (56, 40))
    exif = photograph.getexif()
    exif[0x0112] = 6
    image_of(path, photograph, "train 1.jpg", exif=exif)


SHAPE = (40, 56)
GRAY = np.zeros(SHAPE, np.uint8)
RGB = np.zeros((*SHAPE, 3), np.uint8)
RAMP = np.broadcast_to(np.arange(56, dtype=np.uint8), SHAPE)

# What is wrong, and the file, the value and the remedy that the line about it has.
WRONG = {
    "no classes.json": (
        lambda path: (path / "classes.json").unlink(),
        ("classes.json", "does not exist", 'such as {"Background": 0, "Cell": 255}'),
    ),
    "classes.json is no JSON": (
        lambda path: (path / "classes.json").write_text("{Ground: 0}"),
        ("classes.json", "line 1 column 2", "expected JSON such as"),
    ),
    "a name for a value": (
        lambda path: (path / "classes.json").write_text('{"Ground": "black"}'),
        ("classes.json", "Ground is 'black'", "expected an integer from 0 to 65535 or an RGB"),
    ),
    "one value twice": (
        lambda path: (path / "classes.json").write_text('{"Ground": 0, "Disk": 0}'),
        ("classes.json", "Disk and Ground", "both have the value 0"),
    ),
    "a field that there is not": (
        lambda path: (path / "classes.json").write_text('{"classes": {"A": 0}, "ignore": []}'),
        ("classes.json", "'ignore'", "it has classes, void, colors"),
    ),
    "an image without a mask": (
        lambda path: (path / "val" / "masks" / "val 1.png").unlink(),
        ("val 1.JPG", "1 of 4 images", "add or rename them, or take the images out"),
    ),
    "a mask without an image": (
        lambda path: (path / "val" / "images" / "val 1.JPG").unlink(),
        ("val 1.png", "1 of 4 masks", "add or rename them, or take the masks out"),
    ),
    "two images of one name": (
        lambda path: Image.new("RGB", (56, 40)).save(path / "val" / "images" / "val 1.png"),
        ("val 1.png", "val 1.JPG have the same name", "expected one of them"),
    ),
    "no folder of validation": (
        lambda path: shutil.rmtree(path / "val"),
        ("val/images", "is not a folder", "expected pictures in it"),
    ),
    "a folder without pictures": (
        lambda path: [file.unlink() for file in (path / "test" / "images").iterdir()],
        ("test/images", "has no pictures", "such as a.png or a.jpg"),
    ),
    "a folder that is named like a picture": (
        lambda path: (path / "test" / "images" / "more.png").mkdir(),
        ("more.png", "is no file", "expected a picture; remove it"),
    ),
    "a link to nothing": (
        lambda path: (path / "test" / "images" / "more.png").symlink_to("gone.png"),
        ("more.png", "is no file", "expected a picture; remove it"),
    ),
    "an empty file": (
        lambda path: (path / "train" / "images" / "train 1.JPG").write_bytes(b""),
        ("train 1.JPG", "cannot be read", "it is damaged or none of"),
    ),
    "half a JPEG": (
        lambda path: (path / "train" / "images" / "train 1.JPG").write_bytes(
            (path / "train" / "images" / "train 2.JPG").read_bytes()[:700]
        ),
        ("train 1.JPG", "cannot be read", "truncated"),
    ),
    "text with the suffix of a picture": (
        lambda path: (path / "train" / "images" / "train 1.JPG").write_text("an image"),
        ("train 1.JPG", "cannot be read", "none of AVIF, BMP"),
    ),
    "CMYK": (
        lambda path: image_of(path, Image.new("CMYK", (56, 40))),
        ("train 1.tif", "color space CMYK", "expected RGB or gray of 8 bits; convert it first"),
    ),
    "floating-point values": (
        lambda path: image_of(path, GRAY.astype(np.float32)),
        ("train 1.tif", "floating-point values", "expected RGB or gray of 8 bits; convert it"),
    ),
    "12 bits in 16": (
        lambda path: image_of(path, GRAY.astype(np.uint16) + 4000),
        ("train 1.tif", "greatest value is 4000", "scale it first"),
    ),
    "a transparent image": (
        lambda path: image_of(path, Image.new("RGBA", (56, 40)), "train 1.png"),
        ("train 1.png", "transparent pixels", "lay it on a background color first"),
    ),
    "an image of two pages": (
        lambda path: image_of(path, RGB, save_all=True, append_images=[Image.fromarray(RGB)]),
        ("train 1.tif", "has 2 pages, expected one", "save each page as a file of its own"),
    ),
    "an array of floats": (
        lambda path: image_of(path, np.zeros((*SHAPE, 3)), "train 1.npy"),
        ("train 1.npy", "dtype float64", "expected uint8 (H, W, 3)"),
    ),
    "an array of other channels": (
        lambda path: image_of(path, np.zeros((*SHAPE, 5), np.uint8), "train 1.npy"),
        ("train 1.npy", "shape (40, 56, 5)", "expected uint8 (H, W, 3)"),
    ),
    "an array of objects": (
        lambda path: image_of(path, np.array([{}]), "train 1.npy"),
        ("train 1.npy", "cannot be read", "allow_pickle=False"),
    ),
    "pictures for five channels": (
        lambda path: write_classes(path, {"classes": BINARY, "channels": 5}),
        ("train 0.JPG", "is not an array", "expected uint8 (H, W, 5) in a .npy file"),
    ),
    "a photograph that is shown upright, its mask not": (
        sideways,
        ("train 1.jpg", "is 56x40, its mask 40x56", "upright by its EXIF orientation"),
    ),
    "a mask of another size": (
        lambda path: mask_of(path, GRAY[:20]),
        ("train 1.JPG", "is 40x56, its mask 20x56", "expected equal sizes"),
    ),
    "an undeclared value": (
        lambda path: mask_of(path, GRAY + np.uint8(9)),
        ("train 1.png", "2240 pixels, the first at row 0, column 0, with the value 9", "to void"),
    ),
    "soft borders": (
        lambda path: mask_of(path, RAMP),
        ("train 1.png", "with the value 1, and 54 more such values", "add it to the classes or"),
    ),
    "a mask as JPEG": (
        lambda path: mask_of(path, 5 * RAMP, ".jpg", quality=30),
        ("train 1.jpg", "with the value", "save the mask as PNG, as JPEG changes values"),
    ),
    "a mask in colors": (
        lambda path: mask_of(path, RGB + np.array([1, 2, 3], np.uint8)),
        ("train 1.png", "is of mode RGB", "or RGB triples in classes.json"),
    ),
    "a gray mask for classes in colors": (
        lambda path: write_classes(path, {"Ground": [0, 0, 0], "Disk": [9, 9, 9]}),
        ("train 0.png", "is of mode L", "expected RGB or a palette"),
    ),
    "a mask of floating-point values": (
        lambda path: mask_of(path, GRAY.astype(np.float32), ".tif"),
        ("train 1.tif", "is of mode F", "expected gray values or the indices of a palette"),
    ),
    "a mask of two pages": (
        lambda path: mask_of(
            path, GRAY, ".tif", save_all=True, append_images=[Image.fromarray(GRAY)]
        ),
        ("train 1.tif", "has 2 pages", "expected one; save each as a file"),
    ),
    "half a mask": (
        lambda path: (path / "train" / "masks" / "train 1.png").write_bytes(
            (path / "train" / "masks" / "train 2.png").read_bytes()[:80]
        ),
        ("train 1.png", "cannot be read", "make it again"),
    ),
    "a mask array of floats": (
        lambda path: mask_of(path, np.zeros(SHAPE), ".npy"),
        ("train 1.npy", "dtype float64", "expected integers (H, W)"),
    ),
    "negative values": (
        lambda path: mask_of(path, np.zeros(SHAPE, int) - 1, ".npy"),
        ("train 1.npy", "with the value -1", "add it to the classes or to void"),
    ),
    "a list that names what is not there": (
        lambda path: as_lists(path, "train 0\n", "train 9\n"),
        ("val.txt", "names 1 missing image: train 9", "names of files in images"),
    ),
    "a list that names an image twice": (
        lambda path: as_lists(path, "train 0\ntrain 0.JPG\n", "train 1\n"),
        ("train.txt", "names train 0 twice", "expected each name once"),
    ),
    "an empty list": (
        lambda path: as_lists(path, "train 0\n", "\n"),
        ("val.txt", "is empty", "expected a name a line"),
    ),
    "an image of two splits": (
        lambda path: as_lists(path, "train 0\n", "train 0\n"),
        ("train 0.JPG", "is in train and in val", "expected in one of them"),
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_with_file_value_and_remedy(photos, kind):
    spoil, (file, value, remedy) = WRONG[kind]
    spoil(photos)
    said = refusal(datasets.info, "folder", folder=photos, resolution=(24, 32))
    for part in (file, value, remedy):
        assert part in said, said


SIZES = ((48, 64), (75, 50), (61, 93))


def coded(label, coding):
    """Return a label of two classes as a mask of a coding."""
    if coding == "0 and 255":
        return Image.fromarray(255 * label)
    if coding == "RGB":
        return Image.fromarray(np.array([[128, 64, 128], [64, 0, 128]], np.uint8)[label])
    mask = Image.fromarray(label + np.uint8(3))
    mask.putpalette(bytes(range(256)) * 3)
    return mask


@pytest.mark.parametrize(
    ("coding", "values"),
    [("0 and 255", (0, 255)), ("RGB", ([128, 64, 128], [64, 0, 128])), ("P", (3, 4))],
)
def test_photographs_of_three_sizes_and_every_coding(tmp_path, coding, values):
    write_classes(tmp_path, dict(zip(("Ground", "Disk"), values, strict=True)))
    rng = np.random.default_rng(0)
    expected = {}
    for split in ("train", "val", "test"):
        expected[split] = [rng.integers(0, 2, size).astype(np.uint8) for size in SIZES]
        for k, label in enumerate(expected[split]):
            image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
            save_pair(tmp_path / split, k, image, label, ".jpeg")
            coded(label, coding).save(tmp_path / split / "masks" / f"{k}.png")
    place = {"data_dir": tmp_path / "data", "folder": tmp_path}
    info = datasets.info("folder", **place, resolution=(24, 32))
    for split, labels in expected.items():
        source = datasets.open_split("folder", split, **place)
        for k, label in enumerate(labels):
            np.testing.assert_array_equal(source[k]["label"], label, strict=True)
            with Image.open(tmp_path / split / "images" / f"{k}.jpeg") as image:
                np.testing.assert_array_equal(source[k]["image"], np.asarray(image), strict=True)
        counts = np.bincount(np.concatenate([label.ravel() for label in labels]))
        assert info.splits[split].pixel_counts == tuple(counts.tolist())
        fitted = datasets.open_split("folder", split, **place, resolution=(24, 32))
        assert {fitted[k]["image"].shape for k in range(3)} == {(24, 32, 3)}


def test_a_folder_of_five_channels(tmp_path):
    write_classes(tmp_path, {"classes": {"A": 0, "B": 7}, "channels": 5})
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val"):
        arrays[split] = rng.integers(0, 256, (9, 11, 5), np.uint8)
        mask = np.where(arrays[split][..., 0] > 99, 7, 0)
        save_pair(tmp_path / split, "a", arrays[split], mask, ".npy", ".npy")
    place = {"data_dir": tmp_path / "data", "folder": tmp_path}
    for split, array in arrays.items():
        example = datasets.open_split("folder", split, **place)[0]
        np.testing.assert_array_equal(example["image"], array, strict=True)
        np.testing.assert_array_equal(example["label"], array[..., 0] > 99)
    info = datasets.info("folder", **place, resolution=(4, 4))
    np.testing.assert_allclose(info.mean, arrays["train"].mean((0, 1)) / 255, rtol=1e-12)
    assert datasets.shape("folder", tmp_path) == (5, 2)


@pytest.mark.slow
def test_images_of_five_channels_are_trained_and_predicted(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    photos = make_folder(tmp_path / "photos")
    content = {"classes": json.loads((photos / "classes.json").read_text()), "channels": 5}
    (photos / "classes.json").write_text(json.dumps(content))
    for path in list(photos.glob("*/images/*.JPG")):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[..., :2]], -1))
        path.unlink()
    workdir, output = tmp_path / "run", tmp_path / "out"
    assert train(photos, workdir, "--config.augment.saturation=0.2") == 0
    images_of = str(photos / "test" / "images")
    assert main(["predict", images_of, "--workdir", str(workdir), "--output", str(output)]) == 0
    with Image.open(output / "test 0_overlay.png") as overlay:
        assert overlay.size == (56, 40)
    assert main(["data", "check", str(photos)]) == 0


def link_camvid(published, folder):
    """Arrange the published CamVid as a folder with lists; images and masks are linked."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    values = {name: label for label, name in enumerate(camvid.CLASS_NAMES)}
    write_classes(folder, {"classes": values, "void": [camvid.PUBLISHED_VOID]})
    for split, names in camvid.read_pairs(published).items():
        (folder / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            (folder / "images" / name).symlink_to(published.absolute() / split / name)
            (folder / "masks" / name).symlink_to(published.absolute() / f"{split}annot" / name)


@pytest.mark.slow
def test_the_published_camvid_as_a_folder_is_the_dataset_camvid(camvid_data_dir, tmp_path):
    folder = tmp_path / "camvid"
    link_camvid(Path(os.environ["SEGJAX_CAMVID"]), folder)
    place = {"data_dir": tmp_path / "data", "folder": folder, "resolution": (24, 32)}
    ours = datasets.info("folder", **place)
    theirs = datasets.info("camvid", data_dir=camvid_data_dir, resolution=(24, 32))
    assert ours.splits == theirs.splits  # counts, mean, deviation, and the digest of all pixels
    assert ours.class_names == theirs.class_names

    for split in ours.splits:
        found = datasets.open_split("folder", split, **place)
        expected = datasets.open_split(
            "camvid", split, data_dir=camvid_data_dir, resolution=(24, 32)
        )
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[3][name], expected[3][name])


def test_the_published_slices_as_a_folder_are_the_dataset_isbi2012(isbi2012_data_dir, tmp_path):
    published = Path(os.environ["SEGJAX_ISBI2012"]) / "train"
    values = dict(zip(isbi2012.CLASS_NAMES, (0, 255), strict=True))
    write_classes(tmp_path, {"classes": values, "channels": 1})
    for split, numbers in isbi2012.SPLITS.items():
        for kind, source in (("images", "image"), ("masks", "label")):
            (tmp_path / split / kind).mkdir(parents=True)
            for number in numbers:
                link = tmp_path / split / kind / f"slice_{number:02d}.png"
                link.symlink_to(published.absolute() / source / f"{number}.png")
    ours = datasets.info("folder", data_dir=tmp_path / "data", folder=tmp_path, resolution=(9, 9))
    theirs = datasets.info("isbi2012", data_dir=isbi2012_data_dir)
    assert ours.splits == theirs.splits
    described, problems = check.check(tmp_path)
    assert "image modes: L (30)" in described
    assert problems == []


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
    baselines = ["baselines", "--dataset", "folder", "--resolution", "24x32"]
    assert main([*baselines, "--folder", str(photos)]) == 0
    assert "all Ground" in capsys.readouterr().out
    assert main(baselines) == 2
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
