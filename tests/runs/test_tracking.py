"""Test `metrics.jsonl` and the logging to Weights & Biases."""

import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segjax.errors import UserError
from segjax.runs.tracking import MetricsLog, read_metrics, start_wandb, tags
from support.wandb_file import history, records

OPTIONS = {
    "project": "roads",
    "group": "sweep",
    "name": "a=1,seed=0",
    "config": {"a": {"b": 1}},
    "tags": ["segnet_basic", "camvid", "a=1"],
}


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.write(10, {"train/loss": np.float32(0.1), "images": np.int64(2**40)})
        log.write(10, {"val/iou/Road": 0.25})
        assert read_metrics(path)[-1] == {"step": 10, "val/iou/Road": 0.25}  # while the log is open
    assert read_metrics(path)[0] == {
        "step": 10,
        "train/loss": float(np.float32(0.1)),
        "images": 2**40,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_is_null_on_disk_and_nan_when_read(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.write(1, {"loss": np.float32(value)})
    assert path.read_text() == '{"step": 1, "loss": null}\n'
    assert math.isnan(read_metrics(path)[0]["loss"])


def test_resumed_log_equals_uninterrupted_log(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def go_on(start, stop):
        with MetricsLog(path, start) as log:
            for step in range(start, stop):
                if step == 0:
                    log.write(0, {"val/mean_iou": 0.0})
                log.write(step + 1, {"loss": 1 / (step + 1)})
                if step % 2:
                    log.write(step + 1, {"val/mean_iou": step / 10})

    go_on(0, 6)
    whole = path.read_bytes()
    for killed_after in range(len(whole) + 1):
        for start in (0, 3):
            if whole[:killed_after].count(b"\n") < 5 and start == 3:
                continue  # the checkpoint of step 3 is written after these rows
            path.write_bytes(whole[:killed_after])
            go_on(start, 6)
            assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_incomplete_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}')
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "lo', "[1]", '{"loss": 1}', '{"step": "1"}', "", "9" * 5000, "[" * 100_000],
)
def test_damaged_line_is_named_with_its_file(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    for call in (read_metrics, lambda path: MetricsLog(path, 3)):
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged, expected a row"):
            call(path)


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        read_metrics(tmp_path / "missing.jsonl")


@pytest.fixture
def quiet_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield wandb
    wandb.teardown()


def test_tags_are_model_dataset_and_overrides_truncated():
    config = {"model.name": "unet", "data.dataset": "camvid", "steps": 5}
    overrides = {"loss.name": "dice", "seed": 0, "data.path": "x" * 100}
    found = tags(config, overrides)
    assert found == ["unet", "camvid", "loss.name=dice", "seed=0", "data.path=" + "x" * 54]


def test_offline_run_can_be_read_back(tmp_path, quiet_wandb):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 24, 32, 3), np.uint8)
    predictions = rng.integers(0, 3, (2, 24, 32), np.uint8)
    truths = np.where(rng.random((2, 24, 32)) < 0.2, 255, predictions).astype(np.uint8)
    workdir = tmp_path / "run"
    run = start_wandb(workdir, mode="offline", **OPTIONS)
    run.log_scalars(20, {"train/loss": np.float32(0.5)})
    run.log_scalars(20, {"val/iou/Road": 0.25})
    run.log_masks(20, "val/examples", images, predictions, truths, ["Sky", "Road", "Pole"])
    run.log_scalars(10, {"train/loss": 9.0})  # repeated by a resumed run: below the step of W&B, 20
    run.log_scalars(40, {"train/loss": 0.4})
    run.finish(3)

    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    first, second = history(path)
    assert (first["_step"], first["train/loss"], first["val/iou/Road"]) == (20, 0.5, 0.25)
    assert (second["_step"], second["train/loss"]) == (40, 0.4)

    panel = first["val/examples"]
    assert (panel["_type"], panel["count"]) == ("images/separated", 2)
    media = path.parent / "files"
    for k in range(2):
        drawn = np.asarray(Image.open(media / panel["filenames"][k]))
        np.testing.assert_array_equal(drawn, images[k])
        for kind, masks in (("prediction", predictions), ("truth", truths)):
            mask = np.asarray(Image.open(media / panel["all_masks"][k][kind]["path"]))
            np.testing.assert_array_equal(mask, masks[k])

    by_kind = {record.WhichOneof("record_type"): record for record in records(path)}
    assert by_kind["run"].run.project == "roads"
    assert by_kind["run"].run.run_group == "sweep"
    assert by_kind["run"].run.display_name == "a=1,seed=0"
    assert list(by_kind["run"].run.tags) == OPTIONS["tags"]
    assert by_kind["exit"].exit.exit_code == 3
    config = json.dumps([str(record) for record in records(path)])
    assert "void" in config
    assert "Pole" in config


def test_second_start_continues_the_same_run(tmp_path, quiet_wandb):
    ids = []
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        run = start_wandb(workdir, mode="offline", **OPTIONS)
        run.finish(0)
        ids.append((workdir / "wandb_id.txt").read_text().strip())
        runs = sorted((workdir / "wandb").glob(f"offline-run-*-{ids[-1]}/run-{ids[-1]}.wandb"))
        assert runs
    assert ids[0] == ids[1] != ids[2]


class Broken:
    """Stand-in for a W&B run whose service has died."""

    step = 0
    calls = 0

    def log(self, *_, **__):
        self.calls += 1
        raise OSError("the service\nhas died")

    def finish(self, **_):
        self.calls += 1
        raise OSError("the service has died")


def test_failing_log_is_one_warning_and_turns_wandb_off(tmp_path, monkeypatch, caplog, quiet_wandb):
    broken = Broken()
    monkeypatch.setattr(quiet_wandb, "init", lambda **_: broken)
    run = start_wandb(tmp_path, mode="offline", **OPTIONS)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            run.log_scalars(step, {"loss": 1.0})
        run.log_masks(3, "val/examples", [], [], [], [])
        run.finish(0)
    assert broken.calls == 1
    assert caplog.messages == [
        "W&B is switched off for this run: OSError: the service has died",
    ]


def test_failing_start_or_finish_is_one_warning(tmp_path, monkeypatch, caplog, quiet_wandb):
    def fail(**_):
        raise quiet_wandb.errors.UsageError("no API key")

    monkeypatch.setattr(quiet_wandb, "init", fail)
    run = start_wandb(tmp_path, mode="online", **OPTIONS)
    run.log_scalars(1, {"loss": 1.0})
    run.finish(0)
    assert caplog.messages == ["W&B is switched off for this run: UsageError: no API key"]
    caplog.clear()
    monkeypatch.setattr(quiet_wandb, "init", lambda **_: Broken())
    start_wandb(tmp_path, mode="online", **OPTIONS).finish(0)
    assert len(caplog.messages) == 1


def test_disabled_mode_imports_and_writes_nothing(tmp_path):
    script = (
        "import sys\n"
        "from segjax.runs.tracking import start_wandb\n"
        "options = dict.fromkeys(('project', 'group', 'name'), '') | {'config': {}}\n"
        "run = start_wandb(sys.argv[1], mode='disabled', **options)\n"
        "run.log_scalars(1, {'loss': 1.0}); run.finish(0)\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_missing_wandb_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    start_wandb(tmp_path, mode="offline", **OPTIONS).log_scalars(1, {"loss": 1.0})
    assert len(caplog.messages) == 1
    assert "wandb" in caplog.messages[0]
