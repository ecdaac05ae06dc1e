"""How much work the runs of a grid are, and their order."""

import random

from segjax import config as configs
from segjax.sweep import grids, work
from support import ROOT


def test_one_seed_of_every_network_comes_before_second_ones_and_cheap_ones_first():
    grid = grids.points(f"{ROOT / 'experiments' / 'camvid_table.py'}:smoke", {})
    found = work.breadth_first(grid)
    assert sorted(point.name for point in found) == sorted(point.name for point in grid)
    assert [point.config.seed for point in found] == [seed for seed in range(3) for _ in range(15)]
    for seed in range(3):
        tier = found[15 * seed : 15 * (seed + 1)]
        assert len({configs.digest(point.config) for point in tier}) == 15
        amounts = work.amounts(tier)
        assert amounts == sorted(amounts)
        assert amounts[0] < amounts[-1]
    shuffled = random.Random(0).sample(grid, len(grid))
    assert [p.config.model.name for p in work.breadth_first(shuffled)] == [
        p.config.model.name for p in found
    ]
