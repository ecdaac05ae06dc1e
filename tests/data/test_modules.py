"""A dataset of code: a module outside the package is trained, evaluated, predicted, or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import segjax
from segjax.cli.main import main
from segjax.data import datasets, modules
from support.errors import refusal
from support.runs import TINY

TOY = """
import numpy as np

CLASS_NAMES = ("Above", "Below")

def examples(split):
    for k in range({"train": 8, "val": 2, "test": 2}[split]):
        label = np.zeros((24, 32), np.int64)
        label[6 + k :] = 1
        label[0, 0] = 255
        yield np.repeat(100 * (label == 1)[..., None] + 50, 3, axis=2).astype(np.uint8), label
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with the module `halves`, which other tests must not see."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a changed file of the same second
    (tmp_path / "halves.py").write_text(TOY)
    yield tmp_path
    sys.modules.pop("halves", None)


def rewrite(place, text):
    (place / "halves.py").write_text(text)
    sys.modules.pop("halves", None)


def test_a_module_is_prepared_with_its_classes(place):
    info = datasets.info("module:halves", resolution=(24, 32))
    assert (info.name, info.class_names) == ("module:halves", ("Above", "Below"))
    sizes = {split: of.num_images for split, of in info.splits.items()}
    assert sizes == {"train": 8, "val": 2, "test": 2}
    assert info.splits["test"].void_pixels == 2
    assert info.splits["test"].pixel_counts == (6 * 32 + 7 * 32 - 2, 18 * 32 + 17 * 32)
    source = datasets.open_split("module:halves", "test", resolution=(24, 32))
    assert source.names == ["000000", "000001"]
    np.testing.assert_array_equal(source[1]["image"][6:8, 5], [[50] * 3, [150] * 3])
    assert datasets.shape("module:halves") == (3, 2)


def test_a_changed_module_or_version_is_prepared_again(place):
    first = datasets.info("module:halves", resolution=(24, 32))
    rewrite(place, TOY.replace("6 + k", "7 + k"))
    second = datasets.info("module:halves", resolution=(24, 32))
    assert second.splits["train"].pixel_counts[0] == first.splits["train"].pixel_counts[0] + 8 * 32
    rewrite(place, TOY)
    assert datasets.info("module:halves", resolution=(24, 32)) == first
    sys.modules["halves"].VERSION = 2
    assert len(list((place / "prepared" / "module").glob("*/1.0.0"))) == 2
    datasets.info("module:halves", resolution=(24, 32))
    assert len(list((place / "prepared" / "module").glob("*/1.0.0"))) == 3


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_channels_come_back_as_they_were(place, channels):
    rewrite(
        place,
        f"""
import numpy as np
CLASS_NAMES, CHANNELS, SPLITS = ["A"], {channels}, ("train", "val")
def examples(split):
    rng = np.random.default_rng(len(split))
    yield rng.integers(0, 256, (6, 7, CHANNELS), np.uint8), np.zeros((6, 7), np.uint8), "one"
""",
    )
    source = datasets.open_split("module:halves", "val")
    expected = np.random.default_rng(3).integers(0, 256, (6, 7, channels), np.uint8)
    np.testing.assert_array_equal(source[0]["image"], expected, strict=True)
    assert source[0]["id"] == "one"
    assert datasets.shape("module:halves") == (channels, 1)
    small = datasets.open_split("module:halves", "val", resolution=(3, 7))[0]["image"]
    np.testing.assert_allclose(small.mean((0, 1)), expected.mean((0, 1)), atol=8)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("CLASS_NAMES =", "NAMES =", "no CLASS_NAMES, expected 1 to 254 different"),
        ('"Below")', '"Above")', "CLASS_NAMES is ('Above', 'Above')"),
        ("def examples", "def samples", "no examples, expected a function"),
        ('"Below")', '"Below")\nPALETTE = ((1, 2, 3),)', "PALETTE is ((1, 2, 3),), expected 2 RGB"),
        ('"Below")', '"Below")\nPALETTE = ((1, 2, 3), (4,))', "PALETTE is ((1, 2, 3), (4,)), exp"),
        ('"Below")', '"Below")\nSPLITS = 3', "SPLITS is 3, expected ('train', 'val', 'test')"),
        ('"Below")', '"Below")\nCHANNELS = 0', "CHANNELS is 0, expected an integer from 1"),
        ('"Below")', '"Below")\nCHANNELS = 1', "example 0 of train has an image of shape (24, 32,"),
        ('"Below")', '"Below")\nSPLITS = ("val",)', "SPLITS is ('val',), expected"),
        ("astype(np.uint8), label", "astype(float), label", "and dtype float64, expected uint8"),
        (", label\n", ", label[1:]\n", "has a label of shape (23, 32) and dtype int64, expected"),
        (", label\n", ", label / 1\n", "and dtype float64, expected integers (24, 32)"),
        (", label\n", ", label, 'x'\n", "example 1 of train: a second one is named 'x'"),
        ("        yield", "        yield 1; yield", "example 0 of train is a int, expected an"),
        (
            "[6 + k :] = 1",
            "[6 + k :] = 2",
            "example 0 of train: 576 pixels, the first at row 6, column 0, with the value 2, "
            "expected 0 to 1, or 255 for void",
        ),
        ("(24, 32)", "(24, -32)", "examples('train') fails with ValueError: negative dimensions"),
        ("import numpy", "import nunpy", "its import fails with ModuleNotFoundError: No module"),
        ('"val": 2', '"val": 0', "the val split is empty"),
    ],
)
def test_a_module_that_is_wrong_is_refused_with_the_place(place, old, new, said):
    assert old in TOY
    rewrite(place, TOY.replace(old, new))
    assert said in refusal(datasets.info, "module:halves", resolution=(24, 32))


