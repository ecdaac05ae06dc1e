"""Going deeper with atrous convolution: output stride against depth, Tables 1 to 3 of DeepLab v3.

segjax train --config experiments/going_deeper.py --workdir runs/going_deeper
segjax sweep --config experiments/going_deeper.py --workdir runs/going_deeper
segjax sweep --config experiments/going_deeper.py:small --workdir runs/going_deeper_small

The cascade of the paper's section 3.2 on CamVid, without ASPP: a ResNet of 4 to 7 blocks, of which
5 to 7 are copies of block 4, and scores from the last map. Without atrous convolution each block
halves the map, to an output stride of 32 with 4 blocks and of 256 with 7; with it the blocks beyond
the output stride are dilated. Seven blocks at each output stride are Table 1, output stride 16 at
each depth Table 2, the multi-grid rates those of Table 3, which is on ResNet-101.

The full size is ResNet-50 from ImageNet's weights, which are downloaded (100 MB, once) unless
`--config.model.pretrained` names a file, and is for an accelerator. `small` is for two CPU cores:
ResNet-18 of half the width from scratch, at 96x128, where an output stride of 128 or 256 leaves one
score for the whole image; its blocks have two units, and so the first two of the multi-grid rates.
Its rows are in results/going_deeper.jsonl; the full size has not been run.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes

PLAIN = (1, 1, 1)
GRIDS = ((1, 2, 1), (1, 2, 3), (1, 2, 4), (2, 2, 2))
DEPTHS = (4, 5, 6, 7)  # blocks


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "deeplab_v3"
    options = config.model.options
    options.update(trunk="resnet50", head="none", blocks=7, output_stride=16, multi_grid=PLAIN)
    config.loss.class_weights = "median_frequency"
    if size in ("small", "smoke"):
        options.update(trunk="resnet18", width=32)
        config.optimizer.warmup_steps = 30
        config.steps, config.eval_every, config.checkpoint_every = 400, 200, 200
        if size == "smoke":
            options.width = 2
            recipes.cut_to_seconds(config)
    else:
        config.model.pretrained = "timm/resnet50.a1_in1k"
        config.optimizer.learning_rate = recipes.VGG16_RATE
    return config


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """Yield each depth and output stride, and the multi-grid rates; fewer of these if not full."""
    points = [(blocks, 2 ** (blocks + 1), PLAIN) for blocks in DEPTHS]
    points += [(blocks, 16, PLAIN) for blocks in DEPTHS]
    points += [(7, stride, PLAIN) for stride in (8, 32, 64, 128)]
    if size == "full":
        points += [(blocks, 16, grid) for grid in GRIDS for blocks in DEPTHS]
    else:
        points += [(blocks, 16, (1, 2, 4)) for blocks in (4, 7)]
    for seed in (0, 1, 2) if size == "full" else (0, 1):
        for blocks, stride, grid in points:
            yield {
                "model.options.blocks": blocks,
                "model.options.output_stride": stride,
                "model.options.multi_grid": grid,
                "seed": seed,
            }
