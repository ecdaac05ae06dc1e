"""Sweeps on this machine, with tiny real runs and with stand-ins for `segjax train`."""

import contextlib
import fcntl
import functools
import io
import json
import os
import random
import re
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from segjax import config as configs
from segjax import results
from segjax.cli.main import main
from segjax.data.datasets import DatasetInfo, SplitInfo
from segjax.errors import UserError
from segjax.results.summary import summarize
from segjax.runs import experiment
from segjax.runs.experiment import Experiment
from segjax.runs.metrics_log import read_metrics
from segjax.sweep import grids, local, slurm_script
from segjax.sweep.status import is_in_use
from segjax.system import locks
from support import toy_grid
from support.runs import DESCRIPTION, finish

# Stand-in for `segjax train`: logs its name, and executes the file `do` in its run directory.
FAKE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
log = folder.parent / "log"
def note(event):
    with log.open("a") as file:
        file.write(event + " " + folder.name + "\\n")
note("begin")
print("devices", os.environ.get("JAX_NUM_CPU_DEVICES"), "cores", {cores}, flush=True)
exec((folder / "do").read_text() if (folder / "do").exists() else "")
(folder / "result.json").write_text("{{}}")
print("test G 1.0%")
note("end")
"""


SPLIT = SplitInfo(1, (5, 4), 0, (9, 9), (0.5,), (0.5,))
SPLITS = dict.fromkeys(("train", "val", "test"), SPLIT)
INFO = DatasetInfo("tiny", ("a", "b"), (), (0.5,), (0.5,), SPLITS, (24, 32))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Provide `run`, which is `local.run` on four stand-ins, and `do`, which sets what one does.

    `run` returns the exit status and the output; `log` returns the (event, name) pairs logged.
    """
    monkeypatch.setattr(local, "_CHILD", FAKE)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.01)
    spec = toy_grid.write(tmp_path, "", [1, 2])
    grid = grids.load_points(spec, {})
    workdir = tmp_path / "runs"

    class StandIn:
        folders = tuple(workdir / point.name for point in grid)

        def do(self, number, code):
            self.folders[number].mkdir(parents=True, exist_ok=True)
            (self.folders[number] / "do").write_text(code)

        def run(self, jobs=1, interactive=False, time_limit=None):
            console = Console(file=io.StringIO(), force_terminal=interactive, width=120)
            status = local.run(spec, grid, workdir, jobs, console, time_limit)
            return status, console.file.getvalue()

        def log(self):
            return [tuple(line.split()) for line in (workdir / "log").read_text().splitlines()]

    return StandIn()


def names(stand_in, *numbers):
    return [stand_in.folders[number].name for number in numbers]


def test_unfinished_runs_are_trained_one_after_the_other(stand_in):
    assert stand_in.run()[0] == 0
    expected = [(what, name) for name in names(stand_in, 0, 1, 2, 3) for what in ("begin", "end")]
    assert stand_in.log() == expected
    (stand_in.folders[2] / "result.json").unlink()
    status, said = stand_in.run()
    assert status == 0
    assert stand_in.log()[8:] == expected[4:6]
    assert [line for line in said.splitlines() if "devices" not in line] == [
        *(f"[{n}/4] {stand_in.folders[n - 1].name}: finished already" for n in (1, 2)),
        f"[3/4] {stand_in.folders[2].name}",
        "[3/4] test G 1.0%",
        f"[4/4] {stand_in.folders[3].name}: finished already",
        f"4 of 4 runs are finished in {stand_in.folders[0].parent}",
    ]
    # log.txt keeps the output of all starts.
    assert (stand_in.folders[2] / "log.txt").read_text().count("test G") == 2


