"""Test how a training handles failures of disk, checkpoints, clock, locks and W&B.

| What happens | Exit | What is said | On disk; the next start |
| --- | --- | --- | --- |
| W&B cannot be reached | 0 | one warning | wandb/offline-run-*, for `wandb sync` |
| disk full, or over quota | 2 | the file or folder, "No space left on device" | intact; continues |
| read-only workdir | 2 | the workdir, "Read-only file system" | unchanged; continues |
| newest checkpoint truncated | 0 | a warning that names it | deleted; made again, same bits |
| bit of a checkpoint flipped | 0 | a warning that names it | deleted; made again, same bits |
| every `latest` truncated | 0 | a warning that names each | continues from `best`, same bits |
| `best` and each earlier `latest` cut | 0 | warnings, and what stands in for the best | continues |
| new checkpoint not whole | 2 | the checkpoint | the former ones; continues |
| backslash in the workdir | 2 | the workdir | nothing |
| no checkpoint intact | 2 | the newest, and what to delete | unchanged |
| checkpoint of another config | 2 | the checkpoint | unchanged |
| two runs in one workdir | 2 | "in use by another process" | of the first run, which continues |
| clock set back | 0 | nothing | as usual |

A run that finishes after any of these failures has the same bits as an undisturbed run.
"""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from segjax import models, results, train
from segjax.cli import main
from segjax.data import datasets
from segjax.errors import UserError
from segjax.results import bootstrap
from segjax.runs import tracking
from segjax.runs.checkpoint import Checkpoints
from segjax.runs.metrics_log import MetricsLog, read_metrics
from support.runs import (
    OneLayer,
    arrays,
    assert_same_bits,
    assert_same_run,
    finish,
    saved_steps,
    start,
)
from support.wandb_file import history

# A failed save or restore leaves Orbax objects behind, whose warnings at garbage collection would
# fail a later test.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]

CONFIG = """
from support.runs import OneLayer, small_config
from segjax import models

models.MODELS["one_layer"] = OneLayer

def get_config():
    return small_config("{data_dir}", checkpoint_every=1)
"""


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Share compiled programs: all trainings here run the same ones."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    former = [jax.config.values[name] for name in names]

    def use(*values):
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(str(tmp_path_factory.mktemp("compiled")), 0.0)
    yield
    use(*former)


@pytest.fixture(scope="module")
def spec(tmp_path_factory, scenes_data_dir):
    """Return a config file: four steps, each saved, validation after steps 2 and 4."""
    path = tmp_path_factory.mktemp("spec") / "small.py"
    path.write_text(CONFIG.format(data_dir=scenes_data_dir))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "one_layer", OneLayer)
        yield path


def arguments(spec, workdir, **changed):
    overrides = [f"--config.{name}={value}" for name, value in changed.items()]
    return ["train", "--config", str(spec), "--workdir", str(workdir), *overrides]


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory):
    """Return the workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main(arguments(spec, workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def _stopped(spec, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    build = train.build_evaluator

    def build_evaluator(run):
        evaluate = build(run)

        def evaluate_and_stop(*given, **named):
            signal.raise_signal(signal.SIGTERM)
            return evaluate(*given, **named)

        return evaluate_and_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_evaluator", build_evaluator)
        assert main.main(arguments(spec, workdir)) == 143
    assert (saved_steps(workdir, "latest"), saved_steps(workdir, "best")) == ([1, 2], [2])
    return workdir


@pytest.fixture
def stopped(_stopped, tmp_path):
    """Return a copy of the workdir of a run stopped after 2 of its 4 steps."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


@pytest.fixture
def command(spec, capsys, caplog):
    """Return a function that runs `segjax train`; it returns exit status and stderr with logs."""

    def run(workdir, **changed):
        capsys.readouterr()
        caplog.clear()
        status = main.main(arguments(spec, workdir, **changed))
        # W&B logs its own records to a file.
        ours = [r for r in caplog.records if r.name.split(".")[0] != "wandb"]
        assert not [r for r in ours if r.exc_info]
        return status, capsys.readouterr().err + "".join(f"{r.getMessage()}\n" for r in ours)

    return run


