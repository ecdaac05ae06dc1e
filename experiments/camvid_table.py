"""The CamVid table: every architecture by one recipe, three seeds.

segjax train --config experiments/camvid_table.py --workdir runs/camvid_table
segjax sweep --config experiments/camvid_table.py --workdir runs/camvid_table
segjax sweep --config experiments/camvid_table.py:small --workdir runs/camvid_table_small
segjax reproduce camvid --budget 600 --output runs/camvid_table

The first trains SegNet from scratch, the second and third all of them, the last as many as it can
in ten minutes at a time. In the full grid a network with VGG-16's trunk starts from its weights,
which are fetched (550 MB, once), at a lower rate. The full form is for an accelerator; `small`, at
96x128, a width of 16 and from scratch, is for two CPU cores. Neither has been run to its end, so no
figure stands here.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

# Fully connected layers are 1024 wide, as the SegNet paper has DeconvNet's to make it train.
FC = {"model.options.fc_width": 1024}
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
    """`full`; `small`, for a CPU; or `smoke`: the same run cut to seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet"
    config.loss.class_weights = "median_frequency"
    if size in ("small", "smoke"):
        config.model.options.width = 16 if size == "small" else 2
    if size == "smoke":
        config.data.resolution = (32, 32)  # five pools leave a pixel
    return config


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """Every architecture, the same but for its own options."""
    weights = {"model.pretrained": recipes.VGG16, "optimizer.learning_rate": recipes.VGG16_RATE}
    for seed in (0, 1, 2):
        for network, options in ON_VGG16.items():
            start = weights if size in ("full", "crops") else {}
            if network == "deconvnet" and start == {}:  # 7 pixels of stride 32 are 193
                start = {"model.options.fc_kernel": 3 if size == "small" else 1}
            yield {"model.name": network, **options, **start, "seed": seed}
        for network, options in FROM_SCRATCH.items():
            yield {"model.name": network, **options, "seed": seed}
