"""Sweeps: names, refusals, and real runs of which one is broken."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from segjax import results, sweep, tables
from segjax.errors import UserError

FILE = """
from segjax.config import default

def get_config():
    config = default()
    config.model.options.width = 4
    config.data.resolution = (24, 32)
    config.data.data_dir = "{data_dir}"
    config.batch_size = config.eval_batch_size = 4
    config.num_devices = 1
    config.steps = config.eval_every = config.checkpoint_every = 2
    return config

def sweep():
    for rate in {rates}:
        for seed in (0, 1):
            yield {{"optimizer.learning_rate": rate, "seed": seed}}
"""


def write(tmp_path, scenes_data_dir, rates):
    file = tmp_path / "grid.py"
    file.write_text(FILE.format(data_dir=scenes_data_dir, rates=rates))
    return str(file)


def segjax(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "segjax", *map(str, arguments)], capture_output=True, text=True
    )


def test_names_are_made_of_the_overrides():
    assert sweep.run_name({"loss.class_weights": "none", "seed": 0}) == (
        "loss.class_weights=none,seed=0"
    )
    assert sweep.run_name({"augment.scale": (0.5, 2.0)}) == "augment.scale=0.5x2.0"
    assert "/" not in sweep.run_name({"data.data_dir": "../up"})
    assert sweep.run_name({}) == "default"


def test_points_have_their_own_overrides_and_the_common_ones(tmp_path):
    spec = write(tmp_path, "", [0.1, 0.2])
    points = sweep.points(spec, {"steps": "4"})
    assert [point.name for point in points] == [
        f"optimizer.learning_rate={rate},seed={seed}" for rate in (0.1, 0.2) for seed in (0, 1)
    ]
    assert points[3].overrides == {"steps": "4", "optimizer.learning_rate": 0.2, "seed": 1}


@pytest.mark.parametrize(
    ("rates", "overrides", "said"),
    [
        ([0.1, 0.1], {}, "two runs"),
        ([], {}, "is empty"),
        ([0.1], {"seed": "3"}, "varies it"),
        ([-1.0], {}, "not negative"),
        ([0.1], {"stepz": "3"}, "did you mean 'steps'"),
        ([0.1], {"model.name": "segnets"}, "unknown model 'segnets'; known: "),
        ([0.1], {"model.options.depth": "3"}, "unknown option 'depth'"),
        ([0.1], {"data.dataset": "kitti"}, "unknown data.dataset 'kitti'; known: camvid"),
        ([0.1], {"optimizer.name": "lion"}, "unknown optimizer.name 'lion'; known: sgd, "),
        ([0.1], {"optimizer.schedule": "step"}, "unknown optimizer.schedule 'step'"),
        ([0.1], {"loss.class_weights": "inverse"}, "unknown loss.class_weights 'inverse'"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(tmp_path, rates, overrides, said):
    spec = write(tmp_path, "", rates)
    with pytest.raises(UserError, match=said):
        sweep.points(spec, overrides)


def test_a_config_without_a_grid_is_refused(tmp_path):
    file = tmp_path / "single.py"
    file.write_text("from segjax.config import default as get_config\n")
    with pytest.raises(UserError, match=r"has no sweep\(\)"):
        sweep.points(str(file), {})


def test_a_dry_run_prints_commands_and_writes_nothing(tmp_path, scenes_data_dir):
    spec = write(tmp_path, scenes_data_dir, [0.1])
    done = segjax("sweep", "--config", spec, "--workdir", tmp_path / "runs", "--dry-run")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"segjax train --config {spec} --workdir ")
    assert lines[1].endswith("--config.seed=1")
    assert not (tmp_path / "runs").exists()


def test_a_broken_run_is_recorded_and_the_rest_goes_on(tmp_path, scenes_data_dir):
    spec, runs = write(tmp_path, scenes_data_dir, [1e30, 0.1]), tmp_path / "runs"
    command = ("sweep", "--config", spec, "--workdir", runs)
    done = segjax(*command)
    assert done.returncode == 1, done.stderr
    assert "2 of 4 runs are finished" in done.stdout
    for seed in (0, 1):
        said = (runs / f"optimizer.learning_rate=1e+30,seed={seed}" / "error.txt").read_text()
        assert "at step 2" in said
    finished = sorted(runs.rglob("result.json"))
    assert [path.parent.name for path in finished] == [
        f"optimizer.learning_rate=0.1,seed={seed}" for seed in (0, 1)
    ]
    summaries = tables.summarise(results.read([runs]))
    assert [summary.seeds for summary in summaries] == [(0, 1)]
    assert json.loads(finished[0].read_text())["overrides"] == {
        "optimizer.learning_rate": 0.1,
        "seed": 0,
    }

    before = [path.stat().st_mtime_ns for path in finished]
    again = segjax(*command)
    assert again.returncode == 1
    assert again.stdout.count("finished already") == 2
    assert [path.stat().st_mtime_ns for path in finished] == before

    # What is there is no longer what is asked for: said, and not taken for finished.
    changed = segjax(*command, "--config.log_every=1", "--config.batch_size=8")
    assert changed.returncode == 2
    assert "another config: batch_size is 8, was 4" in changed.stderr


def test_a_stopped_sweep_goes_on(tmp_path, scenes_data_dir):
    spec, runs = write(tmp_path, scenes_data_dir, [0.1]), tmp_path / "runs"
    command = [
        *(sys.executable, "-m", "segjax", "sweep", "--config", spec, "--workdir", str(runs)),
        "--config.steps=200",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = runs / "optimizer.learning_rate=0.1,seed=0"
    deadline = time.monotonic() + 120
    while not list(first.glob("checkpoints/latest/[0-9]*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped" in output
    assert not (first / "result.json").exists()
    assert not (runs / "optimizer.learning_rate=0.1,seed=1").exists()

    # The run that was stopped goes on from its checkpoint, after a SIGKILL of the sweep as well.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stored = (first / "metrics.jsonl").stat().st_size
    while (first / "metrics.jsonl").stat().st_size <= stored:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from step" in done.stdout
    assert [row["steps"] for row in results.read([runs])] == [200, 200]
