"""Build a run from its config (model, data, devices), and write and read its description."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import models
from segjax.data import datasets, loader
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.runs.checkpoint import Checkpoints
from segjax.training import losses, optimizers, parallel, steps


@dataclasses.dataclass(frozen=True)
class Description:
    """Which run this is, as its workdir and its result row say."""

    experiment: str  # the config file's name
    name: str  # of the run in its sweep, or of the experiment
    overrides: dict[str, Any]
    command: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config made real on the devices of this host."""

    config: ConfigDict
    info: datasets.DatasetInfo
    devices: list[jax.Device]
    model: nn.Module

    @property
    def axis_name(self) -> str | None:
        return parallel.axis_name(self.devices)

    @property
    def device_name(self) -> str:
        """Name of the devices as rows have it: `cpu x2`."""
        return f"{self.devices[0].device_kind} x{len(self.devices)}"

    def open_split(self, split: str) -> datasets.Source:
        data = self.config.data
        return datasets.open_split(
            data.dataset, split, data_dir=data.data_dir or None, resolution=tuple(data.resolution)
        )

    def open_training(self) -> tuple[loader.Source, np.ndarray]:
        """The training split, and the weights of its classes, float32 (K,), in the loss.

        Where the config asks for weights of borders, the examples have a `weight`.
        """
        loss, counts = self.config.loss, self.info.splits["train"]
        weights = losses.class_weights(
            loss.class_weights, counts.pixel_counts, counts.present_pixel_counts
        )
        source = self.open_split("train")
        if not loss.border_weight:
            return source, weights
        weigh = functools.partial(
            losses.border_weights,
            w0=loss.border_weight,
            sigma=loss.border_sigma,
            class_weights=weights,
        )
        # U-Net adds the weights of classes and borders: the former are in the map already.
        return loader.WeightedSource(source, weigh), np.ones_like(weights)


def create(config: ConfigDict, info: datasets.DatasetInfo | None = None) -> Experiment:
    """Builds the model and looks up the data set and the devices that a config names.

    With `info` the data set need not be there until it is opened.

    Raises:
      UserError: any of them is not there, or the batch does not divide among the devices.
    """
    check_names(config)
    data = config.data
    shares = {
        "batch_size / micro_batches": config.batch_size // config.micro_batches,
        "eval_batch_size": config.eval_batch_size,
    }
    devices = parallel.pick_devices(config.num_devices, shares)
    info = info or datasets.info(
        data.dataset, data_dir=data.data_dir or None, resolution=tuple(data.resolution)
    )
    model = models.create(
        config.model.name,
        len(info.class_names),
        dtype=jnp.dtype(config.precision),
        axis_name=parallel.axis_name(devices),
        **config.model.options,
    )
    return Experiment(config, info, devices, model)


def check_names(config: ConfigDict) -> None:
    """Refuses a model, option, data set, loss, weighting, optimiser or schedule that there is not.

    Nothing is built and no data set is looked for: what a sweep does before its first run.

    Raises:
      UserError: with the list of the known ones; patches for a model of whole images, or none for
        one of patches.
    """
    for option in ("name", *models.OWN):
        if option in config.model.options:
            raise UserError(
                f"model.options.{option} is not an option: model.name, the dataset, precision and "
                "the devices set it"
            )
    model = models.create(config.model.name, 1, **config.model.options)
    patches = config.data.patches
    if hasattr(model, "patch_size") != (patches > 0):
        expected = "whole images, expected 0" if patches else "patches, expected at least 1"
        raise UserError(
            f"config field 'data.patches' is {patches}, but model {config.model.name} trains on "
            f"{expected}"
        )
    for field, value, known in (
        ("data.dataset", config.data.dataset, datasets.DATASETS),
        ("loss.name", config.loss.name, losses.LOSSES),
        ("loss.class_weights", config.loss.class_weights, losses.CLASS_WEIGHTS),
        ("optimizer.name", config.optimizer.name, optimizers.OPTIMIZERS),
        ("optimizer.schedule", config.optimizer.schedule, optimizers.SCHEDULES),
    ):
        if value not in known:
            raise UserError(f"unknown {field} {value!r}; known: {', '.join(known)}")


def write_description(workdir: Path, run: Experiment, description: Description) -> None:
    """Writes `workdir/config.json`, from which a run can be evaluated and made again."""
    content = {
        **dataclasses.asdict(description),
        "config": configs.flat(run.config),
        "data": dataclasses.asdict(run.info),
    }
    write_whole(workdir / "config.json", json.dumps(content, indent=1) + "\n")


def read_description(workdir: Path) -> tuple[ConfigDict, Description, datasets.DatasetInfo]:
    """Read the config, the description and the dataset's facts from `workdir/config.json`.

    Raises:
      UserError: there is none.
    """
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text())
        flat, data = content.pop("config"), content.pop("data")
        splits = {name: datasets.SplitInfo(**split) for name, split in data["splits"].items()}
        info = datasets.DatasetInfo(**{**data, "splits": splits})
        description = Description(**content)
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    config = configs.default()
    configs.override(config, flat)
    configs.check(config)
    return config.lock(), description, info


def refuse_other_config(config: ConfigDict, workdir: Path) -> None:
    """Raises a UserError where a workdir holds a run that computes something else."""
    if (workdir / "config.json").exists():
        stored, _, _ = read_description(workdir)
        difference = configs.difference(config, stored)
        if difference:
            raise UserError(f"workdir {workdir} holds a run of another config: {difference}")


def open_run(workdir: Path, data_dir: str | None) -> tuple[Experiment, Description]:
    """The experiment of a workdir; its prepared data may lie elsewhere by now, or nowhere."""
    config, description, info = read_description(workdir)
    with config.unlocked():
        config.num_devices = 0  # this host may have other devices than the one of the training
        config.data.data_dir = data_dir or config.data.data_dir
    return create(config, info), description


def load_variables(
    experiment: Experiment, workdir: Path, kind: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables to evaluate from a checkpoint, placed on the devices, and its facts.

    Args:
      kind: final (batch normalisation recomputed, where the config asks for it), best or latest;
        none: final where there is one, else best.

    Raises:
      UserError: the workdir has no such checkpoint.
    """
    config = experiment.config
    with Checkpoints(workdir, read_only=True) as checkpoints:
        kind = kind or ("final" if checkpoints.step("final") is not None else "best")
        step = checkpoints.step(kind)
        if step is None:
            raise UserError(f"{workdir} has no {kind} checkpoint")
        optimizer = optimizers.create_optimizer(
            config.optimizer, optimizers.create_schedule(config.optimizer, config.steps)
        )
        sharding = jax.sharding.SingleDeviceSharding(experiment.devices[0])
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            steps.abstract_state(experiment.model, optimizer, config, len(experiment.info.mean)),
        )
        restored = checkpoints.restore(kind, state.evaluated() if kind == "final" else state)
        facts = {"kind": kind, **checkpoints.facts(kind)}
    variables = restored if kind == "final" else restored.evaluated()
    return parallel.place(variables, experiment.devices), facts
