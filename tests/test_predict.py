"""Test `segjax predict`, `picture`, `figures` and `report` on a run of two steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import predict
from segjax.cli.main import main
from segjax.config import default
from segjax.errors import UserError
from segjax.inference import windows
from support.errors import refusal
from support.runs import change, train_smoke

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, scenes_data_dir):
    """Return the workdir of a run of two steps on one device."""
    return train_smoke(tmp_path_factory.mktemp("smoke") / "run", scenes_data_dir)


def save(path, height, width, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def run(images, workdir, output, *flags):
    """Run `segjax predict`; return its exit status."""
    command = ["predict", *map(str, images), "--workdir", str(workdir), "--output", str(output)]
    return main([*command, *flags])


@pytest.mark.parametrize("native", [False, True])
def test_label_maps_have_image_size_and_palette(tmp_path, workdir, native):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    sizes = {"small.png": (24, 32), "odd.jpg": (37, 61), "tall.png": (50, 20)}
    for name, size in sizes.items():
        save(images / name, *size, mode="L" if name == "tall.png" else "RGB")
    assert run([images], workdir, output, *["--native"] * native) == 0
    for name, (height, width) in sizes.items():
        stem = name.split(".")[0]
        with Image.open(output / f"{stem}.png") as label:
            assert (label.mode, label.size) == ("P", (width, height))
            assert np.asarray(label).max() < 11
        with Image.open(output / f"{stem}_overlay.png") as overlay:
            assert (overlay.mode, overlay.size) == ("RGB", (width, height))
    assert len(list(output.iterdir())) == 2 * len(sizes)


def test_images_of_another_aspect_ratio_than_in_training_are_named(tmp_path, workdir, capsys):
    sizes = {"same.png": (48, 64), "near.png": (24, 39), "tall.png": (30, 30), "wide.png": (24, 41)}
    for name, size in sizes.items():
        save(tmp_path / name, *size)
    assert run([tmp_path / name for name in sizes], workdir, tmp_path / "out") == 0
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "aspect" in each]
    assert line == (
        "segjax: warning: 2 images have an aspect ratio that differs by more than 1.25 times from "
        "24x32 in training; if that squashed its images, use --squash: "
        f"{tmp_path / 'tall.png'}, {tmp_path / 'wide.png'}"
    )


def test_native_changes_nothing_at_the_training_size(tmp_path, workdir):
    save(tmp_path / "image.png", 24, 32)
    labels = []
    for flags in ([], ["--native"]):
        output = tmp_path / f"out{len(flags)}"
        assert run([tmp_path / "image.png"], workdir, output, *flags) == 0
        labels.append(np.asarray(Image.open(output / "image.png")))
    np.testing.assert_array_equal(*labels)


def test_flip_augmentation_is_mirror_equivariant(tmp_path, workdir, capsys):
    pixels = save(tmp_path / "image.png", 24, 32)
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "mirrored.png")
    images = [tmp_path / name for name in ("image.png", "mirrored.png")]
    found = {}
    for name, flags in (("plain", []), ("augmented", ["--flip", "--scales", "0.5", "1"])):
        output = tmp_path / name
        assert run(images, workdir, output, *flags) == 0
        found[name] = [np.asarray(Image.open(output / f"{x}.png")) for x in ("image", "mirrored")]
    label, mirrored = found["augmented"]
    assert np.mean(label != mirrored[:, ::-1]) < 0.01  # summation order differs
    label, mirrored = found["plain"]
    assert np.mean(label != mirrored[:, ::-1]) > 0.05

    capsys.readouterr()
    assert run(images, workdir, output, "--flip", "--samples", "2") == 2
    assert capsys.readouterr().err.startswith("segjax: --samples cannot be combined with")
    assert run(images, workdir, output, "--scales", "1", "0") == 2
    assert "expected a factor from 0.1 to 10, found '0'" in capsys.readouterr().err


def test_picture_shows_image_truth_and_runs(tmp_path, workdir):
    output = tmp_path / "picture.png"
    arguments = ["picture", "--results", str(workdir.parent), "--output", str(output)]
    assert main([*arguments, "--count", "2"]) == 0
    with Image.open(output) as picture:
        assert picture.width > 3 * 240  # image, truth, one run
        assert len(picture.convert("RGB").getcolors(2**24)) > 20


def test_crf_refines_at_image_size(tmp_path, workdir):
    save(tmp_path / "image.png", 24, 32)
    save(tmp_path / "odd.png", 37, 61)
    labels = []
    for flags in ([], ["--crf", "0,1,0,8,10"], ["--crf", "50,20,50,50,500"]):
        output = tmp_path / f"out{len(labels)}"
        images = [tmp_path / name for name in ("image.png", "odd.png")]
        assert run(images, workdir, output, *flags) == 0
        labels.append([np.asarray(Image.open(output / f"{name}.png")) for name in ("image", "odd")])
    plain, without_weights, refined = labels
    np.testing.assert_array_equal(plain[0], without_weights[0])

    def edges(label):
        return np.mean(label[1:] != label[:-1]) + np.mean(label[:, 1:] != label[:, :-1])

    for before, after in zip(without_weights, refined, strict=True):
        assert after.shape == before.shape
        assert edges(after) < 0.5 * edges(before)


def test_picture_shows_runs_with_and_without_crf(tmp_path, workdir):
    widths = []
    for flags in ([], ["--crf"]):
        output = tmp_path / f"picture{len(flags)}.png"
        arguments = ["picture", "--results", str(workdir.parent), "--output", str(output)]
        assert main([*arguments, "--count", "1", *flags]) == 0
        with Image.open(output) as picture:
            widths.append(picture.width)
    assert widths[1] - widths[0] >= 240


def test_invalid_paths_raise_user_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        predict.find_images([str(tmp_path / "nowhere")])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty has no image"):
        predict.find_images([str(empty)])
    save(tmp_path / "one.png", 4, 4)
    save(tmp_path / "one.jpg", 4, 4)
    one, other = tmp_path / "one.png", tmp_path / "one.jpg"
    assert predict.find_images([str(one), str(one)]) == [one]

    def targets(inputs, folder):
        pages = [page for path in inputs for page in predict.list_pages(path)]
        return predict.targets_of(pages, inputs, folder, ("", "_overlay"))

    with pytest.raises(UserError, match=r"one\.png, made from .*one\.jpg, would overwrite"):
        targets([one, other], tmp_path / "out")
    with pytest.raises(UserError, match=r"would overwrite .*one\.png"):
        targets([one], tmp_path)
    with pytest.raises(UserError, match=r"would overwrite .*one\.png"):
        predict.targets_of(predict.list_pages(other), [one, other], tmp_path, [""])
    save(tmp_path / "one_overlay.webp", 4, 4)
    with pytest.raises(UserError, match=r"one_overlay\.png"):
        targets([one, tmp_path / "one_overlay.webp"], tmp_path / "out")


def test_images_of_all_suffixes_are_found_and_the_rest_is_named(tmp_path, capsys):
    names = ("a.gif", "b.jfif", "c.jp2", "D.JPEG", "e.avif")
    for name in (*names, "._a.gif", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert sorted(path.name for path in predict.find_images([str(tmp_path)])) == sorted(names)
    left_out = "left out, not an image: ._a.gif, gone.png, more.png/, notes.txt"
    assert capsys.readouterr().err == f"segjax: warning: {tmp_path}: {left_out}\n"
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"text has no image, but notes\.txt; expected AVIF, BMP"):
        predict.find_images([str(tmp_path / "text")])


def test_the_other_images_are_predicted_if_one_is_damaged(tmp_path, workdir, capsys):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    save(images / "good.png", 24, 32)
    whole = (images / "good.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "empty.png").write_bytes(b"")
    save(images / f"{'long' * 60}.png", 24, 32)
    frames = [Image.new("L", (32, 24), value) for value in (10, 200)]
    frames[0].save(images / "stack.tif", save_all=True, append_images=frames[1:])
    assert run([images], workdir, output) == 2
    captured = capsys.readouterr()
    assert f"3 label maps and overlays in {output}" in captured.out
    empty, cut, long, last = captured.err.splitlines()
    assert empty.startswith(f"segjax: image {images / 'empty.png'} cannot be read: it is damaged")
    assert cut.startswith(f"segjax: image {images / 'cut.png'} cannot be read: ")
    assert "names of its results have up to 252 bytes, expected at most 251; rename it" in long
    assert last == "segjax: 3 of 6 images failed, as said above"
    names = ("good", "stack_0", "stack_1")
    found = {path.name for path in output.iterdir()}
    assert found == {f"{name}{ending}.png" for name in names for ending in ("", "_overlay")}


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
def test_an_image_that_does_not_fit_into_memory_is_named(tmp_path, workdir, capsys, error):
    def fail(*_):
        raise error

    save(tmp_path / "image.png", 24, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "_predictor", lambda *_: fail)
        assert run([tmp_path / "image.png"], workdir, tmp_path / "out") == 2
    said = "image.png of 24x32 pixels does not fit into memory; scale it down or cut it"
    assert said in capsys.readouterr().err


def test_the_others_are_predicted_if_the_network_refuses_the_size_of_one(
    tmp_path, workdir, capsys, monkeypatch
):
    def predictor(variables, image):
        if image.shape[0] < 16:
            raise UserError("an image of 8x32 is too small")
        return [np.zeros(image.shape[:2], np.uint8)]

    for name, height in (("a", 8), ("b", 24)):
        save(tmp_path / f"{name}.png", height, 32)
    monkeypatch.setattr(predict, "_predictor", lambda *_: predictor)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    assert run(files, workdir, tmp_path / "out") == 2
    assert (tmp_path / "out" / "b.png").exists()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"segjax: image {files[0]}: an image of 8x32 is too small"
    assert said[1] == "segjax: 1 of 2 images failed, as said above"


def test_squashing_is_refused_for_a_run_that_squashed_nothing(tmp_path):
    config = change(default(), data__fit="letterbox")
    said = refusal(windows.require_squash, SimpleNamespace(config=config))
    assert said == "squash has no effect on a run with data.fit='letterbox'"
    windows.require_squash(SimpleNamespace(config=default()))


def test_workdir_without_run_is_one_line(tmp_path, capsys):
    save(tmp_path / "image.png", 4, 4)
    assert run([tmp_path / "image.png"], tmp_path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "is not the workdir of a run" in said
    assert said.count("\n") == 1


PREDICT = r"""
import re, sys
from segjax.cli.main import main
assert main(["predict", *sys.argv[1:]]) == 0
# Not that of `resource`, which begins with the memory of the process that started this one.
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""


