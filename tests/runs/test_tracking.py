"""Test the trackers: Weights & Biases and TensorBoard."""

import json
import logging
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segjax import config as configs
from segjax.runs.samples import Samples
from segjax.runs.tracking import TensorBoard, Trackers, start, tags
from support.wandb_file import history, records

NAME, OVERRIDES = "a=1,seed=0", {"model.name": "segnet_basic"}


def config(**changed):
    found = configs.default()
    found.wandb.update({"project": "roads", "group": "sweep", "mode": "offline", **changed})
    return found


@pytest.fixture
def quiet_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield wandb
    wandb.teardown()


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 24, 32, 3), np.uint8)
    predictions = rng.integers(0, 3, (2, 24, 32), np.uint8)
    truths = np.where(rng.random((2, 24, 32)) < 0.2, 255, predictions).astype(np.uint8)
    return Samples(images, predictions, truths, Image.fromarray(images[0]))


def test_tags_are_model_dataset_and_overrides_truncated():
    config = {"model.name": "unet", "data.dataset": "camvid", "steps": 5}
    overrides = {"loss.name": "dice", "seed": 0, "data.path": "x" * 100}
    found = tags(config, overrides)
    assert found == ["unet", "camvid", "loss.name=dice", "seed=0", "data.path=" + "x" * 54]


def show(tracker, drawn):
    """Show one thing of each kind."""
    tracker.scalars(20, {"train/loss": np.float32(0.5), "val/mean_iou": 0.25})
    tracker.examples(20, drawn, ["Sky", "Road", "Pole"])
    tracker.scalars(40, {"train/loss": 0.4, "val/mean_iou": 0.125})
    tracker.table(40, "test/classes", ["class", "IoU"], [("Sky", 0.75), ("Pole", None)])


def test_offline_run_can_be_read_back(tmp_path, quiet_wandb, drawn):
    workdir = tmp_path / "run"
    workdir.mkdir()
    trackers = start(workdir, config(), NAME, OVERRIDES, 0)
    trackers.each(lambda tracker: show(tracker, drawn))
    # Repeated by a resumed run: below the step of W&B.
    trackers.each(lambda tracker: tracker.scalars(10, {"train/loss": 9.0}))
    trackers.finish(3)

    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    first, second = history(path)
    assert (first["_step"], first["train/loss"], first["val/mean_iou"]) == (20, 0.5, 0.25)
    assert (second["_step"], second["train/loss"]) == (40, 0.4)

    panel = first["val/examples"]
    assert (panel["_type"], panel["count"]) == ("images/separated", 2)
    media = path.parent / "files"
    for k in range(2):
        image = np.asarray(Image.open(media / panel["filenames"][k]))
        np.testing.assert_array_equal(image, drawn.images[k])
        for kind, masks in (("prediction", drawn.predictions), ("truth", drawn.truths)):
            mask = np.asarray(Image.open(media / panel["all_masks"][k][kind]["path"]))
            np.testing.assert_array_equal(mask, masks[k])
    table = json.loads((media / second["test/classes"]["path"]).read_text())
    assert table["columns"] == ["class", "IoU"]
    assert table["data"] == [["Sky", 0.75], ["Pole", None]]

    by_kind = {record.WhichOneof("record_type"): record for record in records(path)}
    assert by_kind["run"].run.project == "roads"
    assert by_kind["run"].run.run_group == "sweep"
    assert by_kind["run"].run.display_name == NAME
    tagged = ["segnet_basic", "streetscenes", "model.name=segnet_basic"]
    assert list(by_kind["run"].run.tags) == tagged
    assert by_kind["exit"].exit.exit_code == 3
    text = json.dumps([str(record) for record in records(path)])
    assert "void" in text
    assert "Pole" in text


def test_wandb_shows_the_best_value_of_each_validation_score(tmp_path, quiet_wandb):
    trackers = start(tmp_path, config(), NAME, OVERRIDES, 0)
    for step, value in enumerate((0.25, 0.5, 0.125)):
        values = {"val/mean_iou": value, "val/iou/Road": value, "train/loss": value}
        trackers.each(lambda tracker, step=step, values=values: tracker.scalars(step, values))
    trackers.finish(0)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history(path)  # waits for the end
    shown = {}
    for record in records(path):
        for item in record.summary.update:
            shown["".join(item.nested_key)] = json.loads(item.value_json)
    assert shown["val/mean_iou"] == shown["val/iou/Road"] == {"max": 0.5}
    assert shown["train/loss"] == 0.125


@pytest.mark.parametrize("asked", [False, True])
def test_the_model_is_an_artifact_on_request(tmp_path, quiet_wandb, monkeypatch, asked):
    workdir = tmp_path / "run"
    (workdir / "checkpoints/final/7/state").mkdir(parents=True)
    for name in ("config.json", "result.json", "checkpoints/final/7/state/array", "log.txt"):
        (workdir / name).write_text(name)
    trackers = start(workdir, config(artifact=asked), NAME, OVERRIDES, 0)
    kept = []
    run = trackers._active["W&B"]._run
    monkeypatch.setattr(run, "log_artifact", kept.append)
    trackers.each(lambda tracker: tracker.keep_model(workdir))
    trackers.finish(0)
    assert len(kept) == asked
    for artifact in kept:
        assert artifact.type == "model"
        expected = {"config.json", "result.json", "checkpoints/final/7/state/array"}
        assert set(artifact.manifest.entries) == expected