def test_jobs_is_the_number_of_runs_at_a_time(stand_in, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(local, "_cores", lambda: (0, 1))
    # The first two wait for each other, so they end only if both run at the same time.
    for number, other in ((0, 1), (1, 0)):
        name = stand_in.folders[other].name
        stand_in.do(
            number,
            f"while 'begin {name}' not in log.read_text():\n    time.sleep(0.01)\n",
        )
    status, said = stand_in.run(jobs=2)
    assert status == 0
    running, most = 0, 0
    for what, _ in stand_in.log():
        running += 1 if what == "begin" else -1
        most = max(most, running)
    assert most == 2
    assert "share" not in said
    shares = {line.split(" ", 1)[1] for line in said.splitlines() if "devices" in line}
    assert shares == {"devices 2 cores {0}", "devices 2 cores {1}"}


def test_more_jobs_than_cores_print_a_note(stand_in, monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: (0,))
    status, said = stand_in.run(jobs=3)
    assert status == 0
    assert said.splitlines()[0] == "3 runs at a time share 1 core"


def test_a_failed_run_is_recorded_and_retried(stand_in):
    stand_in.do(0, "sys.exit('segjax: it is broken')")
    stand_in.do(1, "os.kill(os.getpid(), signal.SIGKILL)")
    status, said = stand_in.run()
    assert status == 1
    first, second = stand_in.folders[:2]
    assert f"[1/4] {first.name}: failed: it is broken" in said
    assert said.splitlines()[-3:] == [
        f"2 of 4 runs are finished in {first.parent}",
        f"failed: {first.name}, see {first / 'error.txt'}",
        f"failed: {second.name}, see {second / 'error.txt'}",
    ]
    assert (first / "error.txt").read_text().endswith("\nsegjax: it is broken\n")
    assert (second / "error.txt").read_text().endswith("\nended by SIGKILL\n")
    stand_in.do(0, "")
    status, said = stand_in.run()
    assert status == 1
    assert "3 of 4 runs are finished" in said
    assert not (first / "error.txt").exists()
    assert (second / "error.txt").read_text().count("ended by SIGKILL") == 1


@contextlib.contextmanager
def meanwhile(action):
    """Do something in a thread, while the body runs a sweep."""
    other = threading.Thread(target=action)
    other.start()
    yield
    other.join()


def wait_until(holds):
    while not holds():
        time.sleep(0.01)


def stop_when_ready(*folders):
    wait_until(lambda: all((folder / "ready").exists() for folder in folders))
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def held_by_another(folder, name, finish):
    """Hold a run as another process would, and finish it after the other three."""
    folder.mkdir(parents=True)
    with (folder / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def finish_it():
            wait_until(lambda: len(list(folder.parent.glob("*/result.json"))) == 3)
            finish()
            (folder / "result.json").write_text("{}")
            lock.close()

        with meanwhile(finish_it):
            yield


@pytest.mark.parametrize("name", [".lock", ".sweep.lock"])
def test_a_run_in_use_by_another_process_is_waited_for(stand_in, name):
    held = stand_in.folders[0]
    with held_by_another(held, name, lambda: None):
        status, said = stand_in.run()
    assert status == 0
    assert said.count("in use by another process, waiting for it") == 1
    assert f"[1/4] {held.name}: finished already" in said
    assert ("begin", held.name) not in stand_in.log()
    assert not (held / "log.txt").exists()


def test_a_result_of_another_config_is_not_taken_for_ones_own(stand_in):
    held, other = stand_in.folders[0], Experiment(configs.default(), INFO, [], None)
    describe = functools.partial(experiment.write_description, held, other, DESCRIPTION)
    with held_by_another(held, ".lock", describe):
        status, said = stand_in.run()
    assert status == 1
    assert "3 of 4 runs are finished" in said
    assert re.search(rf"\nfailed: {held.name}: .*another config", said)
    assert not (held / "error.txt").exists()


def test_finished_runs_behind_a_running_one_are_counted_at_the_time_limit(stand_in):
    stand_in.do(0, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)")
    for folder in stand_in.folders[1:]:
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
    status, said = stand_in.run(time_limit=1.0)
    assert status == local.UNFINISHED
    assert "3 of 4 runs are finished" in said
    assert "time limit reached, 1 unfinished" in said


def test_a_run_that_fails_while_it_is_stopped_has_failed(stand_in):
    stand_in.do(
        0,
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('segjax: No space left on device'))\n"
        "(folder / 'ready').touch()\n"
        "time.sleep(60)\n",
    )
    first = stand_in.folders[0]

    with meanwhile(functools.partial(stop_when_ready, first)):
        status, said = stand_in.run()
    assert status == 143
    assert f"[1/4] {first.name}: failed: No space left on device" in said
    assert "No space left" in (first / "error.txt").read_text()


def test_lines_of_a_log_are_shown_as_they_are(stand_in):
    stand_in.do(0, "print('x/file.py:100: a warning [bold]')")
    assert "[1/4] x/file.py:100: a warning [bold]\n" in stand_in.run()[1]


@pytest.mark.slow
def test_a_module_in_the_current_folder_hides_none_of_pythons(
    tmp_path, scenes_data_dir, monkeypatch
):
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1], (0,))
    (tmp_path / "statistics.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", os.getcwd())])
    console = Console(file=io.StringIO())
    status = local.run(spec, grids.load_points(spec, {}), tmp_path / "runs", 1, console)
    assert status == 0, console.file.getvalue()


