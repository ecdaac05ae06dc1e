"""Progress of runs, read from their run directories, and its printed tables."""

import dataclasses
import fcntl
import io
import json

import pytest
from rich.console import Console

from segjax import config as configs
from segjax.data.datasets import DatasetInfo
from segjax.errors import UserError
from segjax.sweep import display, grids, status
from segjax.sweep.status import Status
from segjax.system.files import write_whole
from support import toy_grid
from support.runs import tiny_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def config():
    return tiny_config("", steps=40, batch_size=4)


def save(folder, step):
    (folder / "checkpoints" / "latest" / str(step)).mkdir(parents=True)


def log(folder, steps, rate):
    """Write a metrics log whose first rate is low, as compilation makes it."""
    rows = [{"step": s, "train/images_per_second": 0.1 if s == 1 else rate} for s in steps]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 99')


def test_the_state_of_a_run_follows_from_its_files(folder, config):
    assert status.read_status(folder.parent / "none", config) == Status("new", 0, 40)
    assert status.read_status(folder, config) == Status("new", 0, 40)
    (folder / "log.txt").write_text("killed while it compiled\n")
    assert status.read_status(folder, config).state == "new"
    save(folder, 8)
    save(folder, 10)
    (folder / "checkpoints" / "latest" / "12.orbax-checkpoint-tmp").mkdir()  # being written
    assert status.read_status(folder, config) == Status("resumable", 10, 40)
    write_whole(folder / "error.txt", "step 20/40\nsegjax: loss nan at step 23\nW&B: synced\n")
    found = status.read_status(folder, config)
    assert found == Status("failed", 10, 40, cause="loss nan at step 23")
    write_whole(folder / "result.json", "{}")
    assert status.read_status(folder, config) == Status("finished", 40, 40)


@pytest.mark.parametrize("name", status.LOCKS)
def test_a_locked_run_is_running_and_its_log_tells_its_progress(folder, config, name):
    (folder / name).touch()
    log(folder, range(1, 13), rate=8.0)
    save(folder, 10)
    assert status.read_status(folder, config).state == "resumable"
    with (folder / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = status.read_status(folder, config)
    assert found == Status("running", 12, 40, seconds_per_step=0.5)
    assert found.seconds_left == 14.0
    assert status.read_status(folder, config).seconds_left is None


def test_reading_the_end_of_a_long_log_suffices(folder, config):
    log(folder, range(1, 20_000), rate=2.0)
    assert (folder / "metrics.jsonl").stat().st_size > 2**19
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status.read_status(folder, config) == Status(
            "running", 19_999, 40, seconds_per_step=2.0
        )


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("", "no output"),
        ("Traceback:\n  File\nValueError: no\n\n", "ValueError: no"),
        ("ValueError: no\nsrun: error: a: task 0: Exited with exit code 1\n", "ValueError: no"),
        (
            "srun: error: b: task 1: Out Of Memory\nsrun: launch/slurm: _step_signal: Terminating\n"
            "JaxRuntimeError: closed by peer\nsrun: error: a: task 0: Killed\n",
            "b: task 1: Out Of Memory",
        ),
        ("segjax: no data\nsegjax: process 0 of 2 cannot go on, as it says\n", "no data"),
        ("segjax: warning: no W&B\nsrun: error: a: task 1: Killed\n", "a: task 1: Killed"),
    ],
)
def test_the_cause_is_the_first_failure(output, cause):
    assert status.failure_cause(output) == cause


def test_the_time_left_follows_from_rates_and_costs():
    statuses = [
        Status("finished", 100, 100),
        Status("running", 50, 100, seconds_per_step=2.0),  # a cost of 200 takes 200 s
        Status("failed", 10, 100),
        Status("resumable", 25, 100),
        Status("new", 0, 100),
    ]
    costs = [200, 200, 999, 400, 600]
    assert status.time_left(statuses, costs, 1) == 100 + 300 + 600
    assert status.time_left(statuses, costs, 2) == 500
    assert status.time_left(statuses[:2], costs[:2], 8) == 100
    assert status.time_left(statuses[2:], costs[2:], 1) is None  # no rate is known


@pytest.fixture
def grid(tmp_path, monkeypatch):
    return grids.load_points(toy_grid.write(tmp_path, "", [0.1, 0.2]), {})


