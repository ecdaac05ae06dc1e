"""Upsampling against PyTorch's values, and its properties."""

import contextlib
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import upsampling
from segjax.ops.platform import shapes_only

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "upsampling.npz")


def cases(operation):
    names = {tuple(name.split("/")[:2]) for name in GOLDEN.files}
    return sorted(case for kind, case in names if kind == operation)


def golden(operation, case):
    """Load the arrays of one case, maps as NHWC."""
    prefix = f"{operation}/{case}/"
    arrays = {name[len(prefix) :]: GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    for name in ("x", "y", "cotangent", "x_gradient"):
        arrays[name] = np.moveaxis(arrays[name], 1, -1)
    return arrays


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check(function, arrays, *others):
    """Compute the value and gradients of function(x, ...)."""
    y, transpose = jax.vjp(function, arrays["x"], *(value for value, _ in others))
    np.testing.assert_allclose(y, arrays["y"], rtol=1e-5, atol=1e-5)
    assert y.dtype == jnp.float32
    found = transpose(jnp.asarray(arrays["cotangent"]))
    for gradient, expected in zip(
        found, (arrays["x_gradient"], *(g for _, g in others)), strict=True
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", cases("nearest"))
@pytest.mark.parametrize("operation", ["nearest", "bilinear"])
def test_resizing_and_its_gradient_are_pytorchs(operation, case):
    arrays = golden(operation, case)
    shape = tuple(map(int, arrays["shape"]))
    check(functools.partial(getattr(upsampling, operation), shape=shape), arrays)


@pytest.mark.parametrize("where", ["cpu", "accelerator"])
@pytest.mark.parametrize("case", cases("conv_transpose"))
def test_transposed_convolution_and_its_gradients_are_pytorchs(case, where):
    arrays = golden("conv_transpose", case)
    stride, padding, output_padding, rate = map(int, arrays["settings"])
    kernel, of_kernel = (  # (C, D, k, k) to (k, k, D, C)
        np.transpose(arrays[name], (2, 3, 1, 0)) for name in ("kernel", "kernel_gradient")
    )

    def transposed(x, kernel):
        return upsampling.conv_transpose(
            x, kernel, stride=stride, padding=padding, output_padding=output_padding, rate=rate
        )

    with contextlib.nullcontext() if where == "cpu" else shapes_only():
        check(transposed, arrays, (kernel, of_kernel))


@pytest.mark.parametrize("case", cases("bilinear_conv_transpose"))
def test_caffes_bilinear_deconvolution_is_pytorchs_with_caffes_kernel(case):
    arrays = golden("bilinear_conv_transpose", case)
    size, stride, padding = map(int, arrays["settings"])
    np.testing.assert_allclose(upsampling.bilinear_kernel(size), arrays["kernel"], atol=1e-7)

    def deconvolution(x):
        return upsampling.bilinear_conv_transpose(x, size=size, stride=stride, padding=padding)

    check(deconvolution, arrays)


def test_bilinear_kernels_by_hand():
    np.testing.assert_allclose(upsampling.bilinear_kernel(3)[1], [0.5, 1, 0.5])
    np.testing.assert_allclose(upsampling.bilinear_kernel(4)[0] * 16, [1, 3, 3, 1])
    # Moved by its factor a tent sums to one everywhere; by half of that, to four in two dimensions.
    for size, stride, total in ((4, 2, 1), (16, 8, 1), (8, 4, 1), (8, 2, 4)):
        kernel = upsampling.bilinear_kernel(size)
        assert kernel.dtype == np.float32
        for i, j in np.ndindex(stride, stride):
            assert kernel[i::stride, j::stride].sum() == pytest.approx(total)


def test_caffes_deconvolution_is_bilinear_inside_and_zero_beyond_the_border():
    x = random((2, 5, 4, 3))
    fixed = upsampling.bilinear_conv_transpose(x, size=4, stride=2, padding=1)
    smooth = upsampling.bilinear(x, (10, 8))
    inside = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(fixed[inside], smooth[inside], atol=1e-5)
    np.testing.assert_allclose(fixed[:, 0, 1:-1], smooth[:, 0, 1:-1] * 0.75, atol=1e-5)


def test_a_grid_is_interpolated_between_its_own_pixels_and_repeated_beyond():
    x = jnp.array([[0.0, 4.0, 2.0], [8.0, 0.0, 6.0]]).reshape(1, 2, 3, 1)
    found = upsampling.bilinear_from_grid(x, 4, (7, 11))[0, ..., 0]
    np.testing.assert_allclose(found[0], [0, 1, 2, 3, 4, 3.5, 3, 2.5, 2, 2, 2], atol=1e-6)
    np.testing.assert_allclose(found[:, 0], [0, 2, 4, 6, 8, 8, 8], atol=1e-6)
    np.testing.assert_allclose(found[2, 2], (0 + 4 + 8 + 0) / 4, atol=1e-6)
    assert found.shape == (7, 11)


def test_caffes_deconvolution_keeps_classes_apart():
    jacobian = jax.jacobian(
        lambda x: jnp.sum(
            upsampling.bilinear_conv_transpose(x, size=4, stride=2, padding=1), (0, 1, 2)
        )
    )(random((1, 2, 2, 3)))
    np.testing.assert_array_equal(jacobian.sum((1, 2, 3)) != 0, np.eye(3, dtype=bool))


def test_whole_factors_repeat_and_the_same_size_is_the_same():
    x = random((2, 3, 4, 2))
    np.testing.assert_array_equal(
        upsampling.nearest(x, (9, 8)), x.repeat(3, axis=1).repeat(2, axis=2)
    )
    for resize in (upsampling.nearest, upsampling.bilinear):
        np.testing.assert_array_equal(resize(x, (3, 4)), x)


def test_bed_of_nails():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
    expected = [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(upsampling.bed_of_nails(x, 2)[..., 0], expected)
    nails = functools.partial(upsampling.bed_of_nails, stride=3)
    y, transpose = jax.vjp(nails, random((2, 3, 4, 2)))
    assert y.shape == (2, 9, 12, 2)
    cotangent = random(y.shape, seed=1)
    (gradient,) = transpose(cotangent)
    np.testing.assert_array_equal(gradient, cotangent[:, ::3, ::3])


def test_leading_axes_are_free():
    x = random((2, 3, 4, 5, 2))
    for resize in (
        functools.partial(upsampling.nearest, shape=(7, 6)),
        functools.partial(upsampling.bilinear, shape=(7, 6)),
        functools.partial(upsampling.bed_of_nails, stride=2),
    ):
        whole = resize(x)
        assert whole.shape[:2] == (2, 3)
        np.testing.assert_allclose(whole[1, 2], resize(x[1, 2]), atol=1e-6)


def test_bfloat16_stays_bfloat16():
    x, kernel = random((1, 3, 4, 2)), random((4, 4, 3, 2), seed=1)
    operations = {
        "nearest": lambda x: upsampling.nearest(x, (5, 9)),
        "bilinear": lambda x: upsampling.bilinear(x, (5, 9)),
        "bed_of_nails": lambda x: upsampling.bed_of_nails(x, 2),
        "conv_transpose": lambda x: upsampling.conv_transpose(
            x, kernel.astype(x.dtype), stride=2, padding=1
        ),
        "caffe": lambda x: upsampling.bilinear_conv_transpose(x, size=4, stride=2, padding=1),
    }

    def value_and_gradient(x):
        y = {name: operation(x) for name, operation in operations.items()}
        return sum(jnp.sum(value.astype(jnp.float32)) for value in y.values()), y

    run = jax.jit(jax.grad(value_and_gradient, has_aux=True))
    (gradient, low), (wide_gradient, wide) = run(x.astype(jnp.bfloat16)), run(x)
    assert gradient.dtype == jnp.bfloat16
    for name, found in (low | {"gradient": gradient}).items():
        expected = (wide | {"gradient": wide_gradient})[name]
        assert found.dtype == jnp.bfloat16, name
        atol = 0.02 * np.abs(expected).max()
        np.testing.assert_allclose(found.astype(np.float32), expected, atol=atol, err_msg=name)
