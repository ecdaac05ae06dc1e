"""Scores at the labels' own sizes, of a folder of images of four sizes, by independent counts."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import config as configs
from segjax import models, train
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.metrics import boundary_iou
from segjax.results import bootstrap
from support.runs import DESCRIPTION, OneLayer, evaluated, small_config

pytestmark = pytest.mark.slow

SIZES = [(40, 56), (24, 32), (31, 77), (61, 45)]
RESOLUTION = (24, 32)
CLASSES = {"Ground": 0, "Disk": 255, "Line": 40}
VOID = 99


def make_photos(folder):
    """Make a folder of noise with a bright disk and a dark line, beside a column of void."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 4), ("test", 4)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for k in range(number):
            height, width = SIZES[k % len(SIZES)]
            y, x = np.mgrid[:height, :width]
            mask = np.where((y - 12) ** 2 + (x - 14) ** 2 < 64, 255, 0)
            mask[height // 2 + k : height // 2 + k + 2] = 40
            image = rng.integers(0, 90, (height, width, 3)) + 120 * (mask == 255)[..., None]
            mask[:, -3:] = VOID
            for kind, pixels in (("images", image), ("masks", mask)):
                path = folder / split / kind / f"{split}{k}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES, "void": [VOID]}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of `photos` and of two runs on them at 24x32, `run` and `other`."""
    folder = tmp_path_factory.mktemp("native")
    make_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "one_layer", OneLayer)
        for name, seed in (("run", 0), ("other", 1)):
            config = small_config(folder / "data", seed=seed, data__resolution=RESOLUTION)
            config.data.dataset, config.data.folder = "folder", str(folder / "photos")
            config.optimizer.learning_rate = 0.3
            train.train(config, folder / name, DESCRIPTION)
        yield folder


@pytest.fixture(scope="module")
def run(folder):
    return segjax.load(folder / "run")


def predicted(folder, *arguments):
    """Run `segjax predict` on the test images; return the label map of each, in their order."""
    output = folder / "predicted" / "_".join(arguments)
    images = str(folder / "photos" / "test" / "images")
    command = ["predict", images, "--workdir", str(folder / "run"), "--output", str(output)]
    assert main([*command, *arguments]) == 0
    return [np.asarray(Image.open(output / f"test{k}.png")) for k in range(4)]


def truths(folder):
    """Return the class of each pixel of the test masks, as the files have it; -1 for void."""
    found = []
    for k in range(4):
        mask = np.asarray(Image.open(folder / "photos" / "test" / "masks" / f"test{k}.png"))
        label = np.full(mask.shape, -1)
        for number, value in enumerate(CLASSES.values()):
            label[mask == value] = number
        found.append(label)
    return found


def mean_iou(labels, guesses):
    """Return the mean IoU of sets of pixels."""
    each = []
    for k in range(3):
        truth, guess = set(), set()
        for number, (label, own) in enumerate(zip(labels, guesses, strict=True)):
            truth |= {(number, *place) for place in np.argwhere(label == k).tolist()}
            guess |= {(number, *place) for place in np.argwhere((own == k) & (label >= 0)).tolist()}
        each.append(len(truth & guess) / len(truth | guess) if truth | guess else 0)
    return sum(each) / 3


def resized(logits, size):
    """Resize in float64 by hand: each new pixel is a sum over the old ones, weighted by tents."""
    tents = []
    for length, new in zip(logits.shape, size, strict=False):
        place = np.clip((np.arange(new) + 0.5) * length / new - 0.5, 0, length - 1)
        tents.append(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length))))
    return np.einsum("Hh,Ww,hwk->HWk", *tents, np.asarray(logits, np.float64))


