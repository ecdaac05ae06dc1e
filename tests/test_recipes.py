"""Test the recipes shared by the CamVid experiments."""

import pytest

from segjax import config as configs
from segjax import recipes


@pytest.mark.parametrize("size", recipes.SIZES)
def test_each_size_is_a_valid_config(size):
    configs.check(recipes.camvid(size))


def test_unknown_size_lists_all_sizes():
    with pytest.raises(ValueError, match="'huge', expected one of full, crops, short, small"):
        recipes.camvid("huge")
