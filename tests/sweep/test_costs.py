"""The order of runs by their costs."""

import random

import pytest

from segjax import config as configs
from segjax.sweep import costs, grids
from support import ROOT


@pytest.mark.slow
def test_one_seed_of_every_network_comes_first_and_the_cheapest_before_the_others():
    grid = grids.load_points(f"{ROOT / 'experiments' / 'camvid_table.py'}:smoke", {})
    found = costs.breadth_first(grid)
    assert sorted(point.name for point in found) == sorted(point.name for point in grid)
    assert [point.config.seed for point in found] == [seed for seed in range(3) for _ in range(15)]
    for seed in range(3):
        tier = found[15 * seed : 15 * (seed + 1)]
        assert len({configs.digest(point.config) for point in tier}) == 15
        costs_of_tier = costs.run_costs(tier)
        assert costs_of_tier == sorted(costs_of_tier)
        assert costs_of_tier[0] < costs_of_tier[-1]
    shuffled = random.Random(0).sample(grid, len(grid))
    assert [p.config.model.name for p in costs.breadth_first(shuffled)] == [
        p.config.model.name for p in found
    ]
