"""The CamVid table: every architecture with one recipe, three seeds.

segjax train --config experiments/camvid_table.py --workdir runs/camvid_table
segjax sweep --config experiments/camvid_table.py --workdir runs/camvid_table
segjax sweep --config experiments/camvid_table.py:short --workdir runs/camvid_table_short
segjax sweep --config experiments/camvid_table.py:small --workdir runs/camvid_table_small
segjax reproduce camvid --workdir runs/camvid_table

The first trains SegNet from scratch, the sweeps all architectures; the last also prepares CamVid
and prints the table beside the published numbers. In all but `small` a network with VGG-16's trunk
starts from its weights, which are downloaded (550 MB, once), at a lower learning rate. The full
size is for an accelerator. For two CPU cores: `crops`, trained on crops of 180x240 for 1200 steps
and tested at 360x480; `short`, the same with 400 steps; and `small`, at 96x128, a width of 16 and
from scratch. The rows that are finished are in results/camvid_table.jsonl, of `crops` and `short`.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

# Fully connected layers are 1024 wide, as the SegNet paper has DeconvNet's to make it train.
FC = {"model.options.fc_width": 1024}
FC_KERNEL = {"crops": 5, "short": 5, "small": 3, "smoke": 1}  # 7, DeconvNet's, needs 193 pixels
FCN = FC | {"model.options.padding": "same", "model.options.batch_norm": True}
ON_VGG16 = {
    "segnet": {},
    "bayesian_segnet": {},
    "fcn32s": FCN,
    "fcn16s": FCN,
    "fcn8s": FCN,
    "deconvnet": FC,
    "deeplab_largefov": FC | {"model.options.batch_norm": True},
    "deeplab_aspp": FC | {"model.options.batch_norm": True},
    "dilation8": FC | {"model.options.batch_norm": True},
}
FROM_SCRATCH = {
    "patch_cnn": {"data.patches": 64},
    "segnet_basic": {},
    "unet": {"model.options.padding": "same", "model.options.batch_norm": True},
    "fc_densenet56": {},
    "fc_densenet67": {},
    "fc_densenet103": {},
}


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `crops` to `small`, for a CPU; `smoke`, seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet"
    config.loss.class_weights = "enet" if size in recipes.CROPS else "median_frequency"
    if size in ("small", "smoke"):
        config.model.options.width = 16 if size == "small" else 2
    if size == "smoke":
        config.data.resolution = (32, 32)  # five pools leave a pixel
    return config


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """Yield every architecture with the same config, except for its own options."""
    rate = recipes.CROPS_VGG16_RATE if size in recipes.CROPS else recipes.VGG16_RATE
    weights = {"model.pretrained": recipes.VGG16, "optimizer.learning_rate": rate}
    for seed in (0, 1, 2):
        for network, options in ON_VGG16.items():
            start = weights if size in ("full", *recipes.CROPS) else {}
            if network == "deconvnet" and size in FC_KERNEL:
                options = options | {"model.options.fc_kernel": FC_KERNEL[size]}
            yield {"model.name": network, **options, **start, "seed": seed}
        for network, options in FROM_SCRATCH.items():
            yield {"model.name": network, **options, "seed": seed}
