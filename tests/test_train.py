"""Training as a process: killed, stopped, restarted, refused."""

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segjax import errors, models, results, train
from segjax.cli import main
from segjax.errors import UserError
from segjax.results.counts import Counts
from segjax.runs.metrics_log import read_metrics
from segjax.system import processor
from segjax.system.files import write_whole
from support.runs import (
    DESCRIPTION,
    OneLayer,
    arrays,
    assert_same_bits,
    assert_same_run,
    finish,
    saved_steps,
    small_config,
    start,
    tiny_config,
    without_time,
)
from support.wandb_file import history

STEPS = 40

CONFIG = """
from support.runs import tiny_config

def get_config():
    return tiny_config("", steps={steps}, augment__scale=(1.0, 1.0))  # what compiles slowest
"""


class Commands:
    """`segjax train` on the tiny run, in processes that share their compilations."""

    def __init__(self, folder, data_dir):
        self.folder, self.data_dir = folder, data_dir
        self.config = folder / "tiny.py"
        write_whole(self.config, CONFIG.format(steps=STEPS))

    def start(self, workdir, num_devices, **changed):
        changed = {"data.data_dir": self.data_dir, "num_devices": num_devices} | changed
        overrides = [f"--config.{name}={value}" for name, value in changed.items()]
        return start(
            ["train", "--config", self.config, "--workdir", workdir, *overrides],
            PYTHONPATH=str(Path(__file__).parent),
            XLA_FLAGS="",  # compiled as users have it
            JAX_COMPILATION_CACHE_DIR=str(self.folder / "compiled"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            WANDB_SILENT="true",
            WANDB_CACHE_DIR=str(self.folder / "wandb_cache"),
        )

    def left_alone(self, num_devices):
        """The workdir of a whole run, made once for all tests."""
        workdir = self.folder / f"left_alone_{num_devices}"
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (workdir / "result.json").exists():
                finish(self.start(workdir, num_devices, **{"wandb.mode": "offline"}))
        return workdir


@pytest.fixture(scope="session")
def commands(scenes_data_dir):
    folder = scenes_data_dir.parent / "training"
    folder.mkdir(exist_ok=True)
    return Commands(folder, scenes_data_dir)


def newest(workdir, kind="latest"):
    return max(saved_steps(workdir, kind), default=0)


def is_saving(workdir, kind):
    with contextlib.suppress(FileNotFoundError):  # it goes while one looks
        return any("tmp" in name for name in os.listdir(workdir / "checkpoints" / kind))
    return False


def wait_until(condition, process, timeout=120):
    """Looks every few milliseconds; a process that ends before is a failure of the test."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            out, error = process.communicate()
            raise AssertionError(f"ended with {process.returncode} too early: {out}{error}")
        assert time.monotonic() < deadline
        time.sleep(0.003)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_kills_leave_no_trace(commands, tmp_path, num_devices):
    reference = commands.left_alone(num_devices)
    workdir = tmp_path / "run"
    chance = random.Random(num_devices)

    def reached(step):
        return lambda: newest(workdir) >= step

    def writes(kind, above=-1):
        return lambda: newest(workdir) > above and is_saving(workdir, kind)

    samples = workdir / "samples"
    instants = [  # what is waited for, and the longest rest after it, in seconds
        (lambda: True, 4.0),  # while it imports and compiles
        (writes("latest"), 0.0),  # the very first
        (reached(4), 0.3),
        (lambda: samples.exists() and is_saving(workdir, "latest"), 0.01),
        (writes("best"), 0.005),
        (reached(chance.randrange(14, 20)), 0.3),
        (writes("latest", 20), 0.02),
        (reached(chance.randrange(26, 32)), 0.3),
        (reached(STEPS), 0.1),  # nothing but the test is left
        (writes("final"), 0.01),
    ]
    if num_devices == 2:  # what a kill leaves on disk does not depend on the number
        instants = instants[1::2]
    cut_off = 0
    for condition, rest in instants:
        process = commands.start(workdir, num_devices)
        wait_until(condition, process)
        time.sleep(chance.uniform(0, rest))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (workdir / "result.json").exists()
        cut_off += any(is_saving(workdir, kind) for kind in ("latest", "best", "final"))
    assert cut_off >= len(instants) // 3  # checkpoints that were being written
    finish(commands.start(workdir, num_devices))
    assert_same_run(workdir, reference)
    leftover = [path for path in workdir.rglob("*tmp*") if "wandb" not in str(path)]
    assert leftover == []


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_being_asked_to_stop_leaves_no_trace(commands, tmp_path, num_devices):
    reference = commands.left_alone(num_devices)
    workdir = tmp_path / "run"
    for number, at in ((signal.SIGTERM, 3), (signal.SIGINT, 12), (signal.SIGTERM, 25)):
        process = commands.start(workdir, num_devices)
        log = workdir / "metrics.jsonl"
        wait_until(
            lambda log=log, at=at: log.exists() and f'"step": {at},' in log.read_text(), process
        )
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number, error
        (line,) = [line for line in error.splitlines() if line.startswith("segjax: ")]
        name = signal.Signals(number).name
        said = re.fullmatch(rf"segjax: stopped by {name} at step (\d+), all is saved", line)
        assert said, line
        assert "Traceback" not in error
        assert newest(workdir) == int(said[1]) >= at
        assert without_time(workdir)[-1]["step"] == int(said[1])
    finish(commands.start(workdir, num_devices))
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_a_run_leaves_all_that_it_shows_on_disk(commands):
    workdir = commands.left_alone(1)
    rows = read_metrics(workdir / "metrics.jsonl")
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert trained[-1]["train/loss"] < trained[0]["train/loss"]
    assert {"train/global_accuracy", "train/gradient_norm", "train/learning_rate"} <= set(
        trained[0]
    )
    validated = [row for row in rows if "val/mean_iou" in row]
    assert [row["step"] for row in validated] == [10, 20, 30, 40]
    (row,) = results.read([workdir])
    ious = [validated[-1][f"val/iou/{name}"] for name in row["class_names"]]
    np.testing.assert_allclose(np.mean(ious), validated[-1]["val/mean_iou"])
    best = max(validated, key=lambda row: row["val/mean_iou"])
    assert row["best_step"] == best["step"] == newest(workdir, "best")
    assert (row["steps"], row["split"], row["num_images"]) == (STEPS, "test", 5)
    assert (row["batch_norm"], row["experiment"], row["device"]) == ("recomputed", "tiny", "cpu x1")
    assert (row["epochs"], row["processor"]) == (STEPS * 4 / 10, processor.name())
    assert row["overrides"] == {}  # where data lies and on what a run is done are none
    names = sorted(os.listdir(workdir / "samples"))
    assert names == [f"{step:07d}.png" for step in (10, 20, 30, 40)]


@pytest.mark.slow
def test_weights_and_biases_has_the_whole_run(commands):
    workdir = commands.left_alone(2)
    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    logged = {row["_step"]: row for row in history(path)}
    for row in read_metrics(workdir / "metrics.jsonl"):
        for name, value in row.items():
            if name != "step":
                assert logged[row["step"]][name] == value
    assert "val/iou/Road" in logged[10]
    (result,) = results.read([workdir])
    assert logged[STEPS]["test/mean_iou"] == result["mean_iou"]
    for step in (10, 20, 30, 40):
        panel = logged[step]["val/examples"]
        assert panel["count"] == 4
        for masks in panel["all_masks"]:
            for kind in ("prediction", "truth"):
                assert (path.parent / "files" / masks[kind]["path"]).is_file()


@pytest.mark.slow
def test_a_finished_run_is_left_alone(commands):
    workdir = commands.left_alone(1)

    def everything():
        files = [path for path in workdir.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = everything()
    out = finish(commands.start(workdir, 1))
    assert out.splitlines()[-1].startswith("test G ")
    after = everything()
    for found in (before, after):
        found.pop(workdir / ".lock")
    assert after == before


@pytest.fixture
def one_layer(monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)


def fake_evaluator(values, stop_at=None):
    """Stands for the evaluator: scores mIoU `values`, one a call, and may ask to stop at one."""
    calls = iter(enumerate(values))

    def evaluate(variables, examples, title=None, between=None, boundaries=False):
        number, value = next(calls)
        if number == stop_at:
            signal.raise_signal(signal.SIGTERM)
        confusion = np.zeros((1, 11, 11), np.int32)
        confusion[0, 0, :2] = round(1100 * value), 1100 - round(1100 * value)
        return Counts(confusion, np.zeros((1, 11, 3), np.int64))

    return lambda run: evaluate


def test_the_best_survives_a_restart(scenes_data_dir, tmp_path, one_layer, monkeypatch):
    config = small_config(scenes_data_dir, steps=8)
    monkeypatch.setattr(train, "build_evaluator", fake_evaluator([0.2, 0.6, 0.4], stop_at=2))
    with pytest.raises(errors.Stopped, match="stopped by SIGTERM at step 6") as stopped:
        train.train(config, tmp_path, DESCRIPTION)
    assert stopped.value.status == 143
    best = arrays(tmp_path, "best", 4)
    monkeypatch.setattr(train, "build_evaluator", fake_evaluator([0.5, 0.9]))
    row = train.train(config, tmp_path, DESCRIPTION)
    assert (row["best_step"], row["steps"]) == (4, 8)
    assert saved_steps(tmp_path, "best") == [4]
    assert_same_bits(arrays(tmp_path, "best"), best)
    tested = arrays(tmp_path, "final")
    for name, x in tested.items():
        if "params" in name:  # of the averaged variables
            np.testing.assert_array_equal(x, best[f"['ema']{name}"], err_msg=name)


@pytest.mark.parametrize(("metric", "step"), [("mean_iou", 2), ("class_accuracy", 4)])
def test_the_metric_of_the_config_selects_the_best(
    scenes_data_dir, tmp_path, one_layer, monkeypatch, metric, step
):
    # Of 1010 pixels: all of class 0 and none of class 1 right, or 800 of the one and all 10 of the
    # other; mean IoU prefers the first, class accuracy the second.
    found = iter([[[1000, 0], [10, 0]], [[800, 200], [0, 10]]])

    def evaluate(variables, examples, title=None, between=None, boundaries=False):
        confusion = np.zeros((1, 11, 11), np.int32)
        confusion[0, :2, :2] = next(found, [[1000, 0], [10, 0]])
        return Counts(confusion, np.zeros((1, 11, 3), np.int64))

    monkeypatch.setattr(train, "build_evaluator", lambda run: evaluate)
    config = small_config(scenes_data_dir, best_metric=metric)
    assert train.train(config, tmp_path, DESCRIPTION)["best_step"] == step


BOTH_PLACEMENTS = """
import sys
from pathlib import Path
from support.runs import DESCRIPTION, OneLayer, small_config
from segjax import models, train

models.MODELS["one_layer"] = OneLayer
data_dir, folder, num_devices, steps = sys.argv[1:]
for placement in ("device", "stream"):
    changed = {"num_devices": int(num_devices), "steps": int(steps), "steps_per_dispatch": 2}
    config = small_config(data_dir, data__placement=placement, **changed)
    train.train(config, Path(folder) / placement, DESCRIPTION)
"""


@pytest.mark.parametrize(("num_devices", "steps"), [(1, 5), (2, 4)])
@pytest.mark.slow
def test_streamed_batches_train_to_the_same_bits(scenes_data_dir, tmp_path, num_devices, steps):
    """In a process of its own: two programs agree to the bit as users compile them."""
    subprocess.run(
        [sys.executable, "-c", BOTH_PLACEMENTS]
        + [str(argument) for argument in (scenes_data_dir, tmp_path, num_devices, steps)],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parent),
            "XLA_FLAGS": "",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
        },
        check=True,
    )
    assert_same_bits(arrays(tmp_path / "device", "latest"), arrays(tmp_path / "stream", "latest"))
    assert_same_bits(arrays(tmp_path / "device", "final"), arrays(tmp_path / "stream", "final"))
    assert without_time(tmp_path / "device") == without_time(tmp_path / "stream")


@pytest.mark.slow
def test_a_streaming_run_goes_on_where_it_stopped(
    scenes_data_dir, tmp_path, one_layer, monkeypatch
):
    config = small_config(scenes_data_dir, data__placement="stream", steps=8, eval_every=3)
    train.train(config, tmp_path / "whole", DESCRIPTION)
    with monkeypatch.context() as patch:
        patch.setattr(train, "build_evaluator", fake_evaluator([0.0], stop_at=0))
        with pytest.raises(errors.Stopped, match="at step 3,"):
            train.train(config, tmp_path / "parts", DESCRIPTION)
    train.train(config, tmp_path / "parts", DESCRIPTION)
    assert_same_bits(arrays(tmp_path / "whole", "latest"), arrays(tmp_path / "parts", "latest"))


@pytest.fixture
def command(scenes_data_dir, tmp_path, one_layer, capsys):
    """`segjax train` in this process on the small run: its exit status and standard error."""
    (tmp_path / "small.py").write_text(
        "from support.runs import small_config\n\ndef get_config():\n    return small_config('')\n"
    )

    def run(**changed):
        fields = {"data.data_dir": scenes_data_dir} | changed
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        arguments = ["--config", tmp_path / "small.py", "--workdir", tmp_path / "run", *overrides]
        capsys.readouterr()
        status = main.main(["train", *map(str, arguments)])
        return status, capsys.readouterr().err

    return run


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(
    command, tmp_path, monkeypatch
):
    few = {"checkpoint_every": 1, "steps": 8, "log_every": 1}
    monkeypatch.setattr("segjax.config.digest", lambda _: "the same for any config")
    monkeypatch.setattr(train, "build_evaluator", fake_evaluator([0.1], stop_at=0))
    assert command(**few)[0] == 143
    assert saved_steps(tmp_path / "run", "latest") == [1, 2]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["config"]["optimizer.learning_rate"] = 1e30
    del stored["checksum"]
    write_whole(tmp_path / "run" / "config.json", json.dumps(stored))
    status, error = command(**few, **{"optimizer.learning_rate": 1e30})
    assert status == 1
    # Step 3 ruins the parameters, which step 4 finds: of the checkpoints 2 and 3 the first is good.
    (line,) = error.splitlines()
    assert re.fullmatch(r"segjax: .*loss \S+, gradient norm \S+ at step 4; .*", line), line
    assert line.endswith(f"the last good checkpoint is {tmp_path}/run/checkpoints/latest/2"), line
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_loss_that_is_never_finite_says_that_there_is_no_good_checkpoint(command, tmp_path):
    status, error = command(**{"optimizer.learning_rate": 1e30, "checkpoint_every": 1})
    assert status == 1
    (line,) = error.splitlines()
    assert line.endswith(" at step 2; no good checkpoint was saved")


def test_another_config_in_a_workdir_is_refused(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "build_evaluator", fake_evaluator([0.1], stop_at=0))
        assert command()[0] == 143
    described = (tmp_path / "run" / "config.json").read_bytes()
    expected = (
        f"segjax: workdir {tmp_path}/run holds a run of another config: "
        "optimizer.learning_rate is 0.5, was 0.05\n"
    )
    assert command(**{"optimizer.learning_rate": 0.5}) == (2, expected)
    assert (tmp_path / "run" / "config.json").read_bytes() == described
    status, error = command(num_devices=2, log_every=3)  # these do not change the numbers
    assert status == 0, error
    assert command(**{"optimizer.learning_rate": 0.5}) == (2, expected)  # when it is finished too
    lines = (tmp_path / "run" / "phases.jsonl").read_text().splitlines()
    phases = [json.loads(line) for line in lines]
    assert phases[-1]["phase"] == "test"
    assert sum(row["steps"] for row in phases) == small_config("").steps


def test_a_workdir_in_use_is_refused(command, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        expected = f"segjax: workdir {tmp_path}/run is in use by another process\n"
        assert command() == (2, expected)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_override_of_batch_norm_needs_a_model_with_it(tmp_path, scenes_data_dir):
    config = tiny_config(scenes_data_dir)
    config.model.name, config.model.options.width = "unet", 2
    config.recompute_batch_norm = False
    description = dataclasses.replace(DESCRIPTION, overrides={"recompute_batch_norm": False})
    with pytest.raises(UserError, match="model unet has no batch normalization"):
        train.train(config, tmp_path, description)
    assert not (tmp_path / "config.json").exists()
