"""A trained run in Python gives the bits of the commands."""

import shlex

import numpy as np
import pytest
from PIL import Image

import segjax
import segjax.config
from segjax import results
from segjax.cli.main import main
from segjax.errors import UserError
from support.runs import TINY, train_smoke

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, scenes_data_dir):
    """Return the workdir of a run of two steps on one device."""
    return train_smoke(tmp_path_factory.mktemp("smoke") / "run", scenes_data_dir)


@pytest.fixture(scope="module")
def run(workdir):
    return segjax.load(workdir)


@pytest.mark.parametrize("native", [False, True])
def test_labels_are_those_of_the_command(workdir, run, tmp_path, native):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    path = tmp_path / "street.png"
    Image.fromarray(pixels).save(path)
    arguments = ["predict", str(path), "--workdir", str(workdir), "--output", str(tmp_path / "out")]
    assert main(arguments + ["--native"] * native) == 0
    with Image.open(tmp_path / "out" / "street.png") as label:
        expected = np.asarray(label)
    labels = run.predict(path, native=native)
    np.testing.assert_array_equal(labels, expected, strict=True)
    np.testing.assert_array_equal(run.predict(pixels, native=native), expected)
    probabilities = run.predict_proba(str(path), native=native)
    assert (probabilities.shape, probabilities.dtype) == ((37, 61, 11), np.float32)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), expected)


def test_rows_are_those_of_the_commands(workdir, run):
    row = results.read([workdir / "result.json"])[0]
    assert run.row == row
    assert run.evaluate()["confusion"] == row["confusion"]
    assert run.evaluate("val", limit=2)["num_images"] == 2
    assert list(run.classes) == row["class_names"]
    assert len(run.palette) == len(run.classes)
    assert run.config.model.name == row["model"]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)
def test_arrays_of_another_kind_are_refused(run, image):
    with pytest.raises(UserError, match=r"expected uint8 \(H, W, 3\)"):
        run.predict(image)


def test_what_is_not_there_is_refused(workdir, tmp_path, run):
    with pytest.raises(UserError, match=r"config\.json"):
        segjax.load(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        run.predict(tmp_path / "none.png")


def test_a_preview_is_not_taken_for_the_image(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    picture, path = Image.fromarray(pixels), tmp_path / "scan.tif"
    picture.encoderinfo = {"tiffinfo": {254: 0}}
    preview = picture.resize((15, 10))
    preview.save(path, save_all=True, append_images=[picture], tiffinfo={254: 1})
    np.testing.assert_array_equal(run.predict(path), run.predict(pixels))
    picture.save(path, save_all=True, append_images=[picture])
    with pytest.raises(UserError, match=r"scan\.tif has 2 pages, expected one"):
        run.predict(path)


def test_fit_trains_as_the_command_does(workdir, run, tmp_path, scenes_data_dir):
    overrides = {"data.data_dir": str(scenes_data_dir), "num_devices": 1}
    fitted = segjax.fit(TINY, tmp_path / "spec", overrides)
    assert fitted.row["confusion"] == run.row["confusion"]
    assert fitted.row["config_digest"] == run.row["config_digest"]
    assert fitted.row["overrides"] == run.row["overrides"]
    # A finished run is loaded, not trained again.
    before = (tmp_path / "spec" / "result.json").stat().st_mtime_ns
    segjax.fit(TINY, tmp_path / "spec", overrides)
    assert (tmp_path / "spec" / "result.json").stat().st_mtime_ns == before


def test_the_command_in_the_row_of_a_config_made_in_python_repeats_it(
    run, tmp_path, scenes_data_dir
):
    config = segjax.config.load(TINY, {"num_devices": 1})
    config.data.data_dir = str(scenes_data_dir)
    fitted = segjax.fit(config, tmp_path / "a", {"seed": 1})
    assert fitted.row["confusion"] != run.row["confusion"]
    program, *command = shlex.split(fitted.row["command"])
    assert program == "segjax"
    command[command.index("--workdir") + 1] = str(tmp_path / "b")
    assert main(command) == 0
    again = segjax.load(tmp_path / "b")
    assert again.row["confusion"] == fitted.row["confusion"]
    for name in ("config_digest", "seed", "experiment", "overrides"):
        assert again.row[name] == fitted.row[name]
