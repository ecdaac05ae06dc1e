"""Pooling and batch normalization by our own kernels against XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.ops import normalization, pooling
from segjax.ops.platform import shapes_only


def both(function, *arrays):
    """Compute the value and the gradients of a loss, by the kernels and by XLA."""

    def loss(*arrays):
        y = function(*arrays)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y.astype(jnp.float32)), y

    results = []
    for by_xla in (False, True):

        def traced(*arrays, by_xla=by_xla):
            numbers = tuple(range(len(arrays)))
            if not by_xla:
                return jax.value_and_grad(loss, numbers, has_aux=True)(*arrays)
            with shapes_only():
                return jax.value_and_grad(loss, numbers, has_aux=True)(*arrays)

        assert ("ffi_call" in str(jax.make_jaxpr(traced)(*arrays))) != by_xla
        (_, y), gradients = jax.jit(traced)(*arrays)
        results.append((y, *gradients))
    return results


def values(shape, dtype, seed=0, levels=5):
    """Draw few levels, so that there are ties."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(-levels, levels + 1, shape) / 2, dtype)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    before=st.integers(0, 1),
    after=st.integers(0, 1),
    channels=st.sampled_from([1, 5, 16]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_max_pooling_with_any_stride(size, window, stride, before, after, channels, dtype):
    before, after = min(before, window - 1), min(after, window - 1)
    x = values((2, *size, channels), dtype)
    padding = (before, after), (before, after)
    found, expected = both(lambda x: pooling.max_pool(x, window, stride, padding), x)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # Where windows overlap the gradients of a pixel are added in another order.
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2**-7, atol=2**-6
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 7, 6, 16), (5, 4, 3), (2, 3, 4, 4, 5)])
def test_pooling_with_indices_and_back(shape, dtype):
    x = values(shape, dtype)

    def there_and_back(x):
        y, indices = pooling.max_pool_with_indices(x)
        return pooling.max_unpool(y * 2, indices, x.shape)

    found, expected = both(there_and_back, x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 16), (3, 40, 41, 5), (300, 3)])
def test_batch_normalization(shape, relu, dtype):
    x = values(shape, jnp.float32, levels=50).astype(dtype)
    scale, bias = jnp.linspace(0.5, 2, shape[-1]), jnp.linspace(-1, 1, shape[-1])

    def normalized(x, scale, bias):
        y, *_ = normalization.batch_norm(x, scale, bias, epsilon=1e-5, relu=relu)
        return y

    found, expected = both(normalized, x, scale, bias)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        tolerance = 2**-7 if a.dtype == jnp.bfloat16 else 1e-4
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        )
