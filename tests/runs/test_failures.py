"""What goes wrong around a training, made to happen, and the outcome that each has.

| What happens | Exit | What is said | On disk; the next start |
| --- | --- | --- | --- |
| W&B out of reach | 0 | one warning, after START_TIMEOUT | wandb/offline-run-*, for `wandb sync` |
| disk full, or over quota | 2 | the file or folder, "No space left on device" | whole; goes on |
| read-only workdir | 2 | the workdir, "Read-only file system" | as it was; goes on |
| newest checkpoint cut off | 0 | a warning that names it | deleted; made again to the same bits |
| no checkpoint whole | 2 | the newest, and what to delete | as it was |
| checkpoint of another config | 2 | the checkpoint | as it was |
| two runs in one workdir | 2 | "in use by another process" | of the first, which goes on |
| clock set back | 0 | nothing | as without |

A run that ends after any of them ends with the bits of one that nothing happened to.
"""

import contextlib
import errno
import gc
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
from segjax.errors import UserError
from segjax.runs import tracking
from segjax.runs.checkpoint import Checkpoints
from segjax.runs.tracking import MetricsLog, read_metrics
from support.runs import OneLayer, assert_same_run, finish, saved_steps, start
from support.wandb_file import history

# What Orbax leaves behind where a save or a restore fails complains when it is collected, which in
# a process of our own nobody hears, and in a later test would be heard.
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
    """The trainings here are all the same: one of them compiles."""
    former = (
        jax.config.jax_compilation_cache_dir,
        (jax.config.jax_persistent_cache_min_compile_time_secs),
    )
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"

    def use(*values):
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(str(tmp_path_factory.mktemp("compiled")), 0.0)
    yield
    use(*former)


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def spec(tmp_path_factory, scenes_data_dir):
    """The config file of a run of four steps, each of them saved, validated after 2 and 4."""
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
    """The workdir of a run that nothing happens to."""
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
    """A workdir of its own of a run that was stopped after 2 of its 4 steps."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


@pytest.fixture
def command(spec, capsys, caplog):
    """`segjax train` in this process: its exit status and all that it says beside its output."""

    def run(workdir, **changed):
        capsys.readouterr()
        caplog.clear()
        status = main.main(arguments(spec, workdir, **changed))
        # W&B's own go to a file of its own.
        ours = [r for r in caplog.records if r.name.split(".")[0] != "wandb"]
        assert not [r for r in ours if r.exc_info]
        return status, capsys.readouterr().err + "".join(f"{r.getMessage()}\n" for r in ours)

    return run


def content(folder):
    """Every file by its path, but for the lock, which is as empty as it was."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MiB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system of our own to fill: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def test_a_full_disk_is_named_and_nothing_is_lost(
    command, disk, undisturbed, tmp_path, monkeypatch
):
    workdir, full = disk / "run", "No space left on device\n"

    class FullLog(MetricsLog):
        def __init__(self, *given):
            super().__init__(*given)
            fill(disk)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "MetricsLog", FullLog)
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
        # A save fails in the background, so that another may be seen to fail before it.
        assert (status, said.count("\n")) == (2, 1), said
        assert said.startswith("segjax: ")
        assert f"{workdir}/" in said
        assert said.endswith(f": {full}")
        assert command(workdir)[0] == 2  # as long as it is full
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
def test_a_quota_that_is_used_up_is_named_like_a_full_disk(tmp_path, monkeypatch, error):
    with Checkpoints(tmp_path) as checkpoints:
        manager = checkpoints._manager("best")

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(manager, "save", fail)
        with pytest.raises(UserError, match="checkpoints/best cannot be written: Disk quota exc"):
            checkpoints.save("best", 1, {"x": jax.numpy.zeros(2)}, {})


