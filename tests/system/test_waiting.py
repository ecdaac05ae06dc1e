"""Test that every place where a process waits for others says so on standard error."""

import fcntl
import subprocess
import time

import orbax.checkpoint as ocp
import pytest

from segjax.data import builders
from segjax.models import pretrained
from segjax.ops.onednn import build
from segjax.runs.checkpoint import Checkpoints
from segjax.runs.tracking import Trackers
from segjax.sweep import slurm
from segjax.system import waiting

LONG = 0.3  # seconds
DEFAULT = waiting.SECONDS


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS", LONG / 6)


def test_a_wait_is_long_after_five_seconds():
    assert DEFAULT == 5


def slow(*_, **__):
    time.sleep(LONG)


def checkpoint(folder, patch):
    with Checkpoints(folder) as checkpoints:
        checkpoints._manager("latest")
        patch.setattr(ocp.CheckpointManager, "wait_until_finished", slow)
        checkpoints.wait()


def wandb_start(folder, patch):
    Trackers().start("W&B", slow)


def wandb_finish(folder, patch):
    class Run:
        finish = slow

    trackers = Trackers()
    trackers.start("W&B", Run)
    trackers.finish(0)


def hub(folder, patch):
    patch.setattr("huggingface_hub.hf_hub_download", slow)
    pretrained._locate("timm/vgg16")


def dataset(folder, patch):
    for _ in builders.progress([1], "drawing train"):
        slow()


def slurm_program(folder, patch):
    run = subprocess.run
    patch.setattr(subprocess, "run", lambda *_, **given: run(["sleep", str(LONG)], **given))
    (folder / "slurm").mkdir()
    (folder / slurm.RUNS).write_text("a\tb\n")
    slurm.read_queue(folder)


def slurm_submission(folder, patch):
    patch.setattr(fcntl, "flock", slow)
    with slurm._submission_lock(folder):
        pass


@pytest.mark.parametrize(
    ("wait", "line"),
    [
        (checkpoint, "waiting for a checkpoint in {folder}/checkpoints/latest to be written"),
        (wandb_start, "waiting for W&B to start the run"),
        (wandb_finish, "waiting for W&B to end the run"),
        (hub, "waiting for model.safetensors of timm/vgg16 on the Hugging Face hub"),
        (dataset, "drawing train"),
        (slurm_program, "waiting for Slurm's squeue"),
        (slurm_submission, "waiting for another submission from {folder}"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_a_long_wait_is_one_line(wait, line, tmp_path, monkeypatch, capsys):
    wait(tmp_path, monkeypatch)
    # A checkpoint manager waits again when it closes.
    assert set(capsys.readouterr().err.splitlines()) == {line.format(folder=tmp_path) + " ..."}


def test_a_short_wait_is_silent_even_if_it_fails(capsys):
    with pytest.raises(ZeroDivisionError), waiting.reported("waiting for nothing"):
        _ = 1 / 0
    slow()
    assert capsys.readouterr().err == ""


def test_a_build_by_another_process_is_one_line(tmp_path, monkeypatch, caplog):
    calls = []

    def flock(file, how):
        calls.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "kernels.so"
    path.touch()
    build._build(path, tmp_path, "g++")
    assert calls == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    (record,) = caplog.records
    assert record.getMessage() == f"waiting for another process to compile {path} ..."
