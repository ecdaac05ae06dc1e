"""Convolution, batch normalization and pooling on a CPU, by oneDNN and our own kernels.

XLA's CPU backend computes bfloat16 convolutions in float32, the gradients of kernels slowly, and
elementwise operations in bfloat16 even more slowly. `segjax.ops` calls these functions if
`in_use()`; they compute the same as XLA and are tested against it, except that a ReLU inside a
convolution turns NaN into 0. Arrays are float32 or bfloat16;
sums are float32. They work under jit, vmap (one call per example), reverse-mode differentiation and
pmap, and give the same bits in every call with the same number of OpenMP threads.
"""

import ctypes
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.onednn.build import library
from segjax.ops.padding import Sides
from segjax.ops.platform import on_cpu

DTYPES = (jnp.float32, jnp.bfloat16)


def in_use(*arrays: jax.Array) -> bool:
    """Return whether these kernels compute the operation on these arrays that is being traced."""
    return all(x.dtype in DTYPES and x.size for x in arrays) and on_cpu() and library() is not None


def _call(kernel: str, results: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    found = library()
    assert found is not None  # `in_use` was asked
    call = jax.ffi.ffi_call(found.target(kernel), results, vmap_method="sequential")
    return call(*arrays, **attributes)


class Window(NamedTuple):
    """Stride, dilation, padding and groups of a convolution."""

    stride: int
    rate: int
    padding: Sides  # zeros; none negative
    groups: int = 1
    swapped: bool = False  # the kernel is (kh, kw, D, C); one group

    def numbers(self, relu: bool = False) -> np.ndarray:
        """Return the values as the array that the kernels read."""
        steps = self.stride, self.stride, self.rate, self.rate  # of rows and columns
        rows, columns = self.padding
        values = (*steps, *rows, *columns, self.groups, relu, self.swapped)
        return np.asarray(values, np.int64)

    def output(self, size: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, int]:
        """Return (h, w) of the result for a map and a kernel of these sides."""
        height, width = (
            (n + sum(side) - (k - 1) * self.rate - 1) // self.stride + 1
            for n, side, k in zip(size, self.padding, taps, strict=True)
        )
        return height, width


def dtype_of(x: jax.Array, kernel: jax.Array, window: Window) -> Any:
    """Return the dtype in which oneDNN computes a convolution and its gradients.

    That of x, or float32 for bfloat16 if this CPU lacks the instructions; None if the result is
    empty or oneDNN does not support the convolution.
    """
    return _first_supported(x, lambda x: _supported(x, kernel, window))


def transposed_dtype_of(
    x: jax.Array, kernel: jax.Array, window: Window, size: tuple[int, int]
) -> Any:
    """Return the dtype in which oneDNN computes a transposed convolution to (H, W), or None."""

    def holds(x):
        full = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[2]), x.dtype)
        plain = window._replace(swapped=False)
        return bool(_scratch(3, full, kernel, x, window, True)) and _supported(full, kernel, plain)

    return _first_supported(x, holds)


def rounded(kernel: jax.Array, dtype: Any) -> jax.Array:
    """Round a kernel to a dtype, but return float32; the gradient is not rounded.

    For a convolution in float32: oneDNN reorders kernels of another dtype by its slowest loop.
    """
    kernel, kind = kernel.astype(jnp.float32), jnp.finfo(dtype)
    rest = lax.reduce_precision(kernel, kind.nexp, kind.nmant) - kernel  # exact, so the sum is too
    return kernel + lax.stop_gradient(rest)


def _first_supported(x, holds):
    dtypes = dict.fromkeys((x.dtype, jnp.dtype(jnp.float32)))
    fitting = (dtype for dtype in dtypes if holds(jax.ShapeDtypeStruct(x.shape, dtype)))
    return next(fitting, None)


def _supported(x, kernel, window):
    y = _result(x, kernel, window)
    return min(y.shape) > 0 and all(_scratch(k, x, kernel, y, window, False) for k in range(3))


def _result(x, kernel, window):
    height, width = window.output(x.shape[1:3], kernel.shape[:2])
    features = kernel.shape[2 if window.swapped else 3]
    return jax.ShapeDtypeStruct((x.shape[0], height, width, features), x.dtype)


