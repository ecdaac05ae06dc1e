"""Convolution by oneDNN against float64 sums written as loops over the taps, and against lax."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from segjax.ops import convolution, upsampling
from segjax.ops.onednn import kernels
from segjax.ops.platform import shapes_only

ROOT = Path(__file__).parents[3]


def taps_of(x, kernel, sides, stride, rate):
    """Return the pixels that each tap sees, as slices of the padded map."""
    size = [n + sum(side) for n, side in zip(x.shape[1:3], sides, strict=True)]
    outputs = [
        (n - (k - 1) * rate - 1) // stride + 1 for n, k in zip(size, kernel.shape[:2], strict=True)
    ]
    for place in np.ndindex(kernel.shape[:2]):
        rows, columns = (
            slice(tap * rate, tap * rate + (n - 1) * stride + 1, stride)
            for tap, n in zip(place, outputs, strict=True)
        )
        yield place, (slice(None), rows, columns)


def reference(x, kernel, dy, sides, stride, rate, groups):
    """Compute the convolution and the gradients of sum(y dy) in float64."""
    x, kernel, dy = (np.asarray(each, np.float64) for each in (x, kernel, dy))
    seen = np.pad(x, [(0, 0), *sides, (0, 0)])
    y, dx, dk = np.zeros(dy.shape), np.zeros(seen.shape), np.zeros(kernel.shape)
    channels, features = kernel.shape[2], kernel.shape[3] // groups
    for place, at in taps_of(x, kernel, sides, stride, rate):
        for group in range(groups):
            inner = slice(group * channels, (group + 1) * channels)
            outer = slice(group * features, (group + 1) * features)
            pixels, weights = seen[at][..., inner], kernel[place][:, outer]
            y[..., outer] += pixels @ weights
            dk[place][:, outer] = np.einsum("bhwc,bhwd->cd", pixels, dy[..., outer])
            dx[at][..., inner] += dy[..., outer] @ weights.T
    (top, _), (left, _) = sides
    return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dk


def arrays(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    rate=st.integers(1, 2),
    padding=st.none() | st.integers(0, 6),
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=st.sampled_from([1, 3, 16]),
    features=st.sampled_from([1, 5, 16]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_values_and_gradients_are_the_float64_sums(
    size, taps, stride, rate, padding, groups, channels, features, dtype, bias, seed
):
    kernel_shape = (*taps, channels, groups * features)
    x, kernel = arrays(seed, (2, *size, groups * channels), kernel_shape)
    x, rounded = x.astype(dtype), kernel.astype(dtype).astype(jnp.float32)
    (offset,) = arrays(seed + 1, (groups * features,)) if bias else (None,)

    def convolve(x, kernel, offset):
        return convolution.conv(
            x, kernel, offset, stride=stride, padding=padding, rate=rate, groups=groups
        )

    y, back = jax.vjp(convolve, x, kernel, offset)
    (dy,) = arrays(seed + 2, y.shape, dtype=dtype)
    dx, dk, db = back(dy)
    sides = [(padding, padding)] * 2
    if padding is None:
        reach = [(k - 1) * rate for k in taps]
        sides = [(n // 2, n - n // 2) for n in reach]
    expected = reference(x, rounded, dy, sides, stride, rate, groups)
    assert (y.dtype, dx.dtype, dk.dtype) == (dtype, dtype, jnp.float32)
    # bfloat16 has 8 bits; what is rounded is the result alone, the sums are float32.
    tolerance = {"rtol": 2**-8, "atol": 0.1} if dtype == jnp.bfloat16 else {"atol": 5e-5}
    shift = 0 if offset is None else np.asarray(offset)
    for found, truth in zip((y, dx), (expected[0] + shift, expected[1]), strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), truth, **tolerance)
    np.testing.assert_allclose(dk, expected[2], atol=1e-4)
    if bias:
        np.testing.assert_allclose(db, np.asarray(dy, np.float64).sum((0, 1, 2)), atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_relu_zeroes_values_and_gradients(dtype):
    x, kernel = arrays(0, (1, 9, 8, 16), (3, 3, 16, 17))
    x = x.astype(dtype)
    (bias,) = arrays(1, (17,))

    def gradients(relu):
        def loss(x, kernel, bias):
            y = convolution.conv(x, kernel, bias, padding=None, relu=relu)
            y = y if relu else jax.nn.relu(y)
            return jnp.sum(jnp.sin(y.astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, kernel, bias)

    leaves = map(jax.tree.leaves, (gradients(True), gradients(False)))
    for found, expected in zip(*leaves, strict=True):
        np.testing.assert_array_equal(
            np.asarray(found, np.float32), np.asarray(expected, np.float32)
        )


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    side=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    output_padding=st.integers(0, 1),
    rate=st.integers(1, 2),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_a_transposed_convolution_is_that_of_lax(
    size, side, stride, padding, output_padding, rate, dtype
):
    x, kernel = arrays(0, (2, *size, 16), (side, side, 5, 16))
    x, kernel = x.astype(dtype), kernel.astype(dtype).astype(jnp.float32)
    (bias,) = arrays(1, (5,))
    if min(size) * stride - stride + (side - 1) * rate + 1 <= 2 * padding:
        return  # nothing comes out

    def up(x, kernel, bias):
        return upsampling.conv_transpose(
            x,
            kernel,
            bias,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            rate=rate,
        )

    def by_lax(x, kernel, bias):
        with shapes_only():  # as on no CPU
            return up(x.astype(jnp.float32), kernel, bias)

    (y, back), (truth, back_truth) = (jax.vjp(f, x, kernel, bias) for f in (up, by_lax))
    (dy,) = arrays(2, y.shape, dtype=dtype)
    tolerance = {"rtol": 2**-7, "atol": 0.2} if dtype == jnp.bfloat16 else {"atol": 1e-4}
    pairs = zip((y, *back(dy)), (truth, *back_truth(dy.astype(jnp.float32))), strict=True)
    for found, expected in pairs:
        assert found.shape == expected.shape
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(expected, np.float32), **tolerance
        )


def test_onednn_computes_convolutions():
    x, kernel = arrays(0, (1, 8, 8, 16), (3, 3, 16, 16))

    def loss(x, kernel):
        return jnp.sum(convolution.conv(x, kernel, padding=1) ** 2)

    def text(*arguments):
        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arguments))

    assert "conv_general_dilated" not in text(x, kernel)
    assert text(x, kernel).count("ffi_call[") == 3  # forward, and the gradient of either
    with shapes_only():
        counted = text(x, kernel)
    assert counted.count("conv_general_dilated[") == 3
    assert "ffi_call" not in counted
    half = x.astype(jnp.float16)  # no dtype of the kernels here
    assert "ffi_call" not in text(half, kernel)


@jax.jit
def gradients(x, kernel):
    def loss(x, kernel):
        return jnp.mean(convolution.conv(x, kernel, padding=1) ** 2)

    return jax.grad(loss, (0, 1))(x, kernel)


def test_calls_are_bitwise_repeatable_and_shapes_need_none():
    x, kernel = arrays(0, (2, 20, 24, 32), (3, 3, 32, 32))
    first = gradients(x, kernel)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, first, gradients(x, kernel))
    shapes = jax.eval_shape(gradients, x, kernel)
    assert [each.shape for each in shapes] == [x.shape, kernel.shape]


def test_seeds_in_one_program():
    (x,) = arrays(0, (3, 9, 9, 16))
    (kernels_of_seeds,) = arrays(1, (2, 3, 3, 16, 8))
    _, together = jax.jit(jax.vmap(gradients, (None, 0)))(x, kernels_of_seeds)
    for found, kernel in zip(together, kernels_of_seeds, strict=True):
        np.testing.assert_array_equal(found, gradients(x, kernel)[1])


def test_two_devices_give_the_same_as_one():
    (x,) = arrays(0, (4, 12, 12, 16))
    (kernel,) = arrays(1, (3, 3, 16, 16))

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.sum(convolution.conv(x, k, padding=1) ** 2))(kernel)

    shares = x.reshape(2, 2, *x.shape[1:])
    each = jax.pmap(gradient, in_axes=(0, None))(shares, kernel)
    for _ in range(20):
        again = jax.pmap(gradient, in_axes=(0, None))(shares, kernel)
        np.testing.assert_array_equal(again, each)
    np.testing.assert_allclose(np.sum(each, 0), gradient(x, kernel), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_a_thousand_calls_leave_no_memory_behind():
    x, kernel = arrays(0, (1, 16, 16, 64), (3, 3, 64, 64))  # 64 kB a map

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(20):
        jax.block_until_ready(gradients(x, kernel))
    before = resident()
    for _ in range(1000):
        jax.block_until_ready(gradients(x, kernel))
    assert resident() - before < 20e6


def test_padding_beyond_the_reach_of_a_kernel():
    x, kernel = arrays(0, (1, 6, 7, 3), (3, 3, 3, 8))
    found = convolution.conv(x, kernel, padding=100)
    expected = lax.conv_general_dilated(
        x, kernel, (1, 1), [(100, 100)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_slow_loop_of_onednn_is_not_used():
    """The gradient of a large kernel is one where more than half of a window is beyond the border.

    DeconvNet's fc6-deconv, as a convolution: 72 s where its own way takes 0.8.
    """
    half, whole = (kernels.Window(1, 1, ((n, n), (n, n))) for n in (3, 6))

    def arguments(channels):
        shapes = (2, 6, 9, channels), (7, 7, channels, 512)
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    assert kernels.dtype_of(*arguments(4096), whole) is None
    # With AVX2 alone, oneDNN has only the loop for 4096 channels and half a window as well.
    x, kernel = arguments(4096 if "avx512f" in Path("/proc/cpuinfo").read_text() else 512)
    assert kernels.dtype_of(x, kernel, half) == jnp.float32
    jaxpr = jax.make_jaxpr(lambda x, k: convolution.conv(x, k, padding=6))(x, kernel)
    assert "ffi_call" in str(jaxpr)  # of a map with three of the six zeros around it already


def test_xla_computes_what_onednn_does_not_support():
    x, kernel = arrays(0, (1, 2, 2, 3), (5, 5, 3, 8))
    window = kernels.Window(1, 1, ((0, 0), (0, 0)))
    assert kernels.dtype_of(x, kernel, window) is None
    assert convolution.conv(x, kernel).shape == (1, 0, 0, 8)


WITH_AVX2_ALONE = """
import jax, jax.numpy as jnp, numpy as np
from segjax.ops import convolution, upsampling

