"""Training recipes shared by the CamVid experiments."""

from ml_collections import ConfigDict

from segjax.config import default

VGG16 = "timm/vgg16.tv_in1k"  # name on the Hugging Face hub
VGG16_RATE = 1e-4  # learning rate from those weights
CROPS_VGG16_RATE = 3e-4  # learning rate of the shorter `crops` runs; see experiments/NOTES.md
SIZES = ("full", "crops", "short", "small", "smoke")
CROPS = ("crops", "short")  # sizes trained on crops


def camvid(size: str) -> ConfigDict:
    """Return the CamVid config shared by all architectures: AdamW, cosine schedule, flips, scaling.

    Args:
      size: `full`: 360x480 on an accelerator, 174 epochs of 367 images; `crops`: trained on 180x240
        crops and tested at 360x480, one to four hours on two CPU cores; `short`: `crops` with
        a third of the steps; `small`: 96x128, 11 epochs, for two CPU cores; `smoke`: two steps of
        `small` on 24x32 pixels.

    Raises:
      ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}, expected one of {', '.join(SIZES)}")
    config = default()
    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 8
    config.precision = "bfloat16"

    config.augment.flip = True
    config.augment.scale = (0.8, 1.4)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200

    config.steps = 8000
    config.eval_every = 400
    config.checkpoint_every = 400
    config.log_every = 50

    if size in CROPS:
        config.augment.crop = (180, 240)
        config.augment.scale = (0.7, 1.4)
        config.optimizer.learning_rate = 3e-3
        config.optimizer.warmup_steps = 50
        config.steps, config.eval_every, config.checkpoint_every = 1200, 200, 100
        config.log_every = 20
        config.ema_decay = 0.99
        config.eval_batch_size = 4
        if size == "short":
            config.steps = 400
    elif size != "full":
        config.data.resolution = (96, 128)
        config.batch_size = 4
        config.precision = "float32"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup_steps = 100
        config.steps, config.eval_every, config.checkpoint_every = 1000, 250, 250
    if size == "smoke":
        cut_to_seconds(config)
    return config


def from_vgg16(config: ConfigDict, size: str) -> None:
    """Initialize the VGG-16 trunk of a config's network from ImageNet weights; lower the rate.

    The trunk keeps its full width, the only one with published weights, except for `smoke`. `small`
    and `smoke` narrow the fully connected layers, and `small` trains for 150 steps.
    """
    config.model.pretrained = VGG16
    config.optimizer.learning_rate = CROPS_VGG16_RATE if size in CROPS else VGG16_RATE
    if size not in ("full", *CROPS):
        config.model.options.fc_width = 256
        config.optimizer.warmup_steps = 20
        config.steps, config.eval_every, config.checkpoint_every = 150, 50, 50
        config.log_every = 10
    if size == "smoke":
        config.model.pretrained = ""
        config.model.options.update(width=2, fc_width=4)
        cut_to_seconds(config)


def cut_to_seconds(config: ConfigDict) -> None:
    """Cut a config to two steps on 24x32 pixels."""
    config.data.resolution = (24, 32)
    config.optimizer.warmup_steps = 1
    config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
