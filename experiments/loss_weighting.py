"""Ablation of class weights and losses for rare classes: SegNet-Basic on CamVid.

segjax train --config experiments/loss_weighting.py --workdir runs/loss_weighting
segjax sweep --config experiments/loss_weighting.py --workdir runs/loss_weighting
segjax sweep --config experiments/loss_weighting.py:short --workdir runs/loss_weighting_short
segjax sweep --config experiments/loss_weighting.py:small --workdir runs/loss_weighting_small

Compares natural frequency, median frequency, ENet's weights, U-Net's border weights (with Sky
as the background), Dice, Lovasz-softmax and focal. The full size is for an accelerator. For two CPU
cores: `short`, the whole network on crops of 180x240, tested at 360x480, with a third of the steps
of camvid_table, and `small`, at 96x128 and a width of 16.

`small`, two seeds: test mIoU from 0.245 (focal) and 0.257 (natural) to 0.305 (ENet's weights), BF
from 0.18 (natural) to 0.24 (Lovasz-softmax); Dice varies most between the seeds. `short`, one seed:
mIoU 0.259 (natural), 0.252 (Lovasz-softmax), 0.244 (ENet's), 0.198 (median frequency), BF from 0.16
(natural) to 0.22 (Lovasz-softmax). The full size has not been run yet.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

LOSSES = (
    {"loss.class_weights": "none"},
    {"loss.class_weights": "median_frequency"},
    {"loss.class_weights": "enet"},
    {"loss.border_weight": 10.0},
    {"loss.name": "dice"},
    {"loss.name": "lovasz"},
    {"loss.name": "focal"},
)


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `short`, `small`, for a CPU; `smoke`, seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet_basic"
    if size in ("small", "smoke"):
        config.model.options.width = 16 if size == "small" else 2
        config.loss.border_sigma = 1.5  # pixels, reduced with the resolution
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield each loss, with the other fields of the loss at their neutral values."""
    for seed in (0, 1, 2):
        for loss in LOSSES:
            yield {**loss, "seed": seed}