def test_a_palette_may_be_an_array(place):
    rewrite(place, f"{TOY}\nPALETTE = np.array([[1, 2, 3], [4, 5, 6]])")
    info = datasets.info("module:halves", resolution=(24, 32))
    assert info.palette == ((1, 2, 3), (4, 5, 6))


def test_the_folder_of_a_module_is_kept(place):
    assert datasets.info("module:halves", resolution=(24, 32)).origin == str(place)
    (place / "data_of_mine" / "toys").mkdir(parents=True)
    for name in ("data_of_mine/__init__.py", "data_of_mine/toys/__init__.py"):
        (place / name).write_text(TOY)
    for name in ("data_of_mine", "data_of_mine.toys"):
        assert datasets.info(f"module:{name}", resolution=(24, 32)).origin == str(place)
        sys.modules.pop(name)


def test_a_module_that_is_not_there_is_one_clear_line(place):
    assert refusal(modules.load, "no_such") == (
        "dataset module:no_such: there is no module no_such, neither in "
        f"{place} nor on PYTHONPATH; start segjax in the folder of the module, or set PYTHONPATH "
        "to it"
    )
    assert "expected the name of a module" in refusal(datasets.check_name, "module:halves.py:x")
    assert "takes no source" in refusal(datasets.info, "module:halves", folder=place)


@pytest.mark.slow
def test_a_toy_dataset_is_trained_evaluated_predicted_and_loaded(place, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "segjax"]
    train = ["train", "--config", TINY, "--workdir", str(workdir)]
    train += ["--config.data.dataset=module:halves", "--config.data.resolution=24,32"]
    # As a command of its own, which finds the module in the current folder.
    subprocess.run([*command, *train], check=True, capture_output=True)
    row = json.loads((workdir / "result.json").read_text())
    assert (row["dataset"], row["class_names"]) == ("module:halves", ["Above", "Below"])
    assert np.sum(row["confusion"]) == 2 * (24 * 32 - 1)

    assert main(["evaluate", "--workdir", str(workdir), "--split", "val"]) == 0
    image = place / "image.png"
    Image.new("RGB", (32, 24)).save(image)
    output = tmp_path / "out"
    assert main(["predict", str(image), "--workdir", str(workdir), "--output", str(output)]) == 0
    run = segjax.load(workdir)
    assert run.classes == ("Above", "Below")
    assert run.evaluate("test")["mean_iou"] == row["mean_iou"]

    # From elsewhere it is found where the training had found it.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command += ["evaluate", "--workdir", str(workdir)]
    subprocess.run(command, check=True, capture_output=True, cwd=elsewhere)

    (place / "halves.py").rename(place / "gone.py")
    sys.modules.pop("halves")
    assert "there is no module halves" in refusal(segjax.load(workdir).evaluate, "test")
    assert run.predict(image).shape == (24, 32)  # needs the run directory alone
