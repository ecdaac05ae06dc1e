"""Ablation of augmentation on CamVid's 367 training images, with SegNet-Basic.

segjax train --config experiments/augmentation.py --workdir runs/augmentation
segjax sweep --config experiments/augmentation.py --workdir runs/augmentation
segjax sweep --config experiments/augmentation.py:small --workdir runs/augmentation_small

Compares no augmentation; flips; flips and rescaling; these with brightness, contrast and
saturation; and all of them with U-Net's elastic deformation and rotation. The full size is for an
accelerator; `small`, at 96x128 and a width of 16, is for two CPU cores. Neither has been run in
full yet.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

FLIP = {"augment.flip": True}
SCALE = {**FLIP, "augment.scale": (0.8, 1.4)}
COLOR = {
    **SCALE,
    "augment.brightness": 0.2,
    "augment.contrast": 0.2,
    "augment.saturation": 0.2,
}


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet_basic"
    config.augment.flip, config.augment.scale = False, (1.0, 1.0)
    config.loss.class_weights = "median_frequency"
    if size in ("small", "smoke"):
        config.model.options.width = 16 if size == "small" else 2
    return config


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """Yield each augmentation added to those before it."""
    pixels = 3.0 if size in ("small", "smoke") else 10.0  # U-Net's at 512x512
    warp = {**COLOR, "augment.elastic": pixels, "augment.rotation": 5.0}
    for seed in (0, 1, 2):
        for augmentation in ({}, FLIP, SCALE, COLOR, warp):
            yield {**augmentation, "seed": seed}