def test_a_dry_run_prints_parameters_macs_and_status(grid, tmp_path):
    save(tmp_path / grid[1].name, 2)
    (tmp_path / grid[2].name).mkdir()
    stored = {
        "config": {**configs.flat(grid[2].config), "batch_size": 2},
        "data": dataclasses.asdict(DatasetInfo("toy", ("a",), (), (0.5,), (0.5,), {}, (24, 32))),
        "experiment": "grid",
        "name": grid[2].name,
        "overrides": {},
        "command": "segjax train",
    }
    write_whole(tmp_path / grid[2].name / "config.json", json.dumps(stored))

    lines = display.render_plan(grid, status.read_statuses(grid, tmp_path)).splitlines()
    # 24x32 pixels of 9 x 3 x 4 + 4 x 11 MACs, three passes, 4 steps of 4 images.
    assert 3 * 4 * 4 * 24 * 32 * 152 == 5_603_328
    assert lines[0].split() == ["run", "parameters", "MACs", "status"]
    assert [line.split(maxsplit=4) for line in lines[1:5]] == [
        [grid[0].name, "175", "5.6", "M", "new"],
        [grid[1].name, "175", "5.6", "M", "resumable from step 2"],
        [grid[2].name, "175", "5.6", "M", "another config"],
        [grid[3].name, "175", "5.6", "M", "new"],
    ]
    assert lines[5] == (
        "4 runs: 1 resumable, 2 new, 1 another config; 22.4 M MACs of training, 19.6 M to do"
    )
    assert len(lines) == 6


def test_a_run_whose_images_its_model_does_not_take_is_named(grid, tmp_path):
    for point in grid:
        point.config.model.name = "deconvnet"
    with pytest.raises(UserError, match=rf"run {grid[0].name}: .*too small"):
        display.render_plan(grid, status.read_statuses(grid, tmp_path))


def make_runs(grid, workdir):
    """Make a finished, a running and a failed run; return the lock of the running one."""
    for point in grid[:3]:
        (workdir / point.name).mkdir()
    write_whole(workdir / grid[0].name / "result.json", "{}")
    log(workdir / grid[1].name, (1, 2), rate=0.4)
    write_whole(workdir / grid[2].name / "error.txt", "segjax: loss nan\n")
    lock = (workdir / grid[1].name / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def test_the_progress_table_has_a_line_for_each_run(grid, tmp_path):
    with make_runs(grid, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        text = display.render_progress(grid, status.read_statuses(grid, tmp_path))
    lines = [line.split(maxsplit=4) for line in text.splitlines()]
    assert lines[1] == [grid[0].name, "finished", "4/4"]
    assert lines[2] == [grid[1].name, "running", "2/4", "0.4", "20 s"]
    assert lines[3] == [grid[2].name, "failed", "0/4"]
    assert lines[4] == [grid[3].name, "new", "0/4"]
    assert text.splitlines()[5:] == [
        f"failed: {grid[2].name}: loss nan",
        "4 runs: 1 finished, 1 running, 1 failed, 1 new; about 1 min left",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_terminal_shows_a_live_table_and_a_file_plain_lines(grid, tmp_path):
    shown = {}
    for interactive in (True, False):
        console = Console(file=io.StringIO(), force_terminal=interactive, width=100)
        workdir = tmp_path / str(interactive)
        workdir.mkdir()
        with (
            make_runs(grid, workdir),
            display.Display(grid, workdir, 1, console) as screen,
        ):
            screen.refresh()
            screen.print_log("a log line")
            screen.print_line("it stays [red]as it is[/red]")
            screen.print_outcome("done")
        shown[interactive] = console.file.getvalue()
    assert shown[False] == "a log line\nit stays [red]as it is[/red]\n"
    terminal = shown[True]
    assert "a log line" not in terminal
    for text in (grid[1].name, "2/4", "0.4 images/s", "20 s left", grid[2].name, "failed"):
        assert text in terminal
    assert "4 runs: 1 finished, 1 running, 1 failed, 1 new; about 1 min left" in terminal
    assert "it stays [red]as it is[/red]" in terminal
    assert "done" in terminal
    assert grid[0].name not in terminal  # only counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1500, "1.5 k"), (5_603_328, "5.6 M"), (1.23e15, "1.23 P")],
)
def test_quantities_have_si_prefixes(number, text):
    assert display.format_quantity(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min")),
        *((100_000, "1 d 04 h"), (172_799, "2 d 00 h")),
    ],
)
def test_durations_are_readable(seconds, text):
    assert display.format_duration(seconds) == text
