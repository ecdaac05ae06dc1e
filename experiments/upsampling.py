"""Ablation of upsampling on CamVid: the decoder of SegNet-Basic with each kind.

segjax train --config experiments/upsampling.py --workdir runs/upsampling
segjax sweep --config experiments/upsampling.py --workdir runs/upsampling
segjax sweep --config experiments/upsampling.py:small --workdir runs/upsampling_small

Unpooling with the pooling indices (SegNet's own), bed of nails, nearest, bilinear, and a learned
transposed convolution (4x4, bilinear at first). All are followed by the same 7x7 convolution. The
full size is for an accelerator; `small`, at 96x128 and a width of 16, is for two CPU cores. Neither
has been run in full yet.
"""

from collections.abc import Iterator
from typing import Any, get_args

from ml_collections import ConfigDict

from segjax import recipes
from segjax.models.segnet import Upsampling


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet_basic"
    config.model.options.upsampling = "unpool"
    config.loss.class_weights = "median_frequency"
    if size in ("small", "smoke"):
        config.model.options.width = 16 if size == "small" else 2
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield the five kinds of upsampling."""
    for seed in (0, 1, 2):
        for upsampling in get_args(Upsampling):
            yield {"model.options.upsampling": upsampling, "seed": seed}
