"""The paired bootstrap: worked examples and user errors."""

import json

import numpy as np
import pytest

from segjax import results
from segjax.cli import main
from segjax.metrics import boundary
from segjax.results import bootstrap
from segjax.results import counts as counting
from support.errors import command_refusal, refusal
from support.rows import CLASS_NAMES, make_row


def image(hits, pixels=100):
    """Return counts of an image of class 0: some pixels right, the rest predicted as class 1."""
    confusion = np.zeros((3, 3), np.int32)
    confusion[0, :2] = hits, pixels - hits
    return confusion


def write_run(folder, hits, boundaries=None, names=None, **changed):
    """Write a run directory with its result, images with `hits` right pixels each."""
    confusion = np.stack([image(each) for each in hits])
    if boundaries is None:
        boundaries = np.tile([1, 2, 2], (len(hits), 3, 1))
    names = None if names is None else np.array(names)
    counts = counting.Counts(confusion, np.asarray(boundaries), names)
    row = make_row(confusion=counts.total.tolist(), num_images=len(hits), **changed)
    counting.write_counts(folder / "result.json", counts)
    results.write_row(folder / "result.json", row | changed)
    return folder


@pytest.fixture
def two(tmp_path):
    """Two runs on a hundred images: the second is better on ninety of them."""
    first = write_run(tmp_path / "a", [50] * 100)
    second = write_run(tmp_path / "b", [60] * 90 + [40] * 10)
    return first, second


def test_a_file_of_several_rows_is_no_run(tmp_path, capsys):
    for seed in (0, 1):
        results.append(tmp_path / "rows.jsonl", make_row(seed))
    said = command_refusal(capsys, ["compare", tmp_path / "rows.jsonl", tmp_path])
    assert said.endswith("rows.jsonl has 2 rows, expected the result.json of one run")


def by_score(differences):
    return {each.score: each for each in differences}


def test_a_difference_by_hand(two):
    found = by_score(bootstrap.compare(*two, samples=20_000))["global_accuracy"]
    assert (found.first, found.second) == (0.5, 0.58)
    # A sample's difference is 0.1 (1 - 2 k / 100), k of 100 images being worse, each with 0.1:
    # its standard deviation is 0.1 * 2 * sqrt(100 * 0.1 * 0.9) / 100 = 0.006, its mean 0.08.
    assert found.low == pytest.approx(0.08 - 1.96 * 0.006, abs=0.002)
    assert found.high == pytest.approx(0.08 + 1.96 * 0.006, abs=0.002)
    assert found.better == 1


def test_the_same_images_are_drawn_for_both(tmp_path):
    rng = np.random.default_rng(0)
    hits = rng.integers(0, 90, 50)
    first, second = write_run(tmp_path / "a", hits), write_run(tmp_path / "b", hits + 10)
    found = by_score(bootstrap.compare(first, second, samples=200))["global_accuracy"]
    # Unpaired, the spread of the images (26 points) would hide the ten.
    assert found.low == pytest.approx(0.1, abs=1e-12)
    assert found.high == pytest.approx(0.1, abs=1e-12)


def test_mean_iou_is_of_the_sum_and_not_a_mean_over_images(tmp_path):
    first = write_run(tmp_path / "a", [100, 0])
    second = write_run(tmp_path / "b", [100, 100])
    found = by_score(bootstrap.compare(first, second, samples=10))["mean_iou"]
    # IoU of class 0: 100 of 200 pixels; class 1 is predicted and never there, class 2 is neither.
    assert (found.first, found.second) == (pytest.approx(0.5 / 3), pytest.approx(1 / 3))


def test_boundaries_are_averaged_over_images(tmp_path):
    none = [[0, 0, 0]] * 3
    half, full = [[1, 2, 2], *none[1:]], [[2, 2, 2], *none[1:]]
    first = write_run(tmp_path / "a", [50] * 3, [half, half, none])
    second = write_run(tmp_path / "b", [50] * 3, [half, full, none])
    found = by_score(bootstrap.compare(first, second, samples=4000))["boundary_f"]
    assert (found.first, found.second) == (0.5, 0.75)  # the third image has no boundary
    # Three images are drawn; the second one not at all with (2/3)^3, and then they are equal.
    assert found.better == pytest.approx(1 - (2 / 3) ** 3 / 2, abs=0.02)
    assert found.low == 0


def test_a_run_is_as_good_as_itself(two):
    for each in bootstrap.compare(two[0], two[0], samples=50):
        assert (each.low, each.high, each.better) == (0, 0, 0.5)
        assert each.first == each.second


def test_the_command_prints_the_table(two, capsys):
    arguments = [str(two[0]), str(two[1] / "result.json"), "--samples", "300", "--seed", "1"]
    assert main.main(["compare", *arguments]) == 0
    heading, _, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("| score | first | second | difference | 95% interval |")
    assert [line.split("|")[1].strip() for line in lines] == ["G", "C", "mIoU", "BF"]
    assert lines[0].startswith("| G | 50.0 | 58.0 | +8.0 | +")
    assert lines[0].endswith("| 100.0% |")


