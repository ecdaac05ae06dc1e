"""Tiny runs for the tests of training: a config, a network that compiles fast, its arrays."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

from segjax import results
from segjax.cli.main import main
from segjax.config import default
from segjax.models.layers import ConvBlock
from segjax.runs.experiment import Description, load_variables, open_run
from segjax.runs.metrics_log import read_metrics
from segjax.training import parallel

TINY = str(Path(__file__).with_name("tiny.py"))  # a config file of two steps

DESCRIPTION = Description("tiny", "tiny", {}, "segjax train")


def tiny_config(data_dir, **changed):
    """Return SegNet-Basic of width 4 on scenes of 24x32, with augmentation, changed by `change`."""
    config = default()
    config.model.options.width = 4
    config.data.data_dir = str(data_dir)
    config.data.resolution = (24, 32)
    config.num_devices = 1
    config.batch_size = 4
    config.eval_batch_size = 4
    config.augment.flip = True
    config.augment.scale = (0.8, 1.25)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.loss.class_weights = "enet"
    config.optimizer.learning_rate = 0.05
    config.ema_decay = 0.9
    config.steps = 40
    config.eval_every = 10
    config.checkpoint_every = 2
    config.log_every = 1
    return change(config, **changed)


def change(config, **changed):
    """Set fields of a config, `a__b` for config.a.b; return it."""
    for name, value in changed.items():
        *parents, field = name.split("__")
        owner = config
        for parent in parents:
            owner = owner[parent]
        owner[field] = value
    return config


class OneLayer(nn.Module):
    """The least network with batch normalization; it compiles in a fraction of a second."""

    num_classes: int
    dtype: object = np.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvBlock(4, 3, dtype=self.dtype, axis_name=self.axis_name, name="layer")(
            image.astype(self.dtype), train=train
        )
        x = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="classifier")(x)
        return x.astype(np.float32)


def arrays(workdir: Path, kind: str, step: int | None = None) -> dict[str, np.ndarray]:
    """Return a checkpoint's arrays by path, read by Orbax alone; of the newest without a step."""
    folder = workdir.absolute() / "checkpoints" / kind
    step = max(saved_steps(workdir, kind)) if step is None else step
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = folder / str(step) / "state"
        like = checkpointer.metadata(path).item_metadata.tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        tree = checkpointer.restore(path, restore_args=restore_args)
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(tree)}


def saved_steps(workdir: Path, kind: str) -> list[int]:
    """Return the steps of the whole checkpoints of a kind."""
    folder = workdir / "checkpoints" / kind
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def assert_same_bits(ours, theirs):
    """Compare two dicts of arrays bit by bit, so that NaN and the sign of zero count."""
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        y = theirs[name]
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


def start(arguments, **environment) -> subprocess.Popen:
    """Start `segjax` with these arguments in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "segjax", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a process that must succeed; return its standard output."""
    out, error = process.communicate()
    assert process.returncode == 0, error
    return out


def small_config(data_dir, **changed):
    """Return a config of `OneLayer` in four steps, for tests that have it in `models.MODELS`."""
    config = tiny_config(data_dir)
    config.model.name = "one_layer"
    config.model.options = ConfigDict()
    config.augment.scale = (1.0, 1.0)  # what compiles slowest
    config.steps, config.eval_every, config.checkpoint_every = 4, 2, 2
    return change(config, **changed)


def opened(workdir):
    """Return the experiment of a run directory, and its final variables on one device."""
    run, _ = open_run(workdir, None)
    variables, _ = load_variables(run, workdir, None)
    return run, parallel.place(variables, run.devices[:1])


def evaluated(workdirs, *arguments):
    """Run `segjax evaluate`; return the row that it writes and the path of its file, now gone."""
    before = set(workdirs[0].glob("evaluation_*.json"))
    flags = [flag for workdir in workdirs for flag in ("--workdir", str(workdir))]
    assert main(["evaluate", *flags, *arguments]) == 0
    (path,) = set(workdirs[0].glob("evaluation_*.json")) - before
    (row,) = results.read([path])
    path.unlink()
    return row, path


def without_time(workdir):
    """Return the logged metrics without times and speeds."""
    times = ("seconds", "train/images_per_second")
    return [
        {name: value for name, value in row.items() if name not in times}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]


def assert_same_run(ours, theirs):
    """Compare what two runs leave behind, except times, commands and overrides."""
    for kind in ("latest", "best", "final"):
        assert max(saved_steps(ours, kind)) == max(saved_steps(theirs, kind))
        assert_same_bits(arrays(ours, kind), arrays(theirs, kind))
    assert without_time(ours) == without_time(theirs)
    (our_row,), (their_row,) = results.read([ours]), results.read([theirs])
    own = {"command", "finished", "seconds", "overrides"}
    assert {k: v for k, v in our_row.items() if k not in own} == {
        k: v for k, v in their_row.items() if k not in own
    }
    ours, theirs = ours / "samples", theirs / "samples"
    assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
    for picture in ours.iterdir():
        np.testing.assert_array_equal(
            np.asarray(Image.open(picture)), np.asarray(Image.open(theirs / picture.name))
        )


def train_smoke(folder: Path, data_dir: Path, *more: str) -> Path:
    """Train two steps of `TINY` on one device by the command; return the folder."""
    command = ["train", "--config", TINY, "--workdir", str(folder)]
    command += [f"--config.data.data_dir={data_dir}", "--config.num_devices=1"]
    assert main([*command, *more]) == 0
    return folder
