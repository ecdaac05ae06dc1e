"""`segjax data check`: what it says of a folder, and what needs a person."""

import json

import numpy as np
import pytest
from PIL import Image

from segjax.cli.main import main
from segjax.data import images
from segjax.inference import check
from support.folders import save_pair


@pytest.fixture
def folder(tmp_path):
    """Make a folder of three splits: class 0, with strips of class 1 that are 3 pixels wide."""
    (tmp_path / "classes.json").write_text(json.dumps({"Ground": 0, "Pole": 255}))
    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for k in range(number):
            image = rng.integers(0, 256, (32, 48, 3), np.uint8)
            mask = np.zeros((32, 48), np.uint8)
            mask[:, 10:13] = 255
            save_pair(tmp_path / split, f"{split}{k}", image, mask)
    return tmp_path


def test_a_good_folder_is_described(folder, capsys):
    assert main(["data", "check", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == [
        "images: train 3, val 2, test 1",
        "sizes: 32x48 (6)",
        "image modes: RGB (6)",
        "mask modes: L (6)",
        "value 0: Ground, 8640 pixels (93.8%) in 6 masks",
    ]
    assert "baseline: Ground everywhere has 93.8% of the pixels right" in said
    assert not [line for line in said if "PROBLEM" in line]
    # Of a block of 8 the strip is the minority: Pole is lost, and Ground has 45 / 48.
    (line,) = [line for line in said if line.startswith("output stride 8:")]
    assert line == (
        "output stride 8: a perfect network has about 47 mIoU here, Pole (about 3 pixels wide) 0"
    )


def test_everything_that_needs_a_person_is_named(folder, capsys):
    masks = folder / "train" / "masks"
    stray = np.array(Image.open(masks / "train0.png"))
    stray[3, 4] = 7
    Image.fromarray(stray).save(masks / "train0.png")
    Image.fromarray(stray[:20]).save(masks / "train1.png")
    path = folder / "train" / "images" / "train2.png"
    path.write_bytes(path.read_bytes()[:60])
    twin = Image.open(folder / "val" / "images" / "val0.png")
    twin.save(folder / "test" / "images" / "test0.png")
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(folder / "test" / "masks" / "test0.png")
    (folder / "val" / "masks" / "val1.png").unlink()
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(folder / "val" / "masks" / "val1.jpg")
    assert main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    problems = [line for line in said.splitlines() if line.startswith("PROBLEM: ")]
    assert len(problems) == 6
    for part in (
        f"image {path} cannot be read",
        "train1.png is 32x48, its mask 20x48",
        "value 7 is not declared: 2 pixels in 2 masks",
        "1 mask saved as JPEG",
        "classes without a pixel in test: Pole",
        "1 pair of images that look alike in different splits: "
        f"{folder / 'val/images/val0.png'} and {folder / 'test/images/test0.png'}",
    ):
        assert any(part in line for line in problems), part
    assert "value 7: NOT DECLARED" in said


def test_there_is_no_baseline_while_a_value_is_not_declared(folder, capsys):
    (folder / "classes.json").write_text('{"Ground": 0}')
    assert main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "baseline and ceilings: unknown until every value is declared" in said
    assert not [line for line in said if "perfect network" in line or "everywhere" in line]


def test_ghosts_of_jpeg_in_a_png_are_told_from_a_stray_value(folder, capsys):
    masks = folder / "train" / "masks"
    rows, columns = np.mgrid[:32, :48]
    disk = 255 * ((rows - 16) ** 2 + (columns - 20) ** 2 < 100)
    Image.fromarray(disk.astype(np.uint8)).save(masks / "lossy.jpg", quality=40)
    Image.open(masks / "lossy.jpg").save(masks / "train0.png")
    (masks / "lossy.jpg").unlink()
    assert main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if "(ghosts)" in line]
    assert line.startswith("PROBLEM: 1 mask with 4 or more undeclared values, as JPEG or a smooth")
    assert line.endswith(f"as PNG by nearest neighbor: {masks / 'train0.png'}")
    # Of many values the most frequent are listed.
    assert len([line for line in said if "NOT DECLARED" in line]) == 11


def test_a_long_list_of_problems_is_cut(folder, capsys):
    for split in ("train", "val"):
        for k in range(6):
            for kind in ("images", "masks"):
                (folder / split / kind / f"{split}{k}.png").write_bytes(b"")
    mask = np.arange(32 * 48).reshape(32, 48) % 13
    Image.fromarray(mask.astype(np.uint8)).save(folder / "test" / "masks" / "test0.png")
    assert main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out.splitlines()
    problems = [line for line in said if line.startswith("PROBLEM: ")]
    assert sum("cannot identify image file" in line for line in problems) == 10
    assert problems[10] == "PROBLEM: and 14 more"
    assert sum("is not declared" in line for line in problems) == 10
    assert problems[21] == "PROBLEM: and 2 more"
    assert "and 2 more values: NOT DECLARED" in said


def test_a_value_that_is_declared_void_is_no_problem(folder, capsys):
    masks = folder / "train" / "masks"
    mask = np.array(Image.open(masks / "train0.png"))
    mask[0, :4] = (3, 4, 5, 6)
    Image.fromarray(mask).save(masks / "train0.png")
    content = {"classes": {"Ground": 0, "Pole": 255}, "void": [3, 4, 5, 6]}
    (folder / "classes.json").write_text(json.dumps(content))
    assert main(["data", "check", str(folder)]) == 0
    assert "value 6: void, 1 pixel (0.0109%) in 1 mask" in capsys.readouterr().out


def test_the_orientation_of_a_photograph_is_that_which_everyone_sees(folder):
    path = folder / "train" / "images" / "train0.jpg"
    (folder / "train" / "images" / "train0.png").unlink()
    pixels = np.random.default_rng(1).integers(0, 256, (48, 32, 3), np.uint8)  # held sideways
    photograph = Image.fromarray(pixels)
    exif = photograph.getexif()
    exif[0x0112] = 6
    photograph.save(path, exif=exif)
    described, problems = check.check(folder)
    assert "sizes: 32x48 (6)" in described
    assert problems == []


def test_pictures_above_pillows_limit_are_no_problem(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a bomb to Pillow
    assert check.check(folder)[1] == []
    monkeypatch.setattr(images, "MOST_PIXELS", 10)
    assert "it has 48x32 pixels, expected at most 10" in check.check(folder)[1][0]


def test_a_folder_is_wanted_by_check_alone(folder, capsys):
    for arguments in (["check"], ["streetscenes", str(folder)]):
        assert main(["data", *arguments]) == 2
        assert "takes a folder" in capsys.readouterr().err


def test_hashes_of_near_duplicates():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 12), np.uint8)
    image = Image.fromarray(coarse).resize((240, 160), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(image).astype(int) + rng.integers(-4, 5, (160, 240)), 0, 255)
    first, second = (check.difference_hash(x) for x in (image, Image.fromarray(noisy.astype("u1"))))
    other = check.difference_hash(Image.fromarray(rng.integers(0, 256, (160, 240), np.uint8)))
    assert bin(first ^ second).count("1") <= 2
    assert bin(first ^ other).count("1") > 10
    hashes = {"train": [(first, "a")], "val": [(second, "b"), (other, "c")], "test": []}
    assert check.near_duplicates(hashes) == [("a", "b")]


def test_the_width_of_a_strip():
    label = np.zeros((100, 200), np.uint8)
    label[:, 40:60] = 1
    wide = check.widths([label], 3)
    assert wide[1] == pytest.approx(20, rel=0.1)
    assert np.isnan(wide[2])


def test_masks_sampled_for_the_ceilings_may_all_be_void(folder, capsys, monkeypatch):
    monkeypatch.setattr(check, "_CEILING_IMAGES", 2)
    (folder / "classes.json").write_text(
        json.dumps({"classes": {"Ground": 0, "Pole": 255}, "void": [7]})
    )
    for split, name in (("train", "train0"), ("test", "test0")):
        Image.new("L", (48, 32), 7).save(folder / split / "masks" / f"{name}.png")
    assert main(["data", "check", str(folder)]) == 1  # no class in the test split
    said = capsys.readouterr().out.splitlines()
    assert "ceilings: unknown, the 2 masks sampled for them are all void" in said
