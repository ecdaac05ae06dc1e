"""Build model, data and devices of a run from its config; write and read `config.json`."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic refuses that of Python 3.11

from segjax import config as configs
from segjax import models
from segjax.data import camvid, catalog, datasets, loader
from segjax.errors import UserError
from segjax.results import schema
from segjax.runs import weights
from segjax.runs.checkpoint import Checkpoints
from segjax.system import imports, locks, stored
from segjax.system.files import write_whole
from segjax.training import losses, optimizers, parallel, steps

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Description:
    """Identity of a run, stored in its workdir and its result row."""

    experiment: str  # stem of the config file
    name: str  # name of the run in its sweep, otherwise the experiment
    overrides: dict[str, Any]  # {"a.b": value}
    command: str  # command line that reproduces it


class _Stored(TypedDict):
    """The fields of `config.json`: those of `Description`, the config and the dataset."""

    experiment: str
    name: str
    overrides: dict[str, Any]
    command: str
    config: dict[str, Any]
    data: datasets.DatasetInfo


_adapter = functools.cache(lambda: TypeAdapter(_Stored))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Model, dataset and devices of a config."""

    config: ConfigDict
    info: datasets.DatasetInfo
    devices: list[jax.Device]
    model: nn.Module

    @property
    def axis_name(self) -> str | None:
        return parallel.axis_name(self.devices)

    @property
    def device_name(self) -> str:
        """Return the name of the devices in result rows, such as `cpu x2`."""
        return f"{self.devices[0].device_kind} x{len(self.devices)}"

    def open_split(self, split: str, native: bool = False) -> datasets.Source:
        """Open a split of the dataset, at the resolution of the config or at its own sizes.

        Raises:
          UserError: its data are not those of the run.
        """
        data = self.config.data
        if self.info.origin:
            imports.search(self.info.origin)
        source = datasets.open_split(
            data.dataset, split, **_place(data), fit=data.fit, native=native
        )
        _require_digest(data.dataset, split, source.digest, self.info)
        return source

    def require_labels(self, *splits: str) -> None:
        """Raise a UserError if a split has no pixel of any class: all its scores would be 0."""
        for split in splits:
            if not any(self.info.splits[split].pixel_counts):
                raise UserError(
                    f"the {split} split of {self.config.data.dataset} has no pixel of any class, "
                    "its labels are all void"
                )

    def open_training(self) -> tuple[loader.Source, np.ndarray]:
        """Open the training split; return it and the class weights of the loss, float32 (K,).

        With `loss.border_weight` each example has a `weight` map.

        Raises:
          UserError: a split to train, validate or test on has no label, or a field of the config
            does not suit the dataset.
        """
        self.require_labels("train", "val", self.config.test_split)
        if self.config.augment.saturation and len(self.info.mean) == 1:
            raise UserError(
                f"config field 'augment.saturation' is {self.config.augment.saturation:g}, but the "
                f"images of {self.config.data.dataset} are gray"
            )
        loss, counts = self.config.loss, self.info.splits["train"]
        if loss.class_weights == "segnet" and self.info.class_names != camvid.CLASS_NAMES:
            raise UserError(
                "loss.class_weights='segnet' is for CamVid's 11 classes in their order, but the "
                f"classes of {self.config.data.dataset} are {', '.join(self.info.class_names)}"
            )
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
        # The map of border weights already includes the class weights.
        return loader.WeightedSource(source, weigh), np.ones_like(weights)


def create(config: ConfigDict, info: datasets.DatasetInfo | None = None) -> Experiment:
    """Build the model of a config, look up its dataset and pick its devices.

    Args:
      config: of the run.
      info: of the dataset, which then need not exist until it is opened; None: look it up.

    Raises:
      UserError: one of them does not exist, or the batch does not divide among the devices.
    """
    check_names(config)
    shares = {
        "batch_size / micro_batches": config.batch_size // config.micro_batches,
        "eval_batch_size": config.eval_batch_size,
    }
    devices = parallel.pick_devices(config.num_devices, shares)
    info = info or datasets.info(config.data.dataset, **_place(config.data))
    if config.test_split not in info.splits:
        raise UserError(
            f"test_split is {config.test_split!r}, but {config.data.dataset} has only "
            f"{', '.join(info.splits)}"
        )
    model = models.create(
        config.model.name,
        len(info.class_names),
        dtype=jnp.dtype(config.precision),
        axis_name=parallel.axis_name(devices),
        **config.model.options,
    )
    return Experiment(config, info, devices, model)


