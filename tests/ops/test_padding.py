import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.padding import mirror


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 3), (7, 4, 2), (1, 24, 32, 3)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 2), (1, 0), (186, 186)])
def test_mirrored_as_numpy_does_however_small_the_image(shape, before, after):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    padding = [(0, 0)] * (len(shape) - 3) + [(before, after)] * 2 + [(0, 0)]
    np.testing.assert_array_equal(
        mirror(jnp.asarray(x), before, after), np.pad(x, padding, mode="reflect")
    )


def test_the_edge_is_not_repeated():
    x = jnp.arange(3.0)[:, None, None]
    np.testing.assert_array_equal(mirror(x, 5, 3)[:, 0, 0], [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1])
