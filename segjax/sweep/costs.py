"""Count the MACs of the runs of a grid from shapes alone, and order runs by them."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

from ml_collections import ConfigDict

from segjax import config as configs
from segjax import models
from segjax.data import catalog, datasets
from segjax.errors import UserError
from segjax.models import flops
from segjax.sweep.grids import Point

# A backward pass costs about two forward passes: one for the gradients of the parameters, one for
# the gradients of the feature maps.
PASSES = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters and MACs of one run."""

    parameters: int
    macs: int  # of training, without validation and test


def training_cost(config: ConfigDict) -> Cost:
    """Return the parameters of a run, and MACs = PASSES x MACs of a forward pass x batch x steps.

    No dataset is needed, except one of TFDS.

    Raises:
      UserError: the model does not take the config's options or images.
    """
    data = config.data
    options = catalog.Options(**data.tfds)
    channels, num_classes = datasets.shape(
        data.dataset, data.folder or None, options, data.data_dir or None
    )
    cost = _image_cost(
        config.model.name,
        num_classes,
        tuple(sorted(configs.flat(config.model.options).items())),
        (*(config.augment.crop or data.resolution), channels),
        data.patches,
    )
    images = config.batch_size * config.steps
    return Cost(cost.parameters, PASSES * images * cost.macs)


@functools.cache
def _image_cost(name, num_classes, options, shape, patches):
    model = models.create(name, num_classes, **dict(options))
    if patches:
        shape = (model.patch_size, model.patch_size, shape[-1])
    macs = flops.forward_macs(model, shape, train=True)
    return Cost(flops.parameters(model, shape), max(patches, 1) * macs)


def run_costs(grid: Sequence[Point]) -> list[int]:
    """Return the MACs of each run, or its images if the MACs of one run cannot be counted."""
    try:
        return [training_cost(point.config).macs for point in grid]
    except UserError:
        return [point.config.batch_size * point.config.steps for point in grid]


def breadth_first(grid: Sequence[Point]) -> list[Point]:
    """Return the runs sorted so that the first ones tell the most.

    One seed of each config comes before the second seeds; the cheapest run comes first.
    """
    seen: Counter[str] = Counter()
    found = []
    for point, cost in zip(grid, run_costs(grid), strict=True):
        digest = configs.digest(point.config)  # the same for all seeds
        found.append((seen[digest], cost, point.name, point))
        seen[digest] += 1
    return [point for *_, point in sorted(found, key=lambda run: run[:3])]
