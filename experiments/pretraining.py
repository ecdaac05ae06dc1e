"""What ImageNet is worth: networks on VGG-16's trunk, from its weights and from scratch, on CamVid.

segjax train --config experiments/pretraining.py --workdir runs/pretraining
segjax sweep --config experiments/pretraining.py --workdir runs/pretraining
segjax sweep --config experiments/pretraining.py:small --workdir runs/pretraining_small

The weights are fetched (550 MB, once) where `model.pretrained` names them on the hub. The input is
normalised as the weights have learnt it, and the rate is the low one of fine-tuning, in either
case: a network from scratch may do better at another. The full form is for an accelerator;
`small`, at 96x128 with narrow fully connected layers, is for two CPU cores. Neither has been run to
its end, so no figure stands here.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """`full`; `small`, for a CPU; or `smoke`: the same run cut to seconds."""
    config = recipes.camvid(size)
    config.model.name = "fcn8s"
    config.model.options.batch_norm = True  # a trunk without it hardly learns from scratch
    config.loss.class_weights = "median_frequency"
    recipes.from_vgg16(config, size)
    config.data.normalization = "imagenet"
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Two networks, with and without."""
    for seed in (0, 1, 2):
        for network in ("fcn8s", "deeplab_largefov"):
            for weights in ("", recipes.VGG16):
                yield {"model.name": network, "model.pretrained": weights, "seed": seed}