def test_scores_equal_those_of_an_independent_implementation(folder, run):
    row, path = evaluated([folder / "run"], "--native")
    assert path.name == "evaluation_test_final_native.json"
    assert (row["inference"], row["num_images"], row["boundary_f"]) == ("native", 4, None)

    network = jax.jit(outputs.logits(run._experiment))
    guesses = []
    for k, size in enumerate(SIZES):
        with Image.open(folder / "photos" / "test" / "images" / f"test{k}.png") as image:
            shown = np.asarray(image.resize(RESOLUTION[::-1], Image.Resampling.BILINEAR))
        logits = network(run._variables, shown[None] / np.float32(255), np.zeros(1, np.int32))[0]
        guesses.append(resized(logits, size).argmax(-1))
    labels = truths(folder)
    assert row["mean_iou"] == pytest.approx(mean_iou(labels, guesses), rel=0, abs=1e-9)
    assert len(np.unique(np.concatenate([guess.ravel() for guess in guesses]))) > 1
    assert np.sum(row["confusion"]) == sum(np.sum(label >= 0) for label in labels)

    # The label files that `segjax predict` writes give the same score.
    files = predicted(folder, "--squash")
    assert row["mean_iou"] == pytest.approx(mean_iou(labels, files), rel=0, abs=1e-9)
    alone = [mean_iou([label], [file]) for label, file in zip(labels, files, strict=True)]
    present = [len(np.unique(label[label >= 0])) for label in labels]
    assert present == [3] * 4
    assert row["per_image_mean_iou"] == pytest.approx(np.mean(alone), rel=0, abs=1e-9)

    with np.load(path.with_suffix(".npz")) as counts:
        assert "boundary" not in counts
        assert counts["confusion"].shape == (4, 3, 3)
        np.testing.assert_array_equal(counts["names"], [f"test{k}" for k in range(4)])
        expected = [
            boundary_iou.counts(np.where(label < 0, 255, label), file, 3)
            for label, file in zip(labels, files, strict=True)
        ]
        np.testing.assert_array_equal(counts["boundary_iou"], expected)
    ious = boundary_iou.iou(np.array(expected), np.ones(3, bool))
    assert row["per_class_boundary_iou"] == ious.tolist()
    assert row["boundary_iou"] == np.mean(ious)

    at_resolution = json.loads((folder / "run" / "result.json").read_text())
    assert np.sum(at_resolution["confusion"]) == 4 * 24 * 32 - np.sum(
        [label == 255 for label in (e["label"] for e in run._experiment.open_split("test"))]
    )
    assert at_resolution["mean_iou"] != row["mean_iou"]


@pytest.mark.parametrize(
    "flags", [("--window", "16x20", "--overlap", "0.25"), ("--window", "99x99")]
)
def test_windows_are_scored_as_they_are_predicted(folder, run, flags):
    row, path = evaluated([folder / "run"], *flags)
    overlap = float(flags[3]) if len(flags) > 2 else 0.5
    size = tuple(map(int, flags[1].split("x")))
    assert row["inference"] == f"window {flags[1]} overlap {overlap:g}"
    assert path.name == f"evaluation_test_final_window_{flags[1]}_overlap_{overlap:g}.json"
    files = predicted(folder, *flags)
    assert row["mean_iou"] == pytest.approx(mean_iou(truths(folder), files), rel=0, abs=1e-9)

    for k, file in enumerate(files):
        image = folder / "photos" / "test" / "images" / f"test{k}.png"
        labels = run.predict(image, window=size, overlap=overlap)
        np.testing.assert_array_equal(labels, file, strict=True)
        probabilities = run.predict_proba(image, window=size, overlap=overlap)
        np.testing.assert_array_equal(probabilities.argmax(-1), file)
        if size == (99, 99):
            np.testing.assert_array_equal(run.predict(image, native=True), file)
    own = run.evaluate(window=size, overlap=overlap)
    assert own | {"finished": ""} == row | {"finished": ""}


def test_labels_of_the_resolution_of_training_have_the_scores_of_the_run(folder, run):
    # The second image of each split has them.
    native = run.evaluate("val", native=True, limit=2)
    usual = run.evaluate("val", limit=2)
    first = [run.evaluate("val", native=native, limit=1) for native in (True, False)]
    confusions = [np.array(row["confusion"]) for row in (native, first[0], usual, first[1])]
    np.testing.assert_array_equal(confusions[0] - confusions[1], confusions[2] - confusions[3])