def test_a_read_only_workdir_is_named_and_left_alone(command, disk, stopped):
    workdir = Path(shutil.copytree(stopped, disk / "run"))
    before = content(workdir)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (workdir, disk / "new"):
        said = f"segjax: workdir {folder} cannot be written: Read-only file system\n"
        assert command(folder) == (2, said)
    assert content(workdir) == before


def cut(workdir, kind, step):
    """Leaves half of a file of a checkpoint, as a crash of the file system may."""
    path = workdir / "checkpoints" / kind / str(step) / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.parents[1]


@pytest.mark.parametrize("kinds", [("latest",), ("latest", "best")])
def test_a_checkpoint_that_is_cut_off_is_made_again(command, stopped, undisturbed, kinds):
    damaged = [cut(stopped, kind, 2) for kind in kinds]
    status, said = command(stopped)
    assert status == 0
    (line,) = said.splitlines()
    assert line.startswith(f"checkpoint {damaged[-1]} is damaged, or not of this model: ")
    assert line.endswith("; resuming from step 1")
    assert_same_run(stopped, undisturbed)


def test_checkpoints_that_are_all_cut_off_are_named_and_left_alone(command, stopped):
    newest = [cut(stopped, "latest", step) for step in (1, 2)][-1]
    before = content(stopped)
    status, said = command(stopped)
    assert status == 2
    assert said.startswith(f"segjax: checkpoint {newest} is damaged, or not of this model: ")
    assert said.endswith(f"none is whole, delete {newest.parents[1]} to begin again\n")
    assert said.count("\n") == 1
    assert content(stopped) == before


def test_a_checkpoint_of_another_config_is_refused(command, stopped, undisturbed):
    (stopped / "config.json").unlink()  # which is what tells in the first place
    before = content(stopped)
    for changed in ({"seed": 1}, {"optimizer.learning_rate": 0.5}):
        said = (
            f"segjax: checkpoint {stopped}/checkpoints/best/2 is of another config than this run\n"
        )
        assert command(stopped, **changed) == (2, said)
    assert content(stopped) == before
    assert command(stopped) == (0, "")
    assert_same_run(stopped, undisturbed)
    assert (stopped / "config.json").exists()


def start_alone(spec, workdir, **environment):
    """A training in a process of its own, with the compilations of this one."""
    return start(
        arguments(spec, workdir),
        PYTHONPATH=str(Path(__file__).parents[1]),
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        **environment,
    )


def test_a_second_run_in_a_workdir_is_refused_and_the_first_unharmed(
    command, spec, stopped, undisturbed
):
    first = start_alone(spec, stopped)
    begun = first.stdout.readline()  # it has the workdir, and compiles
    assert begun.endswith("resumed at step 2\n"), first.communicate()
    said = f"segjax: workdir {stopped} is in use by another process\n"
    assert command(stopped) == (2, said)
    assert not (stopped / "result.json").exists(), "the first ended before the second began"
    finish(first)
    assert_same_run(stopped, undisturbed)


def test_a_clock_that_is_set_back_changes_nothing(command, stopped, undisturbed, monkeypatch):
    older = stopped / "checkpoints" / "latest" / "1"
    for path in (older, *older.rglob("*")):
        os.utime(path, (2**31, 2**31))  # the older one looks like the newest
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


def test_a_run_does_not_need_the_server_of_weights_and_biases(
    command, tmp_path, undisturbed, monkeypatch
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(tracking, "START_TIMEOUT", 2.0)
    workdir = tmp_path / "run"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
        status, said = command(workdir, **{"wandb.mode": "online"})
        wandb.teardown()
    assert status == 0
    (line,) = said.splitlines()
    expected = f"W&B is out of reach, its record stays in {workdir}/wandb for `wandb sync`: "
    assert line.startswith(expected)
    assert_same_run(workdir, undisturbed)
    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    kept = {row["_step"]: row for row in history(path)}
    for row in read_metrics(workdir / "metrics.jsonl"):
        assert row.items() <= {"step": row["step"], **kept[row["step"]]}.items()
