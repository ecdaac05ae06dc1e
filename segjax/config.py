"""Experiment configs: the fields they all have, loading them, and overriding them.

A config is what `get_config(arg)` of a file returns: an `ml_collections.ConfigDict` that starts
from `default()`. `--config FILE[:ARG]` names it, `--config.a.b=value` overrides a field.
"""

import ast
import difflib
import functools
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from segjax.errors import UserError

# What is not of the experiment: left out of its digest, free to differ on resume. (The number of
# devices changes the last bits, and the groups that batch normalisation sees of micro-batches.)
INCIDENTAL = ("data.data_dir", "wandb", "log_every", "num_devices")

# Fields that came when there were results already: left out of the digest at their neutral values,
# so that it is still the one that those results carry. A new field goes here.
LATER = (
    "model.pretrained",
    "data.patches",
    *("augment.elastic", "augment.rotation", "augment.shift", "augment.outside"),
    *("loss.name", "loss.border_weight", "loss.border_sigma"),
    "test_split",
)

# Fields that say one of a few words, but for names of models and the like, which their own modules
# know.
CHOICES = {
    "precision": ("float32", "bfloat16"),
    "data.placement": ("auto", "device", "stream"),
    "data.normalization": ("mean_std", "local_response", "none", "imagenet"),
    "augment.outside": ("void", "mirror"),
    "best_metric": ("mean_iou", "class_accuracy", "global_accuracy"),
    "test_split": ("test", "val"),
    "wandb.mode": ("disabled", "offline", "online"),
}
NOT_NEGATIVE = (
    "data.patches",
    *("augment.elastic", "augment.shift", "loss.border_weight"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("optimizer.warmup_steps", "optimizer.momentum", "optimizer.power"),
)


def default() -> ConfigDict:
    """The fields that every experiment has, with neutral values."""
    config = ConfigDict()
    config.seed = 0  # of the initialisation, the order of the data, its augmentation, dropout
    config.num_devices = 0  # 0: as many of this host's as divide the batches

    config.model = ConfigDict()
    config.model.name = "segnet_basic"  # of segjax.models.MODELS
    config.model.options = ConfigDict()  # fields of the model, such as width
    # VGG-16's weights to start from, path or hub name (segjax.models.pretrained); "": none. The
    # normalisation is then imagenet, of itself.
    config.model.pretrained = ""
    config.precision = "float32"  # of the computation: float32 or bfloat16; parameters are float32

    config.data = ConfigDict()
    config.data.dataset = "streetscenes"  # of segjax.data.datasets.DATASETS
    config.data.data_dir = ""  # where prepared sets lie; "": TFDS's own place
    config.data.resolution = (360, 480)  # height, width in pixels
    config.data.normalization = "mean_std"  # mean_std, local_response, none, imagenet
    config.data.placement = "auto"  # device: whole set in device memory; stream; auto: by size
    config.data.patches = 0  # of each image, for a model that trains on patches; 0: whole images
    config.batch_size = 8  # images over all devices

    config.augment = ConfigDict()
    config.augment.flip = False  # left and right, half of the time
    config.augment.scale = (1.0, 1.0)  # least and greatest factor of random resizing
    config.augment.crop = ()  # height, width of a random window; (): the resolution
    config.augment.elastic = 0.0  # pixels, sd of the displacements of a 3x3 grid
    config.augment.rotation = 0.0  # degrees, greatest, either way
    config.augment.shift = 0.0  # pixels, greatest, either way along each axis
    config.augment.outside = "void"  # what these three bring in: void, or the image mirrored
    config.augment.brightness = 0.0  # factor in [1 - b, 1 + b]
    config.augment.contrast = 0.0  # likewise
    config.augment.saturation = 0.0  # likewise

    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"  # cross_entropy, focal, dice, lovasz
    config.loss.class_weights = "none"  # none, median_frequency, segnet, enet
    config.loss.border_weight = 0.0  # w0 of U-Net's weight map, class 0 its background; 0: no map
    config.loss.border_sigma = 5.0  # pixels, of the map

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam, adamw
    config.optimizer.learning_rate = 0.1  # at its highest
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.weight_decay = 0.0  # of kernels only: not biases, not batch normalisation
    config.optimizer.clip_norm = 0.0  # greatest global norm of the gradient; 0: any
    config.optimizer.schedule = "constant"  # constant, poly, cosine; the last two end at 0
    config.optimizer.power = 0.9  # of poly: (1 - step / steps)^power
    config.optimizer.warmup_steps = 0  # linear from 0

    config.steps = 1000  # optimiser steps, and the length of the schedule
    config.steps_per_dispatch = 1  # steps in one call to the device
    config.micro_batches = 1  # a step's batch in this many parts, gradients summed
    config.ema_decay = 0.0  # of the averaged weights that are evaluated; 0: no averaging

    config.eval_every = 100  # steps
    config.eval_batch_size = 8  # images over all devices
    config.best_metric = "mean_iou"  # on validation: mean_iou, class_accuracy, global_accuracy
    config.recompute_batch_norm = True  # over the training set, before the test
    config.test_split = "test"  # what the test is of; val: a run that tunes, and never sees test
    config.checkpoint_every = 100  # steps
    config.log_every = 10  # steps

    config.wandb = ConfigDict()
    config.wandb.mode = "disabled"  # disabled, offline, online
    config.wandb.project = "segjax"
    config.wandb.group = ""
    config.lock()  # so that a file which misspells a field is refused
    config.model.options.unlock()
    return config


def load_module(spec: str) -> tuple[ModuleType, str | None]:
    """The module of a config file named as `FILE` or `FILE:ARG`, and ARG."""
    name, _, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"config file {name} does not exist")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"config file {name} fails: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name} has no get_config()")
    return module, argument or None


