"""U-Net on the membranes of ISBI 2012, with and without border weights between cells.

segjax train --config experiments/unet_isbi.py --workdir runs/unet_isbi
segjax sweep --config experiments/unet_isbi.py:small --workdir runs/unet_isbi_small

The full size is the paper's, for an accelerator. `small`, at a width of 12 and half the resolution,
padded and with batch normalization, is for two CPU cores.

Pixel error is 1 - global accuracy over the last six slices; the four before them select the best
step, and the challenge scores other slices. `small` takes seven minutes per run with
JAX_NUM_CPU_DEVICES=2 (fifteen on a busy machine). Seed 0: pixel error 0.101 and mIoU 0.746 with the
border weights, 0.120 and 0.724 without. The full size has not been run yet.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = default()
    config.model.name = "unet"
    config.model.options.padding = "valid"  # 512x512 is mirrored to 700x700

    config.data.dataset = "isbi2012"
    config.data.resolution = (512, 512)
    config.batch_size = 1  # one large tile

    config.augment.flip = True  # not in the paper
    config.augment.elastic = 10.0
    config.augment.rotation = 180.0
    config.augment.shift = 20.0
    config.augment.outside = "mirror"
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2

    config.loss.class_weights = "median_frequency"
    config.loss.border_weight = 10.0
    config.loss.border_sigma = 5.0

    # Batch and momentum are the paper's; its learning rate and length are not published.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.momentum = 0.99

    config.steps = 40_000
    config.eval_every = 1000
    config.eval_batch_size = 1
    config.best_metric = "global_accuracy"
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "full":
        config.precision = "bfloat16"
    elif size in ("small", "smoke"):
        config.model.options.width = 12
        config.model.options.padding = "same"
        config.model.options.batch_norm = True
        config.data.resolution = (256, 256)
        config.batch_size, config.eval_batch_size = 2, 2
        # Lengths in pixels are halved with the resolution.
        config.augment.elastic = 5.0
        config.augment.shift = 10.0
        config.loss.border_sigma = 2.5
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.weight_decay = 1e-2
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 30
        config.steps, config.eval_every, config.checkpoint_every = 500, 100, 100
        config.log_every = 10
    else:
        raise ValueError(f"unknown size {size!r}, expected full, small or smoke")

    if size == "smoke":
        config.model.options.width = 2
        config.model.options.batch_norm = False  # half the time to compile
        config.data.resolution = (16, 16)
        config.batch_size, config.eval_batch_size = 1, 1
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
        config.optimizer.warmup_steps = 1
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield the runs with and without the border weights."""
    for seed in (0, 1):
        for weight in (0.0, 10.0):
            yield {"loss.border_weight": weight, "seed": seed}