def test_the_refusal_of_a_run_in_use_is_recognized(tmp_path):
    config = configs.default()
    with experiment.claim(tmp_path, config), pytest.raises(UserError) as refused:
        experiment.claim(tmp_path, config)
    said = f"segjax: {refused.value}\n"
    assert local.refused_as_in_use(2, said)
    script = slurm_script.render("tiny", tmp_path, slurm_script.Options(), [1])
    assert re.search(r'grep -q "(.*?)"', script)[1] in said


def test_a_run_that_another_process_started_first_is_not_a_failure(stand_in):
    stand_in.do(
        0,
        "if not (folder / 'again').exists():\n"
        "    (folder / 'again').touch()\n"
        "    print(f'segjax: workdir {folder} is in use by another process')\n"
        "    sys.exit(2)\n",
    )
    status, _ = stand_in.run()
    assert status == 0
    begun = [name for what, name in stand_in.log() if what == "begin"]
    assert begun == names(stand_in, 0, 1, 2, 3, 0)
    assert not (stand_in.folders[0] / "error.txt").exists()


def test_a_signal_is_forwarded_and_no_other_run_starts(stand_in):
    for number in (0, 1):
        stand_in.do(
            number,
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
            "(folder / 'ready').touch()\n"
            "time.sleep(60)\n",
        )

    with meanwhile(functools.partial(stop_when_ready, *stand_in.folders[:2])):
        status, said = stand_in.run(jobs=2)
    assert status == 143
    assert said.count("stopping, waiting for 2 runs to save") == 1
    assert said.splitlines()[-1] == "stopped; the same command resumes"
    assert sorted(name for _, name in stand_in.log()) == sorted(names(stand_in, 0, 1))
    assert not any((folder / "error.txt").exists() for folder in stand_in.folders)
    for number in (0, 1):
        stand_in.do(number, "")
    assert stand_in.run()[0] == 0


def test_a_terminal_shows_the_live_table_and_how_runs_ended(stand_in):
    stand_in.do(1, "sys.exit('segjax: it is broken')")
    status, said = stand_in.run(interactive=True)
    assert status == 1
    assert f"[1/4] {stand_in.folders[0].name}: test G 1.0%" in said
    assert f"[2/4] {stand_in.folders[1].name}: failed: it is broken" in said
    assert "devices" not in said
    assert "4 runs: 1 running, 3 new" in said


