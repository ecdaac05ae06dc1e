"""Ablation of the output stride and the dilation rates of DeepLab on CamVid.

segjax train --config experiments/dilation_rates.py --workdir runs/dilation_rates
segjax sweep --config experiments/dilation_rates.py --workdir runs/dilation_rates
segjax sweep --config experiments/dilation_rates.py:short --workdir runs/dilation_rates_short
segjax sweep --config experiments/dilation_rates.py:small --workdir runs/dilation_rates_small

DeepLab-LargeFOV at output stride 32, 16 and 8 (the same depth without and with atrous convolution)
and with several rates of fc6; DeepLab-ASPP with near and far rates (the paper's ASPP-S and ASPP-L).
Each starts from VGG-16's convolutions, which are downloaded (550 MB, once) unless
`--config.model.pretrained` names a file. The full size is for an accelerator. For two CPU cores:
`short`, on crops of 180x240 and tested at 360x480, with the recipe of camvid_table and a third of
its steps, and `small`, at 96x128 with narrow fully connected layers: its score maps are 13x17, and
the largest rates reach beyond their edges.

`small`, two seeds: test mIoU 0.215, 0.263, 0.277 at output stride 32, 16, 8, BF 0.07, 0.08, 0.10;
ASPP with the near rates 0.303. `short`, one seed: 0.414, 0.446, 0.478 at output stride 32, 16, 8,
BF 0.17, 0.22, 0.27. The full size has not been run yet.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

LARGE_FOV = ((32, 12), (16, 12), (8, 12), (8, 6), (8, 2))  # output stride, rate
ASPP = ((2, 4, 8, 12), (6, 12, 18, 24))  # rates of the branches


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `short`, `small`, for a CPU; `smoke`, seconds."""
    config = recipes.camvid(size)
    config.model.name = "deeplab_largefov"
    config.loss.class_weights = "median_frequency"
    recipes.from_vgg16(config, size)
    if size in recipes.CROPS:
        config.model.options.update(fc_width=1024, batch_norm=True)
        config.loss.class_weights = "enet"
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield LargeFOV at each output stride and rate, and ASPP with each set of rates."""
    for seed in (0, 1, 2):
        for stride, rate in LARGE_FOV:
            options = {"model.options.output_stride": stride, "model.options.rate": rate}
            yield {"model.name": "deeplab_largefov", **options, "seed": seed}
        for rates in ASPP:
            yield {"model.name": "deeplab_aspp", "model.options.rates": rates, "seed": seed}
