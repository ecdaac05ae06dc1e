"""VGG-16, the trunk of FCN, SegNet, DeconvNet, DeepLab and Dilation8: Simonyan, Zisserman.

arXiv 1409.1556, configuration D. Thirteen 3x3 convolutions in five stages, named conv1_1 to conv5_3
in every architecture, so that `segjax.models.pretrained` can fill them.
"""

from collections.abc import Callable

import jax

# Convolutions of each stage, and its features as a multiple of the first stage's 64.
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
WIDTH = 64


def stage(x: jax.Array, number: int, conv: Callable[[jax.Array, int, str], jax.Array]) -> jax.Array:
    """Apply the convolutions of a stage, 1 to 5: conv(x, multiple of the width, name) each."""
    depth, multiple = STAGES[number - 1]
    for n in range(1, depth + 1):
        x = conv(x, multiple, f"conv{number}_{n}")
    return x