def _scratch(kind, x, kernel, y, window, bias, relu=False):
    """Return the scratch memory of a call, which XLA allocates; None if oneDNN does not support it.

    kind: 0 for a convolution, 1 for the gradient of its input, 2 for that of its kernel, 3 for a
    transposed convolution from y to x.
    """
    found = library()
    assert found is not None  # `in_use` was asked
    shapes = (np.asarray(each.shape, np.int64) for each in (x, kernel, y))
    halves = (each.dtype == jnp.bfloat16 for each in (x, kernel))
    size = _scratch_bytes(found.loaded)(kind, *shapes, *halves, bias, window.numbers(relu))
    return None if size < 0 else jax.ShapeDtypeStruct((size,), jnp.uint8)


def _scratch_bytes(loaded):
    numbers = np.ctypeslib.ndpointer(np.int64, flags="C_CONTIGUOUS")
    function = loaded.scratch_bytes
    flags = (ctypes.c_bool,) * 3
    function.argtypes = (ctypes.c_int64, numbers, numbers, numbers, *flags, numbers)
    function.restype = ctypes.c_int64
    return function


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, window: Window, relu: bool
) -> jax.Array:
    """Convolve x with a kernel and add a bias, optionally with a ReLU.

    Args:
      x: (B, H, W, C); the result has its dtype, and the kernel is rounded to it.
      kernel: (kh, kw, C / groups, D), float32 or bfloat16; (kh, kw, D, C) if swapped.
      bias: float32 (D,), or (0,) for none.
      window: stride, dilation, padding and groups, for which `dtype_of` is not None.
      relu: whether to apply a ReLU.
    """
    result = _result(x, kernel, window)
    scratch = _scratch(0, x, kernel, result, window, bias.size > 0, relu)
    numbers = window.numbers(relu)
    return _call("convolution", (result, scratch), x, kernel, bias, window=numbers)[0]


def _convolution_forward(x, kernel, bias, window, relu):
    y = convolution(x, kernel, bias, window, relu)
    return y, (x, kernel, bias, y if relu else None)


def _convolution_backward(window, relu, saved, dy):
    x, kernel, bias, y = saved
    if relu:
        dy = relu_gradient(y, dy)
    return (
        input_gradient(dy, kernel, window, x.shape),
        *kernel_gradient(x, dy, window, kernel, bias),
    )


convolution.defvjp(_convolution_forward, _convolution_backward)


def input_gradient(
    dy: jax.Array, kernel: jax.Array, window: Window, shape: tuple[int, ...]
) -> jax.Array:
    """Return dL/dx of a convolution, shape (B, H, W, C), dtype of dL/dy."""
    result = jax.ShapeDtypeStruct(shape, dy.dtype)
    scratch = _scratch(1, result, kernel, dy, window, False)
    numbers = window.numbers()
    name = "convolution_input_gradient"
    return _call(name, (result, scratch), dy, kernel, window=numbers)[0]


def kernel_gradient(
    x: jax.Array, dy: jax.Array, window: Window, kernel: Any, bias: Any
) -> tuple[jax.Array, jax.Array]:
    """Return dL/dkernel and dL/dbias; only the shapes and dtypes of kernel and bias are used."""
    results = [jax.ShapeDtypeStruct(like.shape, like.dtype) for like in (kernel, bias)]
    scratch = _scratch(2, x, kernel, dy, window, bias.size > 0)
    numbers = window.numbers()
    dk, db, _ = _call("convolution_kernel_gradient", (*results, scratch), x, dy, window=numbers)
    return dk, db


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def transposed_convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    """Apply the transpose of a convolution with this kernel and window to x, and add a bias.

    Args:
      x: (B, h, w, C), a result of the convolution.
      kernel: (kh, kw, D, C).
      bias: float32 (D,), or (0,) for none.
      window: window of the convolution, with `swapped`, as the transpose reads the kernel.
      size: (H, W) of the input of the convolution.

    Returns:
      (B, H, W, D), dtype of x.
    """
    result = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[2]), x.dtype)
    scratch = _scratch(3, result, kernel, x, window, bias.size > 0)
    numbers = window.numbers()
    return _call("transposed_convolution", (result, scratch), x, kernel, bias, window=numbers)[0]


def _transposed_forward(x, kernel, bias, window, size):
    return transposed_convolution(x, kernel, bias, window, size), (x, kernel, bias)


