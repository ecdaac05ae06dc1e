"""The decoder variants of the SegNet paper's Table 1 on CamVid: eight networks, two weightings.

segjax train --config experiments/decoder_variants.py --workdir runs/decoder_variants
segjax sweep --config experiments/decoder_variants.py --workdir runs/decoder_variants

The first trains SegNet-Basic, the second all eight with either weighting and three seeds. For an
accelerator at 360x480; `:small` after the file's name is at 96x128 and a width of 16, for a CPU.

`small` with the authors' weights took 2 to 32 minutes a run on a busy core: test mIoU from 0.215
(SegNet-Basic, sd 0.040) to 0.307 (FCN-Basic, sd 0.008), BF from 0.12 to 0.25. The full size has not
been run yet.

In the paper bilinear interpolation is the worst in mean IoU and BF; adding the encoder's maps helps
borders most; with class weights, no reduction of channels gives the best mean IoU; class weights
raise class accuracy, and lower global accuracy in seven of the eight.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes
from segjax.config import default

NETWORKS = (
    "bilinear_interpolation",
    "segnet_basic",
    "segnet_basic_encoder_addition",
    "segnet_basic_single_channel_decoder",
    "fcn_basic",
    "fcn_basic_no_addition",
    "fcn_basic_no_dim_reduction",
    "fcn_basic_no_addition_no_dim_reduction",
)


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = default()
    config.model.name = "segnet_basic"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 12

    config.augment.flip = True  # not in the paper; reimplementations need it

    # A constant rate until convergence; the paper does not give the number of steps. 10,000 steps
    # are 327 epochs of 367.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4

    config.steps = 10_000
    config.eval_every = 1000  # as the paper does
    config.eval_batch_size = 4
    config.best_metric = "global_accuracy"  # as the paper selects
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "full":
        config.precision = "bfloat16"
        config.data.normalization = "local_response"  # the first layer of SegNet-Basic
    elif size in ("small", "smoke"):
        config.model.options.width = 16
        config.data.resolution = (96, 128)
        config.batch_size = 4
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.weight_decay = 1e-2
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 100
        config.steps, config.eval_every, config.checkpoint_every = 1000, 250, 250
        if size == "smoke":
            config.model.options.width = 2
            recipes.cut_to_seconds(config)
    else:
        raise ValueError(f"unknown size {size!r}, expected full, small or smoke")
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield every network with the authors' median-frequency weights, and without weights."""
    for weights in ("segnet", "none"):
        for seed in (0, 1, 2):
            for network in NETWORKS:
                yield {"model.name": network, "loss.class_weights": weights, "seed": seed}