def test_second_start_continues_the_same_run(tmp_path, quiet_wandb):
    ids = []
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        workdir.mkdir(exist_ok=True)
        start(workdir, config(), NAME, OVERRIDES, 0).finish(0)
        ids.append((workdir / "wandb_id.txt").read_text().strip())
        runs = sorted((workdir / "wandb").glob(f"offline-run-*-{ids[-1]}/run-{ids[-1]}.wandb"))
        assert runs
    assert ids[0] == ids[1] != ids[2]


class Broken:
    """Stand-in for a tracker whose service has died."""

    calls = 0

    def fail(self, *_):
        self.calls += 1
        raise OSError("the service\nhas died")

    scalars = examples = finish = fail


def test_failing_tracker_is_one_warning_and_switched_off(caplog, drawn):
    broken, whole, seen = Broken(), Broken(), []
    whole.scalars = lambda *given: seen.append(given)
    trackers = Trackers()
    trackers.start("W&B", lambda: broken)
    trackers.start("TensorBoard", lambda: whole)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            trackers.each(lambda tracker, step=step: tracker.scalars(step, {"loss": 1.0}))
    assert broken.calls == 1
    assert len(seen) == 3
    assert caplog.messages == ["W&B is switched off for this run: OSError: the service has died"]
    trackers.finish(0)
    assert (broken.calls, whole.calls) == (1, 1)
    assert len(caplog.messages) == 2


def test_failing_start_is_one_warning(tmp_path, monkeypatch, caplog, quiet_wandb):
    def fail(**_):
        raise quiet_wandb.errors.UsageError("no API key")

    monkeypatch.setattr(quiet_wandb, "init", fail)
    trackers = start(tmp_path, config(), NAME, OVERRIDES, 0)
    trackers.each(lambda tracker: tracker.scalars(1, {"loss": 1.0}))
    trackers.finish(0)
    assert caplog.messages == ["W&B is switched off for this run: UsageError: no API key"]


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"a/b", b"a" * 65])
def test_a_damaged_id_is_one_warning_that_names_the_file(tmp_path, caplog, quiet_wandb, content):
    (tmp_path / "wandb_id.txt").write_bytes(content)
    start(tmp_path, config(), NAME, OVERRIDES, 0).finish(0)
    (message,) = caplog.messages
    assert f"{tmp_path}/wandb_id.txt holds" in message


def test_trackers_that_are_not_asked_for_are_not_imported(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from segjax import config\n"
        "from segjax.runs import tracking\n"
        "run = tracking.start(pathlib.Path(sys.argv[1]), config.default(), '', {}, 0)\n"
        "run.each(lambda tracker: tracker.scalars(1, {'loss': 1.0})); run.finish(0)\n"
        "assert not {'wandb', 'tensorboardX'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "module"), [("W&B", "wandb"), ("TensorBoard", "tensorboardX")])
def test_missing_package_is_one_warning(tmp_path, monkeypatch, caplog, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    asked = config()
    asked.tensorboard = True
    asked.wandb.mode = "offline" if module == "wandb" else "disabled"
    trackers = start(tmp_path, asked, NAME, OVERRIDES, 0)
    trackers.each(lambda tracker: tracker.scalars(1, {"loss": 1.0}))
    trackers.finish(0)
    (message,) = [message for message in caplog.messages if module in message]
    assert message.startswith(f"{name} is switched off for this run: ModuleNotFoundError")


def events(folder):
    """The events of all TensorBoard files of a folder, in order of their starts."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):  # records: length, its checksum, content, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += length + 16
    return found


def test_tensorboard_files_can_be_read_back(tmp_path, drawn):
    for start_step in (0, 40):
        board = TensorBoard(tmp_path, start_step)
        show(board, drawn) if start_step == 0 else board.scalars(50, {"train/loss": 0.25})
        board.finish(0)
    found = events(tmp_path)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in found
        for value in event.summary.value
        if value.HasField("simple_value")
    ]
    assert (20, "train/loss", 0.5) in scalars
    assert (40, "val/mean_iou", 0.125) in scalars
    assert (50, "train/loss", 0.25) in scalars
    panels = {value.tag: value for event in found for value in event.summary.value}
    image = panels["val/examples"].image
    assert (image.height, image.width, image.colorspace) == (24, 32, 3)
    (table,) = [value for name, value in panels.items() if name.startswith("test/classes")]
    assert b"| Sky | 0.75 |" in table.tensor.string_val[0]
    # TensorBoard hides what a killed start logged after the step at which the next resumes.
    assert [event.step for event in found if event.HasField("session_log")] == [1, 41]
