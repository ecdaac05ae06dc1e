"""Ablation of the skips of an FCN: FCN-32s, 16s and 8s on CamVid, and one from pool2.

segjax train --config experiments/skip_strides.py --workdir runs/skip_strides
segjax sweep --config experiments/skip_strides.py --workdir runs/skip_strides
segjax sweep --config experiments/skip_strides.py:small --workdir runs/skip_strides_small

The first trains FCN-8s, the others all four with three seeds. Each starts from VGG-16's weights,
which are downloaded (550 MB, once) unless `--config.model.pretrained` names a file. The full size
is for an accelerator; `small`, at 96x128 with narrow fully connected layers, is for two CPU cores.

`small` took 11 to 18 minutes per run on a busy core. Two seeds: test mIoU 0.187, 0.365, 0.387,
0.388 from FCN-32s to the one from pool2, BF 0.09, 0.16, 0.20, 0.21. The full size has not been run
yet.

In these rows the skip from pool4 doubles both scores, the one from pool3 does more for the borders
(BF) than for mean IoU, and the one from pool2 next to nothing.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "fcn8s"
    config.model.options.padding = "same"
    config.loss.class_weights = "median_frequency"
    recipes.from_vgg16(config, size)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield the four networks, each from VGG-16 alone."""
    for seed in (0, 1, 2):
        for network in ("fcn32s", "fcn16s", "fcn8s", "fcn4s"):
            yield {"model.name": network, "seed": seed}
