"""Ablation of ImageNet pretraining: networks on VGG-16's trunk, pretrained and from scratch.

segjax train --config experiments/pretraining.py --workdir runs/pretraining
segjax sweep --config experiments/pretraining.py --workdir runs/pretraining
segjax sweep --config experiments/pretraining.py:small --workdir runs/pretraining_small

On CamVid. The weights are downloaded (550 MB, once) if `model.pretrained` names them on the hub. In
both cases the input is normalized as the weights expect and the learning rate is the low one of
fine-tuning: a network from scratch may do better with another. The full size is for an accelerator;
`small`, at 96x128 with narrow fully connected layers, is for two CPU cores. Neither has been run in
full yet.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "fcn8s"
    config.model.options.batch_norm = True  # without it the trunk hardly learns from scratch
    config.loss.class_weights = "median_frequency"
    recipes.from_vgg16(config, size)
    config.data.normalization = "imagenet"
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yield two networks, each with and without pretrained weights."""
    for seed in (0, 1, 2):
        for network in ("fcn8s", "deeplab_largefov"):
            for weights in ("", recipes.VGG16):
                yield {"model.name": network, "model.pretrained": weights, "seed": seed}