def test_windows_over_a_large_image_take_little_memory(tmp_path, workdir):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels.repeat(64, 0).repeat(64, 1)).save(tmp_path / "large.jpg")
    command = [sys.executable, "-c", PREDICT, str(tmp_path / "large.jpg"), "--window", "512x512"]
    command += ["--overlap", "0.25", "--workdir", str(workdir), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "large.png") as label:
        assert label.size == (4096, 4096)
    assert int(done.stdout.split()[-1]) * 1024 < 1.5e9  # bytes, the largest resident set


def test_runs_on_other_labels_are_not_drawn_together(workdir, scenes_data_dir, tmp_path):
    content = json.loads((workdir / "config.json").read_text())
    del content["checksum"]
    content["data"]["splits"]["test"]["digest"] = "another"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{tmp_path} has other images or labels than {workdir}$"):
        predict.predict_test_images([workdir, tmp_path], 2, str(scenes_data_dir))


@pytest.mark.parametrize(
    ("named", "titles"),
    [
        ([("unet", "enet"), ("unet", "none")], ["enet", "none"]),
        ([("unet", "model=unet"), ("segnet", "enet")], ["unet", "segnet"]),
        (
            [("unet", "a"), ("segnet", "b"), ("segnet", "c")],
            ["unet", "segnet, b", "segnet, c"],
        ),
        ([("unet", "seed=0"), ("unet", "seed=0")], ["seed=0, runs/0", "seed=0, runs/1"]),
        (
            [("unet", "a"), ("segnet", "b"), ("segnet", "b")],
            ["unet", "segnet, b, runs/1", "segnet, b, runs/2"],
        ),
    ],
)
def test_titles_of_a_picture_tell_runs_apart(named, titles):
    workdirs = [Path("runs") / str(number) for number in range(len(named))]
    assert predict._titles(named, workdirs) == titles


