"""Experiment configs: their fields and defaults, loading, overriding and checking.

A config file defines `get_config(arg)`, which returns an `ml_collections.ConfigDict` based on
`default()`. `--config FILE[:ARG]` selects it, `--config.a.b=value` overrides a field.
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import RequiredValueError

from segjax.errors import UserError
from segjax.files import local_path

# Fields that do not define the experiment: excluded from the digest, free to differ on resume. (The
# number of devices changes rounding and, with micro-batches, the batch-normalization groups.)
INCIDENTAL = ("data.data_dir", "wandb", "log_every", "num_devices")

# Fields added after the first results: excluded from the digest at their default values, so that
# the digests of those results stay valid. Every new field goes here.
OMITTED_AT_DEFAULT = (
    "model.pretrained",
    "data.patches",
    "data.folder",
    *("augment.elastic", "augment.rotation", "augment.shift", "augment.outside"),
    *("loss.name", "loss.border_weight", "loss.border_sigma"),
    "test_split",
)

# Allowed values of fields; names of models, losses and the like are checked by their own modules.
CHOICES = {
    "precision": ("float32", "bfloat16"),
    "data.placement": ("auto", "device", "stream"),
    "data.normalization": ("mean_std", "local_response", "none", "imagenet"),
    "augment.outside": ("void", "mirror"),
    "best_metric": ("mean_iou", "class_accuracy", "global_accuracy"),
    "test_split": ("test", "val"),
    "wandb.mode": ("disabled", "offline", "online"),
}
NON_NEGATIVE = (
    "data.patches",
    *("augment.elastic", "augment.shift", "loss.border_weight"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("optimizer.warmup_steps", "optimizer.momentum", "optimizer.power"),
)
# Fields that have an effect only beside certain values of others. A config file may set them
# regardless, but an override that does nothing would make an ablation void.
CONDITIONS: dict[str, tuple[str, Callable[[ConfigDict], bool]]] = {
    "augment.outside": (
        "where augment.elastic, augment.rotation or augment.shift is above 0",
        lambda c: c.augment.elastic > 0 or c.augment.rotation > 0 or c.augment.shift > 0,
    ),
    "loss.border_sigma": (
        "where loss.border_weight is above 0",
        lambda c: c.loss.border_weight > 0,
    ),
    "model.options.noise": (
        "where model.options.context is basic or large",
        lambda c: c.model.options.get("context") != "none",
    ),
    "optimizer.momentum": ("where optimizer.name is sgd", lambda c: c.optimizer.name == "sgd"),
    "optimizer.power": (
        "where optimizer.schedule is poly",
        lambda c: c.optimizer.schedule == "poly",
    ),
}
GROUPS = ("model", "model.options", "data", "augment", "loss", "optimizer", "wandb")


def default() -> ConfigDict:
    """Return the default config: every field of an experiment."""
    config = ConfigDict()
    config.seed = 0  # initialization, data order, augmentation, dropout
    config.num_devices = 0  # 0: largest number on this host that divides the batches

    config.model = ConfigDict()
    config.model.name = "segnet_basic"  # key of segjax.models.MODELS
    config.model.options = ConfigDict()  # fields of the model, such as width
    # path or hub name of VGG-16 weights (segjax.models.pretrained), which set the normalization to
    # imagenet; "": none
    config.model.pretrained = ""
    config.precision = "float32"  # computation: float32 or bfloat16; parameters are float32

    config.data = ConfigDict()
    config.data.dataset = "streetscenes"  # key of segjax.data.datasets.DATASETS
    config.data.folder = ""  # of the images and masks of dataset folder (segjax.data.folder)
    config.data.data_dir = ""  # folder of prepared datasets; "": TFDS's default
    config.data.resolution = (360, 480)  # height, width in pixels
    config.data.normalization = "mean_std"  # mean_std, local_response, none, imagenet
    config.data.placement = "auto"  # device: dataset in device memory; stream; auto: by size
    config.data.patches = 0  # patches of each image, for patch_cnn; 0: whole images
    config.batch_size = 8  # images, over all devices

    config.augment = ConfigDict()
    config.augment.flip = False  # left-right, probability 1/2
    config.augment.scale = (1.0, 1.0)  # smallest and largest factor of random resizing
    config.augment.crop = ()  # height, width of a random window; (): the resolution
    config.augment.elastic = 0.0  # pixels, standard deviation of 3x3 grid displacements
    config.augment.rotation = 0.0  # degrees, maximum, either way
    config.augment.shift = 0.0  # pixels, maximum, either way along each axis
    config.augment.outside = "void"  # fill outside the image: void, or mirror the image
    config.augment.brightness = 0.0  # factor in [1 - b, 1 + b]
    config.augment.contrast = 0.0  # likewise
    config.augment.saturation = 0.0  # likewise

    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"  # cross_entropy, focal, dice, lovasz
    config.loss.class_weights = "none"  # none, median_frequency, segnet, enet
    config.loss.border_weight = 0.0  # w0 of U-Net's weight map, background class 0; 0: no map
    config.loss.border_sigma = 5.0  # pixels, sigma of the weight map

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam, adamw
    config.optimizer.learning_rate = 0.1  # peak of the schedule
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.weight_decay = 0.0  # kernels only: not biases, not batch normalization
    config.optimizer.clip_norm = 0.0  # maximum global norm of the gradient; 0: no clipping
    config.optimizer.schedule = "constant"  # constant, poly, cosine; the last two end at 0
    config.optimizer.power = 0.9  # of poly: (1 - t / T)^power, t of the T steps after warmup
    config.optimizer.warmup_steps = 0  # W: step k of them has (k + 1) / (W + 1) of the rate

    config.steps = 1000  # optimizer steps, also the length of the schedule
    config.steps_per_dispatch = 1  # steps in one call to the device
    config.micro_batches = 1  # parts of a step's batch, gradients summed
    # decay d of the averaged weights, which are evaluated, at step k min(d, (1 + k) / (10 + k));
    # 0: no averaging
    config.ema_decay = 0.0

    config.eval_every = 100  # steps
    config.eval_batch_size = 8  # images, over all devices
    config.best_metric = "mean_iou"  # validation: mean_iou, class_accuracy, global_accuracy
    config.recompute_batch_norm = True  # statistics over the training set, before the test
    config.test_split = "test"  # split of the final evaluation; val: never use the test split
    config.checkpoint_every = 100  # steps
    config.log_every = 10  # steps

    config.wandb = ConfigDict()
    config.wandb.mode = "disabled"  # disabled, offline, online
    config.wandb.project = "segjax"
    config.wandb.group = ""
    config.lock()  # a config file that misspells a field is an error
    config.model.options.unlock()
    return config


def load_module(spec: str) -> tuple[ModuleType, str | None]:
    """Import the config file of `FILE` or `FILE:ARG`; return its module and ARG or None."""
    name, argument = _split(spec)
    path = local_path(name)
    if not path.is_file():
        raise UserError(f"config file {name} does not exist")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"config file {name} fails: {type(error).__name__}: {message}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name} has no get_config()")
    return module, argument


def _split(spec: str) -> tuple[str, str | None]:
    """Return FILE and ARG of `FILE[:ARG]`; of several colons, the longest FILE that exists."""
    try:
        local_path(spec)
    except UserError as error:
        raise UserError(f"config file: {error}") from error
    parts = spec.split(":")
    names = (":".join(parts[:end]) for end in range(len(parts), 0, -1))
    name = next((name for name in names if name and local_path(name).is_file()), parts[0])
    return name, spec[len(name) + 1 :] or None


def experiment_name(spec: str) -> str:
    """Return the stem of FILE in `FILE` or `FILE:ARG`."""
    return Path(_split(spec)[0]).stem


def load(spec: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """Load the config of `FILE[:ARG]`, apply the overrides and check it; return it locked.

    Raises:
      UserError: the file is missing or broken, a field is unknown or invalid, or an override has no
        effect beside the other fields.
    """
    module, argument = load_module(spec)
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"config file {spec}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {spec}: get_config returns a {type(config).__name__}, not a ConfigDict"
        )

    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    override(config, overrides)
    fields = dict(_leaves(config))
    if missing := [name for name in _flat_default() if name not in fields]:
        raise UserError(f"config file {spec} lacks field {missing[0]!r} of segjax.config.default()")
    derived = fields["model.pretrained"] and "data.normalization" not in overrides
    if derived and fields["data.normalization"] == "mean_std":
        fields["data.normalization"] = "imagenet"  # the input that the weights were trained on
    for name in ("data.data_dir", "data.folder"):
        # Absolute, for starts from another current directory.
        if fields[name] and isinstance(fields[name], str):
            try:
                fields[name] = str(local_path(fields[name]).absolute())
            except UserError as error:
                raise UserError(f"config field {name!r}: {error}") from error
    config = restore(fields)

    warmup = config.optimizer.warmup_steps  # not in `check`: older runs must stay readable
    known = f"below steps ({config.steps})"
    _require(config, "optimizer.warmup_steps", warmup < config.steps, known)
    for name, (condition, holds) in CONDITIONS.items():
        if name in overrides and not holds(config):
            value = flat(config)[name]
            raise UserError(f"config field {name!r} is set to {value!r}, but only used {condition}")
    return config


def restore(fields: Mapping[str, Any]) -> ConfigDict:
    """Return the config of the fields {"a.b": value} of a config file or a `config.json`, locked.

    Whatever it accepts, it accepts again with the same digest after a round trip through JSON.
    A field that is missing has its default value.

    Raises:
      UserError: an unknown name, a wrong type or an invalid value.
    """
    config = default()
    for name, value in fields.items():
        _assign(config, name, value)
    check(config)
    return config


def _leaves(config: ConfigDict, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of whatever a config file has put into a config."""
    for key in config:
        name, value = f"{group}{key}", _get(config, key)
        if isinstance(value, ConfigDict) and name in GROUPS:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _get(config, field):
    """Return the value of a field, None if there is none or it is a placeholder."""
    try:
        return config.get(field)
    except RequiredValueError:
        return None


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Set fields by their dotted names.

    Text, as from the command line, is parsed to the type of the field. `model.options` accepts any
    name: the model itself refuses options that it does not have.

    Raises:
      UserError: an unknown name or a wrong type.
    """
    for name, value in overrides.items():
        _assign(config, name, value, parse=isinstance(value, str))


def _assign(config: ConfigDict, name: str, value: Any, parse: bool = False) -> None:
    *parents, field = name.split(".")
    owner: Any = config
    for parent in parents:
        owner = _get(owner, parent) if isinstance(owner, ConfigDict) else None
    open_ended = parents == ["model", "options"]
    if not isinstance(owner, ConfigDict) or not (field in owner or open_ended):
        close = difflib.get_close_matches(name, flat(default()), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"config has no field {name!r}{hint}")
    if name in GROUPS:
        raise UserError(f"config field {name!r} is a group of fields, not one")

    # The default tells the type even where a config file has left a placeholder.
    example = _flat_default().get(name, _get(owner, field))
    if parse:
        value = _parse(name, value, example)
    value = _plain(name, value, example)
    if isinstance(example, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(example, bool) != isinstance(value, bool) and example is not None:
        raise _wrong_type(name, value, example)
    try:
        with contextlib.nullcontext() if field in owner else owner.unlocked():
            owner[field] = value
    except (TypeError, OverflowError) as error:
        raise _wrong_type(name, value, example) from error


def _parse(name, text, example):
    if isinstance(example, str):
        return None if text == "None" else text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if example is None:  # a new model option may be a word
            return text
        raise _wrong_type(name, text, example) from error


def _plain(name, value, example):
    """Return a value as JSON keeps it: bool, int, float, str, or a tuple of those (JSON's list)."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(_plain(name, item, None) for item in value)
    if type(value) not in (bool, int, float, str):
        raise _wrong_type(name, value, example)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config field {name!r} must be finite, found {value!r}")
    if isinstance(value, int) and not abs(value) < 2**63:  # its text may be too long to show
        raise UserError(f"config field {name!r} must be below 2^63")
    return value


def _wrong_type(name, value, example):
    expected = f"of type {type(example).__name__}, such as {example!r}"
    if example is None:
        expected = "a number, a truth value, text, or a tuple of those"
    found = " ".join(repr(value).split())
    found = found if len(found) <= 100 else found[:97] + "..."
    return UserError(f"config field {name!r} is {expected}, found {found}")


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--config.a.b=value` arguments into {"a.b": "value"}.

    Raises:
      UserError: an argument has no value, or two arguments give a field different ones.
    """
    overrides: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"argument {argument!r} needs a value: {name}=VALUE")
        field = name.removeprefix("--config.")
        if overrides.setdefault(field, value) != value:
            raise UserError(f"{name} is given twice, as {overrides[field]!r} and as {value!r}")
    return overrides


def flat(config: ConfigDict) -> dict[str, Any]:
    """Flatten a config into {"a.b": value}."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            fields[name] = value
    return fields


def digest(config: ConfigDict) -> str:
    """Return 16 hex digits that identify the experiment, without seed and incidental fields."""
    fields = {k: v for k, v in flat(config).items() if k != "seed" and not incidental(k)}
    defaults = _flat_default()
    fields = {k: v for k, v in fields.items() if k not in OMITTED_AT_DEFAULT or v != defaults[k]}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _flat_default():
    return flat(default())


def difference(ours: ConfigDict, theirs: ConfigDict) -> str | None:
    """Return the first field that differs and is not incidental, as one line; None if none."""
    mine, stored = flat(ours), flat(theirs)
    for name in sorted(set(mine) | set(stored)):
        if not incidental(name) and mine.get(name) != stored.get(name):
            return f"{name} is {mine.get(name)!r}, was {stored.get(name)!r}"
    return None


def incidental(name: str) -> bool:
    """Return whether a field affects only where and how a run executes, not its result."""
    return any(name == field or name.startswith(f"{field}.") for field in INCIDENTAL)


def check(config: ConfigDict) -> None:
    """Check the value of each field.

    Raises:
      UserError: an invalid value; names the field.
    """
    for name in ("steps", "steps_per_dispatch", "micro_batches", "batch_size", "eval_batch_size"):
        _require(config, name, config[name] >= 1, "at least 1")
    _require(config, "num_devices", config.num_devices >= 0, "at least 0")
    for name in ("eval_every", "checkpoint_every", "log_every"):
        _require(config, name, config[name] >= 1, "at least 1")
        # Otherwise a run could stop inside a dispatch, and a resumed run would differ in its bits.
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
    # Images are counted in int32 on the device.
    _require(config, "steps", config.steps * config.batch_size < 2**31, "below 2^31 / batch_size")
    _require(config, "seed", 0 <= config.seed < 2**31, "in [0, 2^31)")
    _require(config, "ema_decay", 0 <= config.ema_decay < 1, "in [0, 1)")
    _require(config, "data.resolution", _size(config.data.resolution), "height and width in pixels")
    crop, scale = config.augment.crop, config.augment.scale
    _require(config, "augment.crop", crop == () or _size(crop), "height and width in pixels, or ()")
    _require(config, "augment.scale", _factors(scale), "a smallest and a largest positive factor")
    for name in ("brightness", "contrast", "saturation"):
        _require(config, f"augment.{name}", 0 <= config.augment[name] <= 1, "in [0, 1]")
    _require(config, "augment.rotation", 0 <= config.augment.rotation <= 180, "in [0, 180]")
    _require(config, "loss.border_sigma", 0 < config.loss.border_sigma < math.inf, "positive")
    fields = flat(config)
    for name in NON_NEGATIVE:
        _require(config, name, 0 <= fields[name] < math.inf, "finite and not negative")
    for name, choices in CHOICES.items():
        _require(config, name, fields[name] in choices, " or ".join(choices))
    if config.model.pretrained:
        known = "imagenet where model.pretrained is set"
        _require(config, "data.normalization", config.data.normalization == "imagenet", known)
    if config.loss.name in ("dice", "lovasz"):  # defined on classes, not on pixels
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
