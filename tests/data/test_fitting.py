"""Resize, letterbox and crop, on arrays worked out by hand."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import segjax
from segjax import config as configs
from segjax.cli.main import main
from segjax.data import datasets, fitting, images
from segjax.inference import windows
from support.folders import make_folder, save_pair
from support.runs import TINY


@pytest.mark.parametrize(
    ("shape", "resolution", "fit", "expected"),
    [
        ((100, 400), (50, 50), "resize", (50, 50)),
        ((100, 400), (50, 50), "letterbox", (12, 50)),  # a quarter of 50, rounded to even
        ((400, 100), (50, 60), "letterbox", (50, 12)),
        ((1, 4000), (8, 8), "letterbox", (1, 8)),  # never nothing
        ((100, 400), (50, 50), "crop", (50, 200)),
        ((400, 100), (50, 60), "crop", (240, 60)),
        ((333, 500), (100, 151), "crop", (101, 151)),
        ((24, 32), (24, 32), "letterbox", (24, 32)),
    ],
)
def test_sizes(shape, resolution, fit, expected):
    assert fitting.scaled_size(shape, resolution, fit) == expected


def test_no_rounding_leaves_a_gap_or_an_overhang():
    for height in range(1, 40):
        for width in range(1, 40):
            rows, columns = fitting.scaled_size((height, width), (17, 23), "crop")
            assert min(rows - 17, columns - 23) == 0
            rows, columns = fitting.scaled_size((height, width), (17, 23), "letterbox")
            assert min(17 - rows, 23 - columns) == 0


def test_the_middle():
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(
        fitting.centered(x, (5, 4), 9),
        [[9, 9, 9, 9], [0, 1, 2, 9], [3, 4, 5, 9], [9, 9, 9, 9], [9, 9, 9, 9]],
    )
    np.testing.assert_array_equal(fitting.centered(x, (1, 1), 9), [[1]])
    np.testing.assert_array_equal(fitting.centered(x, (3, 2), 9), [[0, 1], [3, 4], [9, 9]])
    for size in ((5, 4), (2, 3), (9, 10)):
        there = fitting.centered(x, size, 9)
        np.testing.assert_array_equal(fitting.centered(there, x.shape, 0), x, strict=True)


@pytest.fixture
def wide(tmp_path):
    """A folder of 8x16 images: value 40 and class 0 on the left half, 200 and class 1 right."""
    (tmp_path / "classes.json").write_text(json.dumps({"A": 0, "B": 255}))
    right = np.broadcast_to(np.arange(16) >= 8, (8, 16))
    image = np.where(right[..., None], [200] * 3, 40).astype(np.uint8)
    for split in ("train", "val"):
        save_pair(tmp_path / split, "a", image, (255 * right).astype(np.uint8))
    return tmp_path


def test_a_letterboxed_image_lies_on_the_mean_color_and_void(wide, tmp_path):
    place = {"data_dir": tmp_path / "data", "folder": wide, "resolution": (8, 8)}
    found = datasets.open_split("folder", "val", **place, fit="letterbox")[0]
    label = np.full((8, 8), 255, np.uint8)
    label[2:6, :4], label[2:6, 4:] = 0, 1
    np.testing.assert_array_equal(found["label"], label, strict=True)
    assert set(np.unique(found["image"][[0, 1, 6, 7]])) == {120}  # of 40 and 200
    np.testing.assert_array_equal(found["image"][2:6, 0], np.full((4, 3), 40))
    np.testing.assert_array_equal(found["image"][2:6, 7], np.full((4, 3), 200))


def test_a_cropped_image_loses_its_sides(wide, tmp_path):
    place = {"data_dir": tmp_path / "data", "folder": wide, "resolution": (4, 4)}
    found = datasets.open_split("folder", "val", **place, fit="crop")[0]
    np.testing.assert_array_equal(found["label"], [[0, 0, 1, 1]] * 4)
    assert found["image"].shape == (4, 4, 3)
    resized = datasets.open_split("folder", "val", **place)[0]["label"]
    np.testing.assert_array_equal(resized, [[0, 0, 1, 1]] * 4)  # of the whole image
    # The sides are beyond the crop: at 8x8 it spans columns 4 to 11.
    place["resolution"] = (8, 8)
    found = datasets.open_split("folder", "val", **place, fit="crop")[0]["image"][0, :, 0]
    np.testing.assert_array_equal(found, [40] * 4 + [200] * 4)


@pytest.mark.parametrize("fit", ["aspect", "resolution"])
def test_the_network_sees_a_letterboxed_image_as_in_training(fit):
    seen = []

    def network(variables, image, places):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), image)
        return image * 2

    config = configs.default()
    config.data.update({"fit": "letterbox", "resolution": (4, 5)})
    run = SimpleNamespace(config=config, info=SimpleNamespace(mean=(0.2, 0.4, 1.0)))
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)  # shown at 2x5, of 4x5
    (values,) = windows.build_strips(run, network, fit)({}, image, 0)
    wider = images.resize(image, (2, 5))
    expected = fitting.centered(wider, (4, 5), (51, 102, 255))
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0][0], expected / 255, rtol=1e-6)
    back = np.concatenate([*windows.resize(wider * np.float32(2 / 255), (2, 4))])
    np.testing.assert_allclose(values, back, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_training_evaluation_and_prediction_see_the_same(tmp_path, monkeypatch, fit):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    photos = make_folder(tmp_path / "photos", size=(40, 80))
    workdir = tmp_path / "run"
    train = ["train", "--config", TINY, "--workdir", str(workdir), "--config.data.dataset=folder"]
    train += [f"--config.data.folder={photos}", f"--config.data.fit={fit}"]
    assert main(train) == 0
    row = json.loads((workdir / "result.json").read_text())
    height, width = row["resolution"]
    assert (height, width) == (24, 32)
    # 40x80: a letterbox shows all of it as 16x32, a crop fills the resolution.
    assert np.sum(row["confusion"]) == 4 * 32 * {"letterbox": 16, "crop": 24}[fit]

    run = segjax.load(workdir)
    assert run.evaluate("test")["confusion"] == row["confusion"]
    # An image of the size that training gives it is resized no more: the same pixels are seen.
    size = fitting.scaled_size((40, 80), (height, width), fit)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    label = run.predict(image)
    assert label.shape == size
    if fit == "letterbox":
        color = [round(255 * mean) for mean in run._experiment.info.mean]
        framed = fitting.centered(image, (height, width), color)
        expected = fitting.centered(run.predict(framed, native=True), size, 0)
        np.testing.assert_array_equal(label, expected)
    assert run.predict_proba(image).shape == (*size, 2)
