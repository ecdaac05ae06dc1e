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


def convolved(function, x, kernel, padding, rates=(1, 1), **changes):
    options = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": rates,
        "dimension_numbers": own.NHWC,
        "feature_group_count": 1,
        "precision": None,
    }
    return function(x, kernel, changes.pop("strides", (1, 1)), padding, **options | changes)


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


sides = st.tuples(st.integers(-1, 5), st.integers(-1, 5))  # fewer than none are taken away


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(9, 11), st.integers(9, 11)),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rates=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(sides, sides),
    seed=st.integers(0, 99),
)
def test_the_gradient_is_the_float64_sum(size, taps, rates, padding, seed):
    (x,) = arrays(seed, (2, *size, 3))
    wide = np.pad(x.astype(np.float64), ((0, 0), *np.maximum(padding, 0), (0, 0)))
    (top, bottom), (left, right) = np.maximum(-np.array(padding), 0)
    wide = wide[:, top : wide.shape[1] - bottom, left : wide.shape[2] - right]
    height, width = (n - (k - 1) * r for n, k, r in zip(wide.shape[1:3], taps, rates, strict=True))
    (dy,) = arrays(seed + 100, (2, height, width, 4))
    truth = np.empty((*taps, 3, 4))
    for i, j in np.ndindex(taps):
        seen = wide[:, i * rates[0] :, j * rates[1] :][:, :height, :width]
        truth[i, j] = np.einsum("bhwc,bhwd->cd", seen, dy.astype(np.float64))
    found = own.kernel_gradient(jnp.asarray(x), jnp.asarray(dy), taps, padding, rates)
    np.testing.assert_allclose(found, truth, atol=1e-4)


@pytest.mark.parametrize(
    ("padding", "rates", "taps"),
    [
        ("SAME", (1, 1), (3, 3)),
        ("SAME", (2, 3), (3, 3)),
        ("SAME", (1, 1), (4, 1)),
        ("VALID", (1, 1), (7, 7)),
        ([(0, 0), (0, 0)], (2, 2), (3, 3)),
        ([(5, 1), (0, 9)], (1, 2), (3, 3)),
        ("SAME_LOWER", (1, 1), (4, 2)),
        ([(12, 12), (12, 12)], (12, 12), (3, 3)),  # a rate above both sides of the map
        ([(9, 9), (9, 9)], (9, 9), (3, 3)),  # a rate above its rows alone
        ([(24, 12), (12, 6)], (12, 12), (3, 3)),
        ([(0, 30), (20, 0)], (1, 1), (3, 3)),
        ([(30, -9), (0, 0)], (1, 1), (3, 3)),  # sees nothing
        ("SAME", (1, 1), (9, 3)),  # more taps than the map has rows
        ("SAME", (2, 1), (9, 13)),
        ("VALID", (1, 1), (6, 7)),  # more taps than the gradient has rows
        ("VALID", (1, 1), (9, 3)),  # nothing comes out
        ("VALID", (5, 1), (3, 3)),
        ([(-3, 0), (0, -9)], (2, 1), (3, 3)),
    ],
)
def test_values_and_gradients_equal_laxs(padding, rates, taps):
    x, kernel = arrays(0, (2, 8, 11, 16), (*taps, 16, 17))
    results = []
    for function in (lax.conv_general_dilated, own.conv_general_dilated):
        y, back = jax.vjp(
            lambda x, k, f=function: convolved(f, x, k, padding, rates),
            jnp.asarray(x),
            jnp.asarray(kernel),
        )
        results.append((y, *back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
    (y, dx, dk), found = results
    for own_value, value in zip(found, (y, dx, dk), strict=True):
        np.testing.assert_allclose(own_value, value, rtol=1e-5, atol=1e-4)


def convolutions_of_the_gradient(x, kernel, padding="SAME", **changes):
    def loss(x, kernel):
        return jnp.sum(convolved(own.conv_general_dilated, x, kernel, padding, **changes) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    return text.count("conv_general_dilated[")


def test_the_products_are_used_where_they_are_faster():
    x, kernel = arrays(0, (1, 8, 8, 16), (3, 3, 16, 16))
    count = convolutions_of_the_gradient
    assert count(x, kernel) == 2  # forward, and of the map
    assert count(x, kernel, strides=(2, 2)) == 3
    assert count(x, kernel, [(1, 1), (1, 1)], lhs_dilation=(2, 2)) == 3
    assert count(x, kernel[:, :, :8], feature_group_count=2) == 3
    assert count(x, kernel[:1, :1]) == 3
    assert count(x[..., :3], kernel[:, :, :3]) == 3
    assert count(x, kernel[..., :11]) == 3
    assert count(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 3
    other = ("NHWC", "HWOI", "NHWC")
    assert count(x, kernel, dimension_numbers=other) == 3
    assert count(x, kernel, precision=jax.lax.Precision.HIGHEST) == 3


def test_arguments_that_do_not_fit_are_refused_as_by_lax():
    x, kernel = arrays(0, (1, 8, 8, 16), (3, 3, 16, 16))
    with pytest.raises(TypeError):
        convolved(own.conv_general_dilated, x, kernel.astype(jnp.bfloat16), "SAME")
    with pytest.raises(ValueError, match="feature dimension"):
        convolved(own.conv_general_dilated, x[:, :2, :2], kernel[:, :, :15], "SAME")
    with pytest.raises(ValueError, match="expected 2"):
        convolved(own.conv_general_dilated, x, kernel, [(1, 1)] * 3)


def test_where_a_kernel_is_larger_than_its_map_it_is_a_product():
    x, kernel = arrays(0, (1, 6, 6, 16), (7, 3, 16, 16))
    count = convolutions_of_the_gradient
    assert count(x, kernel) == 0
    assert count(x, kernel[:6]) == 2
    assert count(x, kernel[:5], "VALID") == 1  # the gradient of the map has two rows


def test_taps_that_see_no_pixel_are_left_out():
    x, kernel = arrays(0, (2, 6, 9, 16), (3, 3, 16, 17))
    kernel[0], kernel[2] = np.inf, np.inf  # six rows away from the center's

    def loss(kernel):
        y = convolved(own.conv_general_dilated, x, kernel, [(6, 6), (6, 6)], (6, 6))
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
            y = convolved(own.conv_general_dilated, x, kernel, "SAME", (rate, rate))
            return jnp.mean(y**2)

        return jax.grad(loss)(kernel)

    found = jax.vmap(gradient)(jnp.asarray(kernels))
    for one, kernel in zip(found, kernels, strict=True):
        np.testing.assert_allclose(one, gradient(jnp.asarray(kernel)), rtol=1e-5, atol=1e-4)