def test_figures_and_report_show_curves_and_predictions(tmp_path, workdir, scenes_data_dir, capsys):
    predictions = predict.predict_test_images([workdir], 2, str(scenes_data_dir))
    ((_, labels),) = predictions.labels
    assert labels.shape == (2, 24, 32)
    for example, label in zip(predictions.examples, labels, strict=True):
        Image.fromarray(example["image"]).save(tmp_path / "image.png")
        assert run([tmp_path / "image.png"], workdir, tmp_path / "out") == 0
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "image.png")), label)

    chosen = ["--results", str(workdir), "--data-dir", str(scenes_data_dir), "--count", "2"]
    assert main(["figures", *chosen, "--output", str(tmp_path / "figures")]) == 0
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"learning_curves.svg", "predictions.png"} <= drawn
    assert main(["report", *chosen, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="cut"') == 2
    assert "No learning curves" not in page

    # Without checkpoints, as in a run copied from a cluster, only the predictions are missing.
    bare = tmp_path / "bare"
    shutil.copytree(workdir, bare, ignore=shutil.ignore_patterns("checkpoints"))
    chosen[1] = str(bare)
    assert main(["report", *chosen, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert 'class="cut"' not in page
    assert page.count("Not shown: ") == 1
    assert "No learning curves" not in page
    assert not (bare / "checkpoints").exists()