def _place(data: ConfigDict) -> dict[str, Any]:
    """Return where and how to open the dataset of `config.data`, as arguments of `datasets`."""
    return {
        "data_dir": data.data_dir or None,
        "folder": data.folder or None,
        "options": catalog.Options(**data.tfds),
        "resolution": tuple(data.resolution),
    }


def check_names(config: ConfigDict) -> None:
    """Check the names of model, options, dataset, loss, weighting, optimizer and schedule.

    Build nothing and read no dataset: a sweep calls this before its first run.

    Raises:
      UserError: an unknown name (lists the known ones), or `data.patches` does not suit the model.
    """
    for option in ("name", *models.OWN):
        if option in config.model.options:
            raise UserError(
                f"model.options.{option} is not an option: model.name, the dataset, precision and "
                "the devices determine it"
            )
    model = models.create(config.model.name, 1, **config.model.options)
    datasets.check_name(config.data.dataset, "data.dataset")
    if bool(config.data.folder) != (config.data.dataset == "folder"):
        raise UserError(
            f"config field 'data.folder' is {config.data.folder!r}, but 'data.dataset' is "
            f"{config.data.dataset!r}; a folder needs data.dataset=folder and data.folder=DIR"
        )
    patches = config.data.patches
    if hasattr(model, "patch_size") != (patches > 0):
        expected = "whole images, expected 0" if patches else "patches, expected at least 1"
        raise UserError(
            f"config field 'data.patches' is {patches}, but model {config.model.name} trains on "
            f"{expected}"
        )
    for field, value, known in (
        ("loss.name", config.loss.name, losses.LOSSES),
        ("loss.class_weights", config.loss.class_weights, losses.CLASS_WEIGHTS),
        ("optimizer.name", config.optimizer.name, optimizers.OPTIMIZERS),
        ("optimizer.schedule", config.optimizer.schedule, optimizers.SCHEDULES),
    ):
        if value not in known:
            raise UserError(f"unknown {field} {value!r}; known: {', '.join(known)}")


def write_description(workdir: Path, run: Experiment, description: Description) -> None:
    """Write `workdir/config.json`, from which a run can be evaluated or repeated.

    Raises:
      UserError: the config, made without `config.load`, could not be read again.
    """
    content = {
        **dataclasses.asdict(description),
        "config": configs.flat(configs.restore(configs.flat(run.config))),
        "data": dataclasses.asdict(run.info),
    }
    text = json.dumps(stored.seal(content), indent=1)
    write_whole(workdir / "config.json", f"{text}\n")


def read_description(workdir: Path) -> tuple[ConfigDict, Description, datasets.DatasetInfo]:
    """Read the config, description and dataset info of a run from `workdir/config.json`.

    Fields of the config that are missing have their defaults, which is said on standard error.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = workdir / "config.json"
    try:
        content = stored.unseal(stored.parse(path.read_bytes()))
        found: Any = _adapter().validate_json(json.dumps(content), strict=True)
    except FileNotFoundError:
        why = "it has no config.json" if workdir.is_dir() else "it does not exist"
        raise UserError(f"{workdir} is not the workdir of a run: {why}") from None
    except ValidationError as error:
        raise schema.fault(error, f"{path} cannot be read", "a run's config.json") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    fields, info = found["config"], found["data"]
    description = Description(
        **{field.name: found[field.name] for field in dataclasses.fields(Description)}
    )
    try:
        config = configs.restore(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    defaults = configs.flat(configs.default())
    if missing := [f"{name}={defaults[name]!r}" for name in defaults if name not in fields]:
        _warn_once(f"{path} lacks fields, which are set to defaults: {', '.join(missing)}")
    return config, description, info


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def identity(config: ConfigDict) -> str:
    """Return the identity that a checkpoint must have for this config to resume it."""
    return f"{configs.digest(config)}, seed {config.seed}"


def claim(workdir: Path, config: ConfigDict) -> IO[str]:
    """Lock a run directory, created if missing, until the returned file is closed.

    Raises:
      UserError: another process has it, it holds a run of another config, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A process that only looks whether it is held holds it for an instant.
        held = locks.acquire(workdir / ".lock", wait=0.1)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    if held is None:
        raise UserError(f"workdir {workdir} is in use by another process")
    try:
        refuse_other_config(config, workdir)
    except BaseException:
        held.close()
        raise
    return held