def refused(first, second):
    return refusal(bootstrap.compare, first, second, samples=10)


def test_runs_on_different_images_are_refused(two, tmp_path):
    other = write_run(tmp_path / "other", [50] * 100, split="val")
    assert refused(two[0], other) == (
        f"{other} has split val, but {two[0]} has test; expected runs scored on the same images"
    )
    labels = write_run(tmp_path / "labels", [50] * 100)
    counts = counting.Counts(np.stack([image(50, 101)] * 100), np.zeros((100, 3, 3), int))
    counting.write_counts(labels / "result.json", counts)
    results.write_row(labels / "result.json", make_row(confusion=counts.total, num_images=100))
    assert refused(two[0], labels) == f"{labels} and {two[0]} were scored on different labels"


def test_runs_whose_images_have_other_names_are_refused(tmp_path):
    first = write_run(tmp_path / "a", [50] * 3, names=["x", "y", "z"])
    same = write_run(tmp_path / "b", [60] * 3, names=["x", "y", "z"])
    older = write_run(tmp_path / "c", [60] * 3)  # before names were stored
    for pair in ((first, same), (first, older), (older, first)):
        assert bootstrap.compare(*pair, samples=10)
    other = write_run(tmp_path / "d", [50] * 3, names=["x", "zz", "y"])
    assert refused(first, other) == (
        f"image 1 of {other} is zz, but of {first} y; expected runs scored on the same images"
    )


def test_runs_on_other_data_are_refused(tmp_path):
    first = write_run(tmp_path / "a", [50] * 3, data_digest="1" * 64)
    older = write_run(tmp_path / "b", [50] * 3)  # before digests were stored
    assert bootstrap.compare(first, older, samples=10)
    other = write_run(tmp_path / "c", [50] * 3, data_digest="2" * 64)
    assert refused(first, other).startswith(f"{other} has data_digest 222")


def test_missing_or_damaged_files_are_named(two, tmp_path):
    first, second = two
    assert refused(first, tmp_path / "none") == (
        f"{tmp_path}/none has no result: "
        "expected the directory or the result.json of a finished run"
    )
    counts = second / "result.npz"
    whole = counts.read_bytes()
    counts.write_bytes(whole[:100])
    assert refused(first, second).startswith(f"{counts} is damaged: ")
    whole = (first / "result.npz").read_bytes()
    counts.write_bytes(whole.replace(b"boundary", b"boundasy"))
    assert refused(first, second).startswith(f"{counts} is damaged: ")
    counts.write_bytes(whole)
    assert (
        refused(first, second)
        == f"{counts}: its counts do not add up to those of {second}/result.json"
    )
    counts.unlink()
    assert refused(first, second).startswith(f"{counts} is missing: `segjax evaluate` writes")


def test_the_stored_counts_give_the_scores_of_the_row(two):
    row, counts = bootstrap.load(two[1])
    assert row["class_names"] == CLASS_NAMES
    scored = results.scored(counts.total, CLASS_NAMES, counts.boundary)
    for name in ("global_accuracy", "mean_iou"):
        assert scored[name] == row[name]
    assert scored["boundary_f"] == boundary.mean(boundary.f_measure(counts.boundary)) == 0.5
    assert json.loads((two[1] / "result.json").read_text())["confusion"] == counts.total.tolist()


def test_a_seed_below_zero_is_refused(two, capsys):
    error = command_refusal(capsys, ["compare", *map(str, two), "--seed", "-1"])
    assert "expected an integer >= 0, found '-1'" in error


def test_native_scores_of_runs_trained_at_other_resolutions_are_compared(tmp_path):
    native = {"inference": "native", "names": ["a", "b"]}
    first = write_run(tmp_path / "a", [50, 60], resolution=[96, 128], **native)
    second = write_run(tmp_path / "b", [70, 80], resolution=[180, 240], **native)
    found = by_score(bootstrap.compare(first, second, samples=100))
    assert (found["global_accuracy"].first, found["global_accuracy"].second) == (0.55, 0.75)
    resized = write_run(tmp_path / "c", [70, 80], resolution=[180, 240])
    assert "has resolution" in refused(first, resized)


def test_samples_are_drawn_in_parts_with_the_same_result(two, monkeypatch):
    whole = bootstrap.compare(*two, samples=2500)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 2500)
    assert bootstrap.compare(*two, samples=2500) == whole


def test_more_samples_than_anyone_needs_are_refused(two, capsys):
    said = command_refusal(capsys, ["compare", *two, "--samples", "1" + "0" * 14])
    assert said == "100000000000000 bootstrap samples, expected at most 1000000"