def test_jobs_divide_the_machine(monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: (0, 1, 2, 3, 6))
    none = {"CUDA_VISIBLE_DEVICES": ""}
    assert local.split_machine(1, {"JAX_NUM_CPU_DEVICES": "4"}) == [local.Share((), {})]
    assert local.split_machine(2, none) == [local.Share((0, 2, 6), {}), local.Share((1, 3), {})]
    assert [share.cores for share in local.split_machine(7, none)] == [
        *((core,) for core in (0, 1, 2, 3, 6)),
        *((0,), (1,)),
    ]
    found = local.split_machine(3, {**none, "JAX_NUM_CPU_DEVICES": "8"})
    assert [share.environment for share in found] == [{"JAX_NUM_CPU_DEVICES": "2"}] * 3
    found = local.split_machine(2, {"CUDA_VISIBLE_DEVICES": "0,2,5"})
    visible = [share.environment for share in found]
    assert visible == [{"CUDA_VISIBLE_DEVICES": "0,5"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    with pytest.raises(UserError, match="--jobs 2, but there is 1 GPU; set JAX_PLATFORMS=cpu"):
        local.split_machine(2, {"CUDA_VISIBLE_DEVICES": "3"})
    found = local.split_machine(2, {"CUDA_VISIBLE_DEVICES": "3", "JAX_PLATFORMS": "cpu"})
    assert [share.environment for share in found] == [{}, {}]


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_the_others_finish(
    tmp_path, scenes_data_dir, monkeypatch, capsys
):
    spec = toy_grid.write(tmp_path, scenes_data_dir, [1e30, 0.1], [3])
    broken, sound = (
        tmp_path / "runs" / f"optimizer.learning_rate={rate},seed=3" for rate in ("1e+30", "0.1")
    )
    status, out, error = toy_grid.sweep(spec, tmp_path / "runs")
    assert status == 1, error
    assert "1 of 2 runs are finished" in out
    assert "at step 2" in (broken / "error.txt").read_text()
    assert not (broken / "result.json").exists()
    assert [path.parent for path in (tmp_path / "runs").rglob("result.json")] == [sound]
    (summary,) = summarize(results.read([tmp_path / "runs"]))
    assert summary.seeds == (3,)
    row = json.loads((sound / "result.json").read_text())
    assert row["overrides"] == {"optimizer.learning_rate": 0.1, "seed": 3}

    # A run directory of another config is an error, not a finished run.
    command = ["sweep", "--config", spec, "--workdir", str(tmp_path / "runs")]
    assert main([*command, "--config.log_every=2", "--config.batch_size=8"]) == 2
    assert "another config: batch_size is 8, was 4" in capsys.readouterr().err
    assert main([*command, "--status"]) == 0
    assert "2 runs: 1 finished, 1 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_sweep_loses_no_run_and_finishes_none_twice(tmp_path, scenes_data_dir):
    """Two kills, a signal to stop, and then two sweeps at once."""
    rates, seeds, total, jobs = (0.1, 0.2), (0, 1), 4, 2
    spec, workdir = toy_grid.write(tmp_path, scenes_data_dir, rates, seeds), tmp_path / "runs"
    chance, before = random.Random(0), {}
    numbers = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)

    def start():
        return toy_grid.start(
            ["sweep", "--config", spec, "--workdir", workdir, "--jobs", jobs],
            JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    def finished():
        paths = workdir.glob("*/result.json")
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    def under_way():
        return [path.parent for path in workdir.glob("*/.sweep.lock") if locks.is_held(path)]

    for done, number in enumerate(numbers):
        process = start()
        deadline = time.monotonic() + 600
        # The first kill comes before anything is finished, the later ones as the sweep gets on.
        while len(finished()) < done * total // len(numbers) or not under_way():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 3.0))
        assert process.poll() is None, "it ended before it was killed"
        cut_off = under_way()
        process.send_signal(number)
        said = process.communicate()
        while any(is_in_use(run) for run in cut_off):  # they die of it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, said
            assert "stopped; the same command resumes" in said[0]
        assert not list(workdir.glob("*/error.txt"))
        assert before.items() <= finished().items()
        before = finished()

    said = [finish(process) for process in [start(), start()]]
    assert any("in use by another process, waiting for it" in out for out in said)
    for out in said:
        assert f"{total} of {total} runs are finished" in out
    assert len(finished()) == total
    assert before.items() <= finished().items()

    rows = results.read([workdir])
    wanted = [{"optimizer.learning_rate": r, "seed": s} for r in rates for s in seeds]
    assert sorted(map(str, wanted)) == sorted(str(row["overrides"]) for row in rows)
    ends = 0
    for run in (path.parent for path in finished()):
        ends += (run / "log.txt").read_text().count("\ntest G ")
        logged = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4]
        assert [row["step"] for row in logged if "val/mean_iou" in row] == [2, 4]
        assert not (run / "error.txt").exists()
    # A run says so when it has ended; a kill may come between its row and that.
    assert total - len(numbers) * jobs <= ends <= total


@pytest.mark.parametrize(
    ("environment", "given", "jobs"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,2,5"}, "gpus", 3),
        ({"CUDA_VISIBLE_DEVICES": "0,2,5"}, 2, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,2,5"}, None, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,2,5", "JAX_PLATFORMS": "cpu"}, "gpus", 1),
    ],
)
def test_jobs_gpus_means_one_run_per_gpu(environment, given, jobs):
    assert local.resolve_jobs(given, environment) == jobs


@pytest.mark.slow
def test_after_the_time_limit_no_run_starts_and_running_ones_save(stand_in):
    first, second = names(stand_in, 0, 1)
    stand_in.do(1, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)")
    status, said = stand_in.run(time_limit=3.0)
    assert status == local.UNFINISHED == 75
    assert stand_in.log() == [("begin", first), ("end", first), ("begin", second)]
    assert said.splitlines()[-3:] == [
        "stopping, waiting for 1 run to save",
        f"1 of 4 runs are finished in {stand_in.folders[0].parent}",
        "time limit reached, 3 unfinished; the same command resumes",
    ]
    assert not (stand_in.folders[1] / "error.txt").exists()
    stand_in.do(1, "")
    assert stand_in.run(time_limit=1000.0)[0] == 0