def content(folder):
    """Return {path: bytes} of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of 2 MiB; skip if this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def test_full_disk_is_named_and_nothing_is_lost(command, disk, undisturbed, tmp_path, monkeypatch):
    workdir, full = disk / "run", "No space left on device\n"

    class FullLog(MetricsLog):
        def __init__(self, *given):
            super().__init__(*given)
            fill(disk)

    with monkeypatch.context() as patch:
        patch.setattr("segjax.runs.log.MetricsLog", FullLog)
        assert command(workdir) == (2, f"segjax: {workdir}/phases.jsonl: {full}")
    assert not list(workdir.glob("checkpoints/*/*"))
    (disk / "ballast").unlink()

    save = Checkpoints.save

    def save_third(self, kind, step, *given):
        if step == 3:
            fill(disk)
        return save(self, kind, step, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_third)
        status, said = command(workdir)
        # The save fails in the background, so another write may fail first.
        assert (status, said.count("\n")) == (2, 1), said
        assert said.startswith("segjax: ")
        assert f"{workdir}/" in said
        assert said.endswith(f": {full}")
        assert command(workdir)[0] == 2  # while the disk is full
    assert max(saved_steps(workdir, "latest")) == 2
    (disk / "ballast").unlink()

    write_counts = train.write_counts

    def write_and_fill(*given):
        write_counts(*given)
        fill(disk)

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_counts", write_and_fill)
        assert command(workdir) == (2, f"segjax: {workdir}/result.json: {full}")
    assert not (workdir / "result.json").exists()
    (disk / "ballast").unlink()

    assert command(workdir) == (0, "")
    assert_same_run(workdir, undisturbed)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "quota"),
        ValueError(f"RESOURCE_EXHAUSTED: Error writing [os_error_code='{errno.EDQUOT}']"),
    ],
)
def test_exceeded_quota_is_named_like_a_full_disk(tmp_path, monkeypatch, error):
    with Checkpoints(tmp_path) as checkpoints:
        manager = checkpoints._manager("best")

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(manager, "save", fail)
        with pytest.raises(UserError, match="checkpoints/best cannot be written: Disk quota exc"):
            checkpoints.save("best", 1, {"x": jax.numpy.zeros(2)}, {})


def test_read_only_workdir_is_named_and_unchanged(command, disk, stopped):
    workdir = Path(shutil.copytree(stopped, disk / "run"))
    before = content(workdir)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (workdir, disk / "new"):
        said = f"segjax: workdir {folder} cannot be written: Read-only file system\n"
        assert command(folder) == (2, said)
    assert content(workdir) == before


def cut(workdir, kind, step):
    """Truncate a file of a checkpoint, as a crash of the file system may; return its folder."""
    path = workdir / "checkpoints" / kind / str(step) / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.parents[1]


@pytest.mark.parametrize(
    ("damaged", "named", "start"),
    [
        ([("latest", 2)], [("latest", 2)], 1),
        ([("latest", 2), ("best", 2)], [("best", 2)], 1),
        ([("latest", 2), ("latest", 1)], [("latest", 2), ("latest", 1)], 2),  # from the best
    ],
)
def test_truncated_checkpoint_is_made_again(command, stopped, undisturbed, damaged, named, start):
    paths = {checkpoint: cut(stopped, *checkpoint) for checkpoint in damaged}
    status, said = command(stopped)
    assert status == 0
    for line, checkpoint in zip(said.splitlines(), named, strict=True):
        assert line.startswith(f"checkpoint {paths[checkpoint]} is damaged, or not of this model: ")
        assert line.endswith(f"; resuming from step {start}")
    assert_same_run(stopped, undisturbed)


def test_run_without_its_best_goes_on(command, stopped, undisturbed):
    damaged = [cut(stopped, "best", 2), cut(stopped, "latest", 1)]
    status, said = command(stopped)
    assert status == 0
    for line, path in zip(said.splitlines(), damaged, strict=True):
        assert line.startswith(f"checkpoint {path} is damaged, or not of this model: ")
        assert line.endswith("; resuming from step 2, which stands in for the best")
    assert_same_bits(arrays(stopped, "latest"), arrays(undisturbed, "latest"))
    assert results.read([stopped])[0]["best_step"] == 4


def test_folder_whose_name_looks_like_a_pattern(
    command, spec, scenes_data_dir, undisturbed, tmp_path
):
    folder = tmp_path / "exp [lr=0.1] *?"
    data_dir = shutil.copytree(scenes_data_dir, folder / "data")
    workdir = folder / "run"
    changed = {"data.data_dir": data_dir}
    killed = start_alone(spec, workdir, **changed)
    for line in killed.stdout:
        if line.startswith("step 2/4"):
            killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert command(workdir, **changed) == (0, "")
    assert_same_run(workdir, undisturbed)


def test_a_backslash_in_the_path_is_refused(command, tmp_path):
    workdir = tmp_path / "a\\b"
    said = f"{workdir}/checkpoints has a backslash in its path, expected none: rename it"
    assert command(workdir) == (2, f"segjax: {said}\n")
    assert not (workdir / "metrics.jsonl").exists()


def test_only_truncated_checkpoints_is_an_error(command, stopped):
    cut(stopped, "best", 2)
    newest = [cut(stopped, "latest", step) for step in (1, 2)][-1]
    before = content(stopped)
    status, said = command(stopped)
    assert status == 2
    assert said.startswith(f"segjax: checkpoint {newest} is damaged, or not of this model: ")
    assert said.endswith(f"none is intact, delete {newest.parents[1]} to start over\n")
    assert said.count("\n") == 1
    assert content(stopped) == before


def test_checkpoint_of_another_config_is_an_error(command, stopped, undisturbed):
    (stopped / "config.json").unlink()  # otherwise config.json reveals the difference first
    before = content(stopped)
    for changed in ({"seed": 1}, {"optimizer.learning_rate": 0.5}):
        said = (
            f"segjax: checkpoint {stopped}/checkpoints/best/2 belongs to another config than "
            "this run\n"
        )
        assert command(stopped, **changed) == (2, said)
    assert content(stopped) == before
    assert command(stopped) == (0, "")
    assert_same_run(stopped, undisturbed)
    assert (stopped / "config.json").exists()


def start_alone(spec, workdir, **changed):
    """Start a training in a separate process that shares compiled programs with this one."""
    return start(
        arguments(spec, workdir, **changed),
        PYTHONPATH=str(Path(__file__).parents[1]),
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def test_rows_say_which_data_was_scored(undisturbed, scenes_data_dir):
    (row,), (_, counts) = results.read([undisturbed]), bootstrap.load(undisturbed)
    where = {"data_dir": scenes_data_dir, "resolution": (24, 32)}
    source = datasets.open_split("streetscenes", "test", **where)
    assert row["data_digest"] == source.digest != ""
    assert counts.names.tolist() == [example["id"] for example in source]

    evaluate = ["evaluate", "--workdir", str(undisturbed)]
    assert main.main([*evaluate, "--split", "val"]) == 0
    (row,) = results.read([undisturbed / "evaluation_val_final.json"])
    assert row["data_digest"] == datasets.info("streetscenes", **where).splits["val"].digest
    assert main.main([*evaluate, "--limit", "2"]) == 0
    _, counts = bootstrap.load(undisturbed / "evaluation_test_first2_final.json")
    assert counts.names.tolist() == [source[0]["id"], source[1]["id"]]


def test_second_run_in_a_workdir_is_an_error_for_it_alone(command, spec, stopped, undisturbed):
    first = start_alone(spec, stopped)
    begun = first.stdout.readline()  # it has locked the workdir and compiles
    assert begun.endswith("resumed at step 2\n"), first.communicate()
    said = f"segjax: workdir {stopped} is in use by another process\n"
    assert command(stopped) == (2, said)
    assert not (stopped / "result.json").exists(), "the first ended before the second began"
    finish(first)
    assert_same_run(stopped, undisturbed)


def test_clock_set_back_changes_nothing(command, stopped, undisturbed, monkeypatch):
    older = stopped / "checkpoints" / "latest" / "1"
    for path in (older, *older.rglob("*")):
        os.utime(path, (2**31, 2**31))  # the older checkpoint looks like the newest
    with Checkpoints(stopped, read_only=True) as checkpoints:
        spent = checkpoints.facts("latest")["seconds"]
    now, save, back = time.time, Checkpoints.save, [3600]

    def save_and_set_back(self, *given):
        back[0] *= 5
        return save(self, *given)

    monkeypatch.setattr(Checkpoints, "save", save_and_set_back)
    monkeypatch.setattr(time, "time", lambda: now() - back[0])
    assert command(stopped) == (0, "")
    monkeypatch.undo()
    assert back[0] > 5 * 3600
    assert_same_run(stopped, undisturbed)
    (row,) = results.read([stopped])
    assert spent < row["seconds"] < spent + 3600
    for logged in read_metrics(stopped / "metrics.jsonl"):
        assert logged.get("train/images_per_second", 1) > 0
        assert 0 < logged.get("seconds", 1) <= row["seconds"]


def test_unreachable_wandb_server_does_not_stop_a_run(command, tmp_path, undisturbed, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(tracking, "START_TIMEOUT", 2.0)
    workdir = tmp_path / "run"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
        status, said = command(workdir, **{"wandb.mode": "online"})
        wandb.teardown()
    assert status == 0
    *waited, line = said.splitlines()
    assert set(waited) <= {"waiting for W&B to start the run ..."}
    expected = f"W&B cannot be reached; logging to {workdir}/wandb for `wandb sync`: "
    assert line.startswith(expected)
    assert_same_run(workdir, undisturbed)
    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    kept = {row["_step"]: row for row in history(path)}
    for row in read_metrics(workdir / "metrics.jsonl"):
        assert row.items() <= {"step": row["step"], **kept[row["step"]]}.items()
