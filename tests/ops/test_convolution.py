"""Convolution against its matrix, worked examples, and dilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.ops.convolution import conv
from segjax.ops.upsampling import conv_transpose
from support.matrices import conv_matrix

# A kernel (x, y, z) and a signal (a, b, c, d): primes, so that no two products are the same.
X, Y, Z = 2, 3, 5
A, B, C, D = 7, 11, 13, 17
KERNEL, SIGNAL = np.array([X, Y, Z]), np.array([A, B, C, D])
# By stride: the convolution with padding 1, and the transposed matrix, in which the padding has its
# rows too, times as many of a, b, c, d as the convolution has outputs.
WORKED = {
    1: (
        [A * Y + B * Z, A * X + B * Y + C * Z, B * X + C * Y + D * Z, C * X + D * Y],
        [
            A * X,
            A * Y + B * X,
            A * Z + B * Y + C * X,
            B * Z + C * Y + D * X,
            C * Z + D * Y,
            D * Z,
        ],
    ),
    2: (
        [A * Y + B * Z, B * X + C * Y + D * Z],
        [A * X, A * Y, A * Z + B * X, B * Y, B * Z, 0],
    ),
}


def row(values):
    """Return numbers as an image of one row."""
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def kernel_of(values):
    """Return a kernel for one row of an image, as a square that fits `padding`."""
    kernel = jnp.zeros((len(values), len(values), 1, 1), jnp.float32)
    return kernel.at[len(values) // 2, :, 0, 0].set(jnp.asarray(values, jnp.float32))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_worked_example(stride):
    convolved, transposed = WORKED[stride]
    matrix = conv_matrix(KERNEL, 4, stride, padding=1)
    np.testing.assert_array_equal(matrix @ SIGNAL, convolved)
    found = conv(row(SIGNAL), kernel_of(KERNEL), stride=stride, padding=1)
    np.testing.assert_array_equal(found.ravel(), convolved)

    values = SIGNAL[: len(convolved)]
    written_out = conv_matrix(KERNEL, 6, stride)  # of the signal with its two zeros
    np.testing.assert_array_equal(written_out @ np.pad(SIGNAL, 1), convolved)
    np.testing.assert_array_equal(written_out.T @ values, transposed)
    np.testing.assert_array_equal(matrix.T @ values, transposed[1:-1])

    end = (6 - len(KERNEL)) % stride  # what the stride steps over
    kernel = jnp.asarray(KERNEL, jnp.float32).reshape(1, -1, 1, 1)
    found = conv_transpose(row(values), kernel, stride=stride, output_padding=end)
    np.testing.assert_array_equal(found[0, 0, :, 0], transposed)
    found = conv_transpose(
        row(values), kernel_of(KERNEL), stride=stride, padding=1, output_padding=end
    )
    np.testing.assert_array_equal(found[0, 0, :, 0], transposed[1:-1])


def test_a_matrix_in_two_dimensions_by_hand():
    matrix = conv_matrix(np.array([[2, 3], [5, 7]]), (2, 3))
    np.testing.assert_array_equal(matrix, [[2, 3, 0, 5, 7, 0], [0, 2, 3, 0, 5, 7]])
    matrix = conv_matrix(np.array([2, 3]), 5, stride=2, padding=1, rate=2)
    np.testing.assert_array_equal(matrix, [[0, 3, 0, 0, 0], [0, 2, 0, 3, 0], [0, 0, 0, 2, 0]])
    assert conv_matrix(np.ones(2, np.float32), 3).dtype == np.float32


@st.composite
def convolutions(draw):
    """Draw a kernel (kh, kw), an image (H, W), stride, padding, rate, and the stride's remainder.

    The sides of the image leave as many, for `output_padding` is one number.
    """
    stride, rate = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    reach = [(side - 1) * rate + 1 for side in sides]
    padding, left = draw(st.integers(0, 2)), draw(st.integers(0, stride - 1))
    size = []
    for seen in reach:
        steps = draw(st.integers(0, 3))
        while seen + steps * stride + left - 2 * padding < 1:
            steps += 1
        size.append(seen + steps * stride + left - 2 * padding)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    return rng.normal(size=sides), tuple(size), stride, padding, rate, left


@settings(max_examples=25)
@given(case=convolutions())
def test_convolution_is_a_matrix_and_its_transpose_the_transposed_one(case):
    kernel, size, stride, padding, rate, left = case
    matrix = conv_matrix(kernel, size, stride, padding, rate)
    rng = np.random.default_rng(0)
    image, values = (rng.normal(size=n) for n in reversed(matrix.shape))
    options = {"stride": stride, "padding": padding, "rate": rate}
    taps = jnp.asarray(kernel, jnp.float32)[..., None, None]

    x = jnp.asarray(image, jnp.float32).reshape(1, *size, 1)
    y = conv(x, taps, **options)
    assert y.size == matrix.shape[0]
    np.testing.assert_allclose(y.ravel(), matrix @ image, atol=1e-4)

    y = jnp.asarray(values, jnp.float32).reshape(y.shape)
    x = conv_transpose(y, taps, output_padding=left, **options)
    assert x.shape == (1, *size, 1)
    np.testing.assert_allclose(x.ravel(), matrix.T @ values, atol=1e-4)


@settings(max_examples=30)
@given(
    kernel=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    signal=st.lists(st.integers(-9, 9), min_size=10, max_size=12),
    padding=st.integers(0, 3),
    rate=st.integers(1, 3),
)
def test_the_matrix_of_a_line_is_numpys_correlation(kernel, signal, padding, rate):
    spread = np.zeros((len(kernel) - 1) * rate + 1, int)
    spread[::rate] = kernel
    expected = np.correlate(np.pad(signal, padding), spread, "valid")
    for stride in (1, 2, 3):
        matrix = conv_matrix(np.array(kernel), len(signal), stride, padding, rate)
        np.testing.assert_array_equal(matrix @ signal, expected[::stride])


def test_a_3x3_kernel_at_rate_2_sees_5x5_with_nine_weights():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(1, 9, 9, 1)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 1)), jnp.float32)

    def center(image, kernel):
        y = conv(image, kernel, padding=2, rate=2)
        assert y.shape == image.shape
        return y[0, 4, 4, 0]

    of_image, of_kernel = jax.grad(center, argnums=(0, 1))(image, kernel)
    assert kernel.size == (of_kernel != 0).sum() == 9
    expected = np.zeros((9, 9))
    expected[2:7:2, 2:7:2] = kernel[..., 0, 0]
    np.testing.assert_allclose(of_image[0, ..., 0], expected)
    rows, columns = np.nonzero(expected)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (5, 5)


def test_channels_mix_as_the_kernel_says_and_bfloat16_stays():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 2, 3, 4)), jnp.float32)
    y = conv(x, kernel, stride=2, padding=1)
    matrix = np.zeros((np.prod(y.shape[1:3]), 4, 5 * 6, 3))
    for c, d in np.ndindex(3, 4):
        matrix[:, d, :, c] = conv_matrix(np.asarray(kernel[..., c, d]), (5, 6), 2, 1)
    expected = np.einsum("odic,bic->bod", matrix, np.reshape(x, (2, 30, 3)))
    np.testing.assert_allclose(np.reshape(y, expected.shape), expected, rtol=1e-4, atol=1e-4)
    low = conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), stride=2, padding=1)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), y, atol=0.02 * np.abs(y).max())


def test_a_bias_of_another_length_is_refused():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    with pytest.raises(ValueError, match=r"bias has shape \(1,\), expected \(5,\)"):
        conv(x, kernel, jnp.ones(1))
    with pytest.raises(ValueError, match=r"bias has shape \(5,\), expected \(2,\)"):
        conv_transpose(jnp.ones((1, 4, 4, 5)), kernel, jnp.ones(5), stride=2)