rng = np.random.default_rng(0)
x, kernel = (
    jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((1, 8, 8, 16), (3, 3, 16, 16))
)
half = x.astype(jnp.bfloat16)
for function in (
    convolution.conv,
    lambda x, kernel: upsampling.conv_transpose(x, kernel, stride=2),
):
    def loss(x, kernel):
        y = function(x, kernel)
        assert y.dtype == x.dtype
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    gradient = jax.grad(loss, (0, 1))
    assert "ffi_call" in str(jax.make_jaxpr(gradient)(half, kernel))
    found = jax.jit(gradient)(half, kernel)
    exact = jax.jit(gradient)(half.astype(jnp.float32), kernel)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.05 * abs(b).max())
    assert found[1].dtype == jnp.float32

# Blocks of channels, six times; a matrix product, five times, also since jit:avx2 has no dilation.
for channels, features, taps, stride, rate in (
    (16, 24, 3, 1, 1), (8, 8, 1, 1, 1), (16, 8, 3, 2, 1), (20, 12, 3, 1, 1), (1, 1, 3, 1, 1),
    (512, 3, 3, 1, 1),
    (16, 11, 1, 1, 1), (512, 8, 1, 1, 1), (3, 512, 3, 1, 1), (8, 16, 3, 1, 3), (1, 1, 3, 1, 2),
):
    shapes = (2, 9, 10, channels), (taps, taps, channels, features), (features,)
    x, kernel, bias = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)
    def loss(x, kernel, bias):
        y = convolution.conv(x, kernel, bias, stride=stride, rate=rate, padding=1)
        return jnp.sum(jnp.sin(y / channels))

    def plain(x, kernel, bias):
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), rhs_dilation=(rate, rate),
            dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.sin((y + bias) / channels))

    values = zip(*(jax.grad(f, (0, 1, 2))(x, kernel, bias) for f in (loss, plain)), strict=True)
    for a, b in values:
        np.testing.assert_allclose(a, b, atol=1e-5 * abs(b).max())
"""


def test_a_cpu_with_avx2_alone():
    """Values, and that no call takes the slow ways: `kernels.rounded` and kernels.cc say which."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITH_AVX2_ALONE]
    run = subprocess.run(
        command,
        check=True,
        env=environment | {"ONEDNN_VERBOSE": "1"},
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    calls = [line for line in run.stdout.splitlines() if ",exec," in line]
    gradients = [line for line in calls if "backward_weights" in line]
    blocked = ["aBcd8b" in line for line in gradients]
    assert blocked[-11:] == [True] * 6 + [False] * 5
    assert blocked == ["gemm" not in line for line in gradients]
    assert not any("bf16" in line for line in calls)
