"""The fields of an experiment's config: defaults, allowed values, digest and check."""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from segjax.errors import UserError

# Fields that do not define the experiment: excluded from the digest, free to differ on resume. (The
# number of devices changes rounding only.)
INCIDENTAL = ("data.data_dir", "wandb", "tensorboard", "log_every", "num_devices")

# Fields added after the first results: excluded from the digest at their default values, so that
# the digests of those results stay valid. Every new field goes here.
OMITTED_AT_DEFAULT = (
    "model.pretrained",
    "model.init_from",
    "data.patches",
    "data.folder",
    *("data.fit", "data.score_at"),
    *("data.tfds.image", "data.tfds.mask", "data.tfds.classes", "data.tfds.void"),
    "data.tfds.splits",
    *("augment.elastic", "augment.rotation", "augment.shift", "augment.outside"),
    *("loss.name", "loss.border_weight", "loss.border_sigma"),
    *("optimizer.step_every", "optimizer.step_factor"),
    "test_split",
)

# Allowed values of fields; names of models, losses and the like are checked by their own modules.
CHOICES = {
    "precision": ("float32", "bfloat16"),
    "data.placement": ("auto", "device", "stream"),
    "data.fit": ("resize", "letterbox", "crop"),
    "data.normalization": ("mean_std", "local_response", "none", "imagenet"),
    "augment.outside": ("void", "mirror"),
    "data.score_at": ("resolution", "native"),
    "best_metric": ("mean_iou", "class_accuracy", "global_accuracy"),
    "test_split": ("test", "val"),
    "wandb.mode": ("disabled", "offline", "online"),
}
AT_LEAST_ONE = (
    *("batch_size", "eval_batch_size", "micro_batches", "steps", "steps_per_dispatch"),
    *("eval_every", "checkpoint_every", "log_every", "optimizer.step_every"),
)
NON_NEGATIVE = (
    "data.patches",
    *("augment.elastic", "augment.shift", "loss.border_weight"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("optimizer.warmup_steps", "optimizer.momentum", "optimizer.power"),
)
# Fields that have an effect only beside certain values of others. A config file may set them
# regardless, but an override that does nothing would make an ablation void.
CONDITIONS: dict[str, tuple[str, Callable[[ConfigDict], bool]]] = {
    **dict.fromkeys(
        (f"data.tfds.{name}" for name in ("image", "mask", "classes", "void", "splits")),
        ("where data.dataset is tfds:NAME", lambda c: c.data.dataset.startswith("tfds:")),
    ),
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
    **dict.fromkeys(
        (f"model.options.{name}" for name in ("rates", "image_pooling", "aspp_width", "dropout")),
        (
            "where model.options.head is aspp",
            lambda c: c.model.name != "deeplab_v3" or c.model.options.get("head") != "none",
        ),
    ),
    "optimizer.momentum": ("where optimizer.name is sgd", lambda c: c.optimizer.name == "sgd"),
    "optimizer.power": (
        "where optimizer.schedule is poly",
        lambda c: c.optimizer.schedule == "poly",
    ),
    **dict.fromkeys(
        ("optimizer.step_every", "optimizer.step_factor"),
        ("where optimizer.schedule is step", lambda c: c.optimizer.schedule == "step"),
    ),
}
GROUPS = (
    *("model", "model.options", "data", "data.tfds", "augment", "loss"),
    *("optimizer", "optimizer.rates", "wandb"),
)
# Groups whose fields are not known in advance.
OPEN = ("model.options", "optimizer.rates")


def default() -> ConfigDict:
    """Return the default config: every field of an experiment."""
    config = ConfigDict()
    config.seed = 0  # initialization, data order, augmentation, dropout
    config.num_devices = 0  # 0: largest number on this host that divides the batches

    config.model = ConfigDict()
    config.model.name = "segnet_basic"  # key of segjax.models.MODELS
    config.model.options = ConfigDict()  # fields of the model, such as width
    # path or hub name of the weights of the network's trunk (segjax.models.pretrained), which set
    # the normalization to imagenet; "": none
    config.model.pretrained = ""
    # run directory, exported folder, .safetensors file or hf:user/name to start from
    # (segjax.runs.weights); "": a random start
    config.model.init_from = ""
    config.precision = "float32"  # computation: float32 or bfloat16; parameters are float32

    config.data = ConfigDict()
    # key of segjax.data.datasets.DATASETS, tfds:NAME or module:NAME
    config.data.dataset = "streetscenes"
    config.data.folder = ""  # of the images and masks of dataset folder (segjax.data.folder)
    config.data.tfds = ConfigDict()  # of dataset tfds:NAME; empty: as in segjax.data.catalog
    config.data.tfds.image = ""  # feature
    config.data.tfds.mask = ""  # feature
    config.data.tfds.classes = ()  # (name, value in the masks, ...) of each class
    config.data.tfds.void = ()  # values in the masks
    config.data.tfds.splits = ()  # expressions of train, val and test
    config.data.data_dir = ""  # folder of prepared datasets; "": TFDS's default
    config.data.resolution = (360, 480)  # height, width in pixels
    config.data.fit = "resize"  # of images of another aspect: resize, letterbox, crop
    # labels of the final test and of `segjax evaluate`: at the resolution, or native, as stored
    config.data.score_at = "resolution"
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
    config.optimizer.name = "sgd"  # sgd, rmsprop, adam, adamw
    config.optimizer.learning_rate = 0.1  # peak of the schedule
    # {pattern: factor} of the rate of the parameters whose path matches, such as {"*/bias": 2.0};
    # 0 freezes them, and factors of several matches are multiplied
    config.optimizer.rates = ConfigDict()
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.weight_decay = 0.0  # kernels only: not biases, not batch normalization
    config.optimizer.clip_norm = 0.0  # maximum global norm of the gradient; 0: no clipping
    config.optimizer.schedule = "constant"  # constant, step, poly, cosine; the last two end at 0
    config.optimizer.step_every = 1000  # steps between two changes of the rate by step
    config.optimizer.step_factor = 0.1  # of the rate at each change
    config.optimizer.power = 0.9  # of poly: (1 - t / T)^power, t of the T steps after warmup
    config.optimizer.warmup_steps = 0  # W: step k of them has (k + 1) / (W + 1) of the rate

    config.steps = 1000  # optimizer steps, also the length of the schedule
    config.steps_per_dispatch = 1  # steps in one call to the device
    config.micro_batches = 1  # M parts of a step's batch, every M-th image each; gradients summed
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
    config.wandb.artifact = False  # upload the tested model
    config.tensorboard = False  # event files in the workdir
    config.lock()  # a config file that misspells a field is an error
    config.model.options.unlock()
    config.optimizer.rates.unlock()
    return config


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
    defaults = flat_default()
    fields = {k: v for k, v in fields.items() if k not in OMITTED_AT_DEFAULT or v != defaults[k]}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def flat_default() -> dict[str, Any]:
    """Return {"a.b": value} of `default()`."""
    return flat(default())


def difference(ours: ConfigDict, theirs: ConfigDict) -> str | None:
    """Return the first field that differs and is not incidental, as one line; None if none."""
    mine, stored = flat(ours), flat(theirs)
    for name in sorted(set(mine) | set(stored)):
        # As text, because 1 and 1.0 have different digests.
        same = json.dumps(mine.get(name)) == json.dumps(stored.get(name))
        if not incidental(name) and not same:
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
    fields = flat(config)
    for name in AT_LEAST_ONE:
        require(config, name, fields[name] >= 1, "at least 1")
    for name in NON_NEGATIVE:
        require(config, name, 0 <= fields[name] < math.inf, "finite and not negative")
    for name, choices in CHOICES.items():
        require(config, name, fields[name] in choices, " or ".join(choices))

    for name, divisor in (
        ("eval_every", "steps_per_dispatch"),  # a run that stops inside a dispatch would resume
        ("checkpoint_every", "steps_per_dispatch"),  # with other bits
        ("batch_size", "micro_batches"),
    ):
        known = f"a multiple of {divisor} ({fields[divisor]})"
        require(config, name, fields[name] % fields[divisor] == 0, known)

    require(config, "num_devices", config.num_devices >= 0, "at least 0")
    # Images are counted in int32 on the device.
    require(config, "steps", config.steps * config.batch_size < 2**31, "below 2^31 / batch_size")
    require(config, "seed", 0 <= config.seed < 2**31, "in [0, 2^31)")
    require(config, "ema_decay", 0 <= config.ema_decay < 1, "in [0, 1)")
    require(config, "data.resolution", _size(config.data.resolution), "height and width in pixels")
    crop, scale = config.augment.crop, config.augment.scale
    require(config, "augment.crop", crop == () or _size(crop), "height and width in pixels, or ()")
    require(config, "augment.scale", _factors(scale), "a smallest and a largest positive factor")
    for name in ("brightness", "contrast", "saturation"):
        require(config, f"augment.{name}", 0 <= config.augment[name] <= 1, "in [0, 1]")
    require(config, "augment.rotation", 0 <= config.augment.rotation <= 180, "in [0, 180]")
    for name in ("optimizer.step_factor", "loss.border_sigma"):
        require(config, name, 0 < fields[name] < math.inf, "positive")

    if config.model.pretrained:
        known = "imagenet where model.pretrained is set"
        require(config, "data.normalization", config.data.normalization == "imagenet", known)
        known = "empty where model.pretrained is set"
        require(config, "model.init_from", not config.model.init_from, known)
    for pattern, factor in config.optimizer.rates.items():
        require(config, f"optimizer.rates.{pattern}", 0 <= factor < math.inf, "a factor >= 0")
    if config.loss.name in ("dice", "lovasz"):  # defined on classes, not on pixels
        known = f"0 where loss.name is {config.loss.name}"
        require(config, "loss.border_weight", config.loss.border_weight == 0, known)


def require(config: ConfigDict, name: str, holds: bool, expected: str) -> None:
    """Raise a UserError that names a field and what it must be, unless a condition holds."""
    if not holds:
        raise UserError(f"config field {name!r} must be {expected}, found {flat(config)[name]!r}")


def _size(value):
    return len(value) == 2 and all(type(side) is int and side >= 1 for side in value)


def _factors(value):
    numbers = len(value) == 2 and all(type(factor) in (int, float) for factor in value)
    return numbers and 0 < value[0] <= value[1] < math.inf