def _transposed_backward(window, size, saved, dy):
    x, kernel, bias = saved
    window = window._replace(swapped=False)
    dk, _ = kernel_gradient(dy, x, window, kernel, jax.ShapeDtypeStruct((0,), jnp.float32))
    dx = convolution(dy, kernel, jnp.zeros((0,)), window, False)
    pixels = dy.size // dy.shape[-1]
    return dx, dk, pixels * moments(dy)[0] if bias.size else bias


transposed_convolution.defvjp(_transposed_forward, _transposed_backward)


def relu_gradient(y: jax.Array, dy: jax.Array) -> jax.Array:
    """Return dy where y > 0, and 0 elsewhere."""
    return _call("relu_gradient", jax.ShapeDtypeStruct(dy.shape, dy.dtype), y, dy)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of each channel of (..., C), float32 (C,).

    The variance is computed as E[(x - E[x])^2], not as E[x^2] - E[x]^2.
    """
    one = jax.ShapeDtypeStruct(x.shape[-1:], jnp.float32)
    return _call("moments", (one, one), x)


def affine(x: jax.Array, mean: jax.Array, a: jax.Array, b: jax.Array, relu: bool) -> jax.Array:
    """Return (x - mean) a + b by channel, optionally with a ReLU, dtype of x."""
    return _call("affine", jax.ShapeDtypeStruct(x.shape, x.dtype), x, mean, a, b, relu=relu)


def affine_sums(
    x: jax.Array, dy: jax.Array, mean: jax.Array, a: jax.Array, b: jax.Array, relu: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the sums by channel of dz and dz (x - mean), dz the gradient before the ReLU."""
    one = jax.ShapeDtypeStruct(mean.shape, jnp.float32)
    return _call("affine_sums", (one, one), x, dy, mean, a, b, relu=relu)


def affine_gradient(
    x: jax.Array,
    dy: jax.Array,
    mean: jax.Array,
    a: jax.Array,
    b: jax.Array,
    p: jax.Array,
    q: jax.Array,
    relu: bool,
) -> jax.Array:
    """Return a dz + p (x - mean) + q by channel, dz as in `affine_sums`, dtype of x."""
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _call("affine_gradient", result, x, dy, mean, a, b, p, q, relu=relu)


class Pool(NamedTuple):
    """A square window of max pooling; padding is never the maximum."""

    window: int  # side, at most 16: a place in it is one byte
    stride: int
    before: tuple[int, int]  # padding: rows above and columns left of the map

    def numbers(self) -> np.ndarray:
        """Return the values as the array that the kernels read."""
        return np.asarray((self.window, self.stride, *self.before), np.int64)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, pool: Pool, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Return the first maximum of each window, (B, *size, C), and its place in it, uint8."""
    shape = (x.shape[0], *size, x.shape[3])
    results = jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.uint8)
    return _call("max_pool", results, x, window=pool.numbers())


def _max_pool_forward(x, pool, size):
    y, indices = max_pool(x, pool, size)
    return (y, indices), (indices, x)  # only the shape of x is used, so XLA does not keep it


def _max_pool_backward(pool, size, saved, gradients):
    indices, x = saved
    return (spread(gradients[0], indices, pool, x.shape[1:3]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spread(y: jax.Array, indices: jax.Array, pool: Pool, size: tuple[int, int]) -> jax.Array:
    """Put each value at its place in (B, *size, C); values of overlapping windows add up."""
    result = jax.ShapeDtypeStruct((y.shape[0], *size, y.shape[3]), y.dtype)
    return _call("spread", result, y, indices, window=pool.numbers())


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def gather(x: jax.Array, indices: jax.Array, pool: Pool) -> jax.Array:
    """Return the value at the place of each window, shaped as the indices."""
    result = jax.ShapeDtypeStruct(indices.shape, x.dtype)
    return _call("gather", result, x, indices, window=pool.numbers())


def _spread_forward(y, indices, pool, size):
    return spread(y, indices, pool, size), indices


def _spread_backward(pool, size, indices, dx):
    return gather(dx, indices, pool), np.zeros(indices.shape, jax.dtypes.float0)


def _gather_forward(x, indices, pool):
    return gather(x, indices, pool), (indices, x)


def _gather_backward(pool, saved, dy):
    indices, x = saved
    none = np.zeros(indices.shape, jax.dtypes.float0)
    return spread(dy, indices, pool, x.shape[1:3]), none


# Each is the gradient of the other.
spread.defvjp(_spread_forward, _spread_backward)
gather.defvjp(_gather_forward, _gather_backward)
