"""Convolution arranged for a CPU, against XLA's; the kernel's gradient against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from segjax.models.layers import ConvBlock
from segjax.ops import cpu_convolution as own
from segjax.ops.onednn import kernels


def by_lax(x, kernel, padding, rate):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, rhs_dilation=(rate, rate), dimension_numbers=own.NHWC
    )


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


sides = st.tuples(st.integers(-1, 5), st.integers(-1, 5))  # fewer than none are taken away


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(9, 11), st.integers(9, 11)),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rate=st.integers(1, 2),
    padding=st.tuples(sides, sides),
    seed=st.integers(0, 99),
)
def test_the_gradient_is_the_float64_sum(size, taps, rate, padding, seed):
    (x,) = arrays(seed, (2, *size, 3))
    wide = np.pad(x.astype(np.float64), ((0, 0), *np.maximum(padding, 0), (0, 0)))
    (top, bottom), (left, right) = np.maximum(-np.array(padding), 0)
    wide = wide[:, top : wide.shape[1] - bottom, left : wide.shape[2] - right]
    height, width = (n - (k - 1) * rate for n, k in zip(wide.shape[1:3], taps, strict=True))
    (dy,) = arrays(seed + 100, (2, height, width, 4))
    truth = np.empty((*taps, 3, 4))
    for i, j in np.ndindex(taps):
        seen = wide[:, i * rate :, j * rate :][:, :height, :width]
        truth[i, j] = np.einsum("bhwc,bhwd->cd", seen, dy.astype(np.float64))
    found = own.kernel_gradient(jnp.asarray(x), jnp.asarray(dy), taps, padding, rate)
    np.testing.assert_allclose(found, truth, atol=1e-4)


@pytest.mark.parametrize(
    ("padding", "rate", "taps"),
    [
        (((1, 1), (1, 1)), 1, (3, 3)),
        (((2, 2), (2, 2)), 2, (3, 3)),
        (((1, 2), (0, 0)), 1, (4, 1)),
        (((0, 0), (0, 0)), 1, (7, 7)),
        (((0, 0), (0, 0)), 2, (3, 3)),
        (((5, 1), (0, 9)), 2, (3, 3)),
        (((12, 12), (12, 12)), 12, (3, 3)),  # a rate above both sides of the map
        (((9, 9), (9, 9)), 9, (3, 3)),  # a rate above its rows alone
        (((24, 12), (12, 6)), 12, (3, 3)),
        (((0, 30), (20, 0)), 1, (3, 3)),
        (((30, -9), (0, 0)), 1, (3, 3)),  # sees nothing
        (((4, 4), (1, 1)), 1, (9, 3)),  # more taps than the map has rows
        (((8, 8), (12, 12)), 2, (9, 13)),
        (((0, 0), (0, 0)), 1, (6, 7)),  # more taps than the gradient has rows
        (((0, 0), (0, 0)), 1, (9, 3)),  # nothing comes out
        (((0, 0), (0, 0)), 5, (3, 3)),
        (((-3, 0), (0, -5)), 2, (3, 3)),
    ],
)
def test_values_and_gradients_equal_laxs(padding, rate, taps):
    x, kernel = arrays(0, (2, 8, 11, 16), (*taps, 16, 17))
    results = []
    for function in (by_lax, own.convolution):
        y, back = jax.vjp(
            lambda x, k, f=function: f(x, k, padding, rate=rate),
            jnp.asarray(x),
            jnp.asarray(kernel),
        )
        results.append((y, *back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def convolutions_of_the_gradient(x, kernel, padding=((1, 1), (1, 1)), **options):
    def loss(x, kernel):
        return jnp.sum(own.convolution(x, kernel, padding, **options) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    return text.count("conv_general_dilated[")


def test_the_products_are_used_where_they_are_faster():
    x, kernel = arrays(0, (1, 8, 8, 16), (3, 3, 16, 16))
    count = convolutions_of_the_gradient
    assert count(x, kernel) == 2  # forward, and of the map
    assert count(x, kernel, stride=2) == 3
    assert count(x, kernel[:, :, :8], groups=2) == 3
    assert count(x, kernel[:1, :1]) == 3
    assert count(x[..., :3], kernel[:, :, :3]) == 3
    assert count(x, kernel[..., :11]) == 3
    assert count(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 3


def test_where_a_kernel_is_larger_than_its_map_it_is_a_product():
    x, kernel = arrays(0, (1, 6, 6, 16), (7, 3, 16, 16))
    count = convolutions_of_the_gradient
    assert count(x, kernel, ((3, 3), (1, 1))) == 0
    assert count(x, kernel[:6], ((2, 3), (1, 1))) == 2
    assert count(x, kernel[:5], ((0, 0), (0, 0))) == 1  # the gradient of the map has two rows


def test_taps_that_see_no_pixel_are_left_out():
    x, kernel = arrays(0, (2, 6, 9, 16), (3, 3, 16, 17))
    kernel[0], kernel[2] = np.inf, np.inf  # six rows away from the center's

    def loss(kernel):
        y = own.convolution(x, kernel, ((6, 6), (6, 6)), rate=6)
        return jnp.sum(y**2)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(kernel))
    kernel[0], kernel[2] = 0, 0
    np.testing.assert_allclose(value, loss(kernel), rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient[1] != 0)


def test_an_accelerator_uses_lax(monkeypatch):
    x, kernel = arrays(0, (1, 8, 8, 16), (3, 3, 16, 16))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolutions_of_the_gradient(x, kernel) == 3


def test_a_block_uses_it_and_its_gradients_are_those_of_flax(monkeypatch):
    monkeypatch.setattr(kernels, "in_use", lambda *arrays: False)  # as without oneDNN
    block = ConvBlock(16, 3, dilation=2)
    (x,) = arrays(0, (2, 9, 7, 16))
    variables = block.init(jax.random.key(0), x, train=False)

    def gradients():
        def loss(params):
            y, _ = block.apply({**variables, "params": params}, x, train=True, mutable=True)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss))(variables["params"])

    found = gradients()
    monkeypatch.setattr(own, "LEAST_CHANNELS", 17)
    expected = gradients()
    assert np.any(np.asarray(found["conv"]["kernel"]) != np.asarray(expected["conv"]["kernel"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize(("side", "rate"), [(6, 1), (2, 1), (6, 6)])  # usual, gathered, left out
def test_seeds_in_one_program(side, rate):
    x, kernels = arrays(0, (1, side, side, 16), (2, 3, 3, 16, 16))

    def gradient(kernel):
        def loss(kernel):
            y = own.convolution(x, kernel, ((rate, rate), (rate, rate)), rate=rate)
            return jnp.mean(y**2)

        return jax.grad(loss)(kernel)

    found = jax.vmap(gradient)(jnp.asarray(kernels))
    for one, kernel in zip(found, kernels, strict=True):
        np.testing.assert_allclose(one, gradient(jnp.asarray(kernel)), rtol=1e-5, atol=1e-4)