def refuse_other_config(config: ConfigDict, workdir: Path) -> None:
    """Check that a workdir does not hold a run of another config.

    Raises:
      UserError: it does; names the first field that differs.
    """
    if (workdir / "config.json").exists():
        theirs, _, _ = read_description(workdir)
        difference = configs.difference(config, theirs)
        if difference:
            raise UserError(f"workdir {workdir} holds a run of another config: {difference}")


def refuse_other_data(run: Experiment, workdir: Path) -> None:
    """Check that a workdir does not hold a run on other data than there are now.

    Raises:
      UserError: it does; names the split.
    """
    if (workdir / "config.json").exists():
        _, _, former = read_description(workdir)
        for split, found in run.info.splits.items():
            _require_digest(run.config.data.dataset, split, found.digest, former)


def _require_digest(dataset: str, split: str, found: str, info: datasets.DatasetInfo) -> None:
    """Raise if a split has another digest than in `info`."""
    if not info.may_have(split, found):
        raise UserError(
            f"the {split} split of {dataset} has changed since the run began: its digest is "
            f"{found[:16]}, was {info.splits[split].digest[:16]}"
        )


def open_run(workdir: Path, data_dir: Path | str | None) -> tuple[Experiment, Description]:
    """Build the experiment of a workdir; its data may have moved to `data_dir`, or be missing."""
    config, description, info = read_description(workdir)
    with config.unlocked():
        config.num_devices = 0  # the training may have run on another number of devices
        config.data.data_dir = str(data_dir or config.data.data_dir)
    return create(config, info), description


def _require_identity(config: ConfigDict, facts: dict[str, Any], workdir: Path) -> None:
    """Raise if a checkpoint is of another config; the final ones of older runs do not say."""
    expected = identity(config)
    if facts.get("config", expected) != expected:
        raise UserError(
            f"checkpoint {facts['kind']} in {workdir} belongs to another config than its "
            "config.json"
        )


def load_variables(
    experiment: Experiment, workdir: Path, kind: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load variables for evaluation from a checkpoint, and its facts.

    Args:
      experiment: of the workdir; the variables are placed on its devices.
      workdir: the run directory, or an exported folder, which has the weights of one checkpoint.
      kind: final (batch normalization recomputed if `recompute_batch_norm`), best or latest; None:
        final if it exists, otherwise best.

    Raises:
      UserError: the workdir has no such checkpoint, or it belongs to another config.
    """
    config = experiment.config
    optimizer = optimizers.create_optimizer(
        config.optimizer, optimizers.create_schedule(config.optimizer, config.steps)
    )
    state = steps.abstract_state(experiment.model, optimizer, config, len(experiment.info.mean))
    if (workdir / weights.FILE).is_file():
        variables, facts = weights.restore(workdir / weights.FILE, state.evaluated())
        if kind not in (None, facts["kind"]):
            raise UserError(f"{workdir} has the weights of checkpoint {facts['kind']}, not {kind}")
        _require_identity(config, facts, workdir)
        return parallel.place(variables, experiment.devices), facts
    with Checkpoints(workdir, read_only=True) as checkpoints:
        kind = kind or ("final" if checkpoints.step("final") is not None else "best")
        step = checkpoints.step(kind)
        if step is None:
            raise UserError(f"{workdir} has no {kind} checkpoint")
        sharding = jax.sharding.SingleDeviceSharding(experiment.devices[0])
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        restored = checkpoints.restore(kind, state.evaluated() if kind == "final" else state)
        facts = {"kind": kind, **checkpoints.facts(kind)}
    _require_identity(config, facts, workdir)
    variables = restored if kind == "final" else restored.evaluated()
    return parallel.place(variables, experiment.devices), facts