def test_native_and_window_exclude_each_other(folder, run, capsys):
    command = ["evaluate", "--workdir", str(folder / "run"), "--native", "--window", "24x24"]
    assert main(command) == 2
    assert "native, squash and window exclude each other" in capsys.readouterr().err
    with pytest.raises(UserError, match="exclude each other"):
        run.evaluate(native=True, window=(24, 24))


def test_a_run_may_score_natively_from_the_start(folder, run):
    config = configs.load(str(folder / "run" / "config.json"), {"data.score_at": "native"})
    config.unlock()
    config.num_devices = 2
    row = train.train(config, folder / "scored", DESCRIPTION)
    assert (row["inference"], row["boundary_f"]) == ("native", None)
    assert np.sum(row["confusion"]) == np.sum(run.evaluate(native=True)["confusion"])
    again = segjax.load(folder / "scored").evaluate()  # by default
    assert again["inference"] == "native"
    assert again["confusion"] == row["confusion"]


def test_refinements_work_on_images_of_any_size(folder):
    flags = ("--flip", "--window", "24x24", "--crf", "1,1,2,8,10", "--limit", "2")
    row, path = evaluated([folder / "run", folder / "other"], *flags)
    by = "window 24x24 overlap 0.5, flip, mean of 2 networks, crf 1,1,2,8,10"
    assert row["inference"] == by
    named = "evaluation_test_first2_final_window_24x24_overlap_0.5_flip_ensemble_"
    assert path.match(f"{named}????????_crf_1,1,2,8,10.json")
    labels = truths(folder)[:2]
    assert np.sum(row["confusion"]) == sum(np.sum(label >= 0) for label in labels)


def test_calibration_is_that_of_the_probabilities(folder, run):
    plain = json.loads((folder / "run" / "result.json").read_text())
    row = run.evaluate(calibration=True)
    assert row["confusion"] == plain["confusion"]
    assert row["boundary_f"] == plain["boundary_f"]
    assert "inference" not in row
    assert "calibration" not in plain

    row, _ = evaluated([folder / "run"], "--native", "--calibration", "--limit", "3")
    pixels, right, sums = np.zeros((3, 15))
    for k, label in enumerate(truths(folder)[:3]):
        image = folder / "photos" / "test" / "images" / f"test{k}.png"
        for truth, own in zip(
            label.ravel(), run.predict_proba(image, squash=True).reshape(-1, 3), strict=True
        ):
            if truth >= 0:
                number = int(np.ceil(np.float64(own.max()) * 15)) - 1
                pixels[number] += 1
                right[number] += own.argmax() == truth
                sums[number] += np.float64(own.max())
    np.testing.assert_allclose(row["calibration"], np.stack([pixels, right, sums], -1), rtol=1e-12)
    expected = np.sum(np.abs(right - sums)) / np.sum(pixels)
    assert row["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


def test_evaluations_at_the_labels_own_sizes_are_compared(folder):
    for name in ("run", "other"):
        command = ["evaluate", "--workdir", str(folder / name), "--split", "val", "--native"]
        assert main(command) == 0
    paths = [folder / name / "evaluation_val_final_native.json" for name in ("run", "other")]
    found = bootstrap.compare(*paths, samples=20)
    assert [each.score for each in found] == ["global_accuracy", "class_accuracy", "mean_iou"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--overlap", "0.5"], "overlap is that of windows, expected a window too"),
        (["--window", "8x8", "--overlap", "1"], "overlap 1, expected at least 0 and less than 1"),
        (["--window", "8"], "expected HEIGHTxWIDTH such as 96x128, found '8'"),
    ],
)
def test_impossible_windows_are_one_line(folder, capsys, arguments, said):
    assert main(["evaluate", "--workdir", str(folder / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