def experiment_name(spec: str) -> str:
    """The name of a config file that is given as `FILE` or `FILE:ARG`."""
    return Path(spec.partition(":")[0]).stem


def load(spec: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The locked config of `FILE[:ARG]` with its overrides, checked."""
    module, argument = load_module(spec)
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"config file {spec}: {type(error).__name__}: {said}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file {spec}: get_config gives {config!r}, expected a ConfigDict")
    override(config, overrides)
    if config.model.pretrained and config.data.normalization == "mean_std":
        config.data.normalization = "imagenet"  # what the weights have learnt from
    check(config)
    return config


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets fields by their dotted names; a misspelt name or a wrong type is a UserError.

    A value may be text, as on the command line: it is read as the type that the field has. Options
    of the model may be new: the model itself refuses those it does not have.
    """
    for name, value in overrides.items():
        *parents, field = name.split(".")
        owner: Any = config
        for parent in parents:
            owner = owner.get(parent) if isinstance(owner, ConfigDict) else None
        open_ended = parents == ["model", "options"]
        if not isinstance(owner, ConfigDict) or not (field in owner or open_ended):
            close = difflib.get_close_matches(name, flat(config), n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"config has no field {name!r}{hint}")
        present = owner.get(field)
        if isinstance(present, ConfigDict):
            raise UserError(f"config field {name!r} is a group of fields, not one")
        if isinstance(value, str) and not isinstance(present, str):
            value = _parse(name, value, present)
        if value is None:
            raise UserError(f"config field {name!r} is {_kind(present)}, found None")
        if isinstance(value, list):  # as JSON has it
            value = tuple(value)
        if isinstance(present, tuple):
            value = value if isinstance(value, tuple) else (value,)
        if isinstance(present, bool) != isinstance(value, bool) and present is not None:
            raise UserError(f"config field {name!r} is {_kind(present)}, found {value!r}")
        try:
            with owner.unlocked():
                owner[field] = value
        except TypeError as error:
            raise UserError(
                f"config field {name!r} is {_kind(present)}, found {value!r}"
            ) from error


def _parse(name, text, present):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if present is None:  # a new option of the model may well be a word
            return text
        raise UserError(f"config field {name!r} is {_kind(present)}, found {text!r}") from error


def _kind(value):
    return f"of type {type(value).__name__}, such as {value!r}"


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--config.a.b=value` arguments as {"a.b": "value"}; anything else is a UserError."""
    overrides = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"unknown argument {argument!r}")
        if not equals:
            raise UserError(f"argument {argument!r} needs a value: {name}=VALUE")
        overrides[name.removeprefix("--config.")] = value
    return overrides


def flat(config: ConfigDict) -> dict[str, Any]:
    """{"a.b": value} of every field."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            fields[name] = value
    return fields


def digest(config: ConfigDict) -> str:
    """16 hex digits that say what was computed, whatever the seed, the place and the tracking."""
    fields = {k: v for k, v in flat(config).items() if k != "seed" and not incidental(k)}
    neutral = _neutral()
    fields = {k: v for k, v in fields.items() if k not in LATER or v != neutral[k]}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _neutral():
    return flat(default())


def difference(ours: ConfigDict, theirs: ConfigDict) -> str | None:
    """The first field that changes the numbers and is not the same in both, in words."""
    mine, stored = flat(ours), flat(theirs)
    for name in sorted(set(mine) | set(stored)):
        if not incidental(name) and mine.get(name) != stored.get(name):
            return f"{name} is {mine.get(name)!r}, was {stored.get(name)!r}"
    return None


def incidental(name: str) -> bool:
    """Return whether a field changes only where and how a run is done, not what it computes."""
    return any(name == field or name.startswith(f"{field}.") for field in INCIDENTAL)


def check(config: ConfigDict) -> None:
    """Refuses values that no run can have, by a UserError that names the field."""
    for name in ("steps", "steps_per_dispatch", "micro_batches", "batch_size", "eval_batch_size"):
        _require(config, name, config[name] >= 1, "at least 1")
    _require(config, "num_devices", config.num_devices >= 0, "at least 0")
    for name in ("eval_every", "checkpoint_every", "log_every"):
        _require(config, name, config[name] >= 1, "at least 1")
        # Else a run would stop inside a dispatch, and its bits depend on where it was cut.
        _require(
            config,
            name,
            name == "log_every" or config[name] % config.steps_per_dispatch == 0,
            f"a multiple of steps_per_dispatch ({config.steps_per_dispatch})",
        )
    _require(
        config,
        "batch_size",
        config.batch_size % config.micro_batches == 0,
        f"a multiple of micro_batches ({config.micro_batches})",
    )
    _require(config, "seed", 0 <= config.seed < 2**31, "in [0, 2^31)")
    _require(config, "ema_decay", 0 <= config.ema_decay < 1, "in [0, 1)")
    _require(config, "data.resolution", _size(config.data.resolution), "height and width in pixels")
    crop, scale = config.augment.crop, config.augment.scale
    _require(config, "augment.crop", crop == () or _size(crop), "height and width in pixels, or ()")
    _require(config, "augment.scale", _factors(scale), "a least and a greatest positive factor")
    for name in ("brightness", "contrast", "saturation"):
        _require(config, f"augment.{name}", 0 <= config.augment[name] <= 1, "in [0, 1]")
    _require(config, "augment.rotation", 0 <= config.augment.rotation <= 180, "in [0, 180]")
    _require(config, "loss.border_sigma", 0 < config.loss.border_sigma < math.inf, "positive")
    fields = flat(config)
    for name in NOT_NEGATIVE:
        _require(config, name, 0 <= fields[name] < math.inf, "finite and not negative")
    for name, choices in CHOICES.items():
        _require(config, name, fields[name] in choices, " or ".join(choices))
    if config.model.pretrained:
        known = "imagenet where model.pretrained is set"
        _require(config, "data.normalization", config.data.normalization == "imagenet", known)
    if config.loss.name in ("dice", "lovasz"):  # they are of classes, not of pixels
        known = f"0 where loss.name is {config.loss.name}"
        _require(config, "loss.border_weight", config.loss.border_weight == 0, known)


def _require(config, name, holds, expected):
    if not holds:
        raise UserError(f"config field {name!r} must be {expected}, found {flat(config)[name]!r}")


def _size(value):
    return len(value) == 2 and all(type(side) is int and side >= 1 for side in value)


def _factors(value):
    numbers = len(value) == 2 and all(type(factor) in (int, float) for factor in value)
    return numbers and 0 < value[0] <= value[1] < math.inf
