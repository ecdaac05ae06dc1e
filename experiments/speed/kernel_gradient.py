"""Compare ways of computing the kernel gradient of a convolution, timed in turn.

python experiments/speed/kernel_gradient.py [--torch-python PYTHON] [--turns 5] 4x48x64x64x64x7 ...

A layer is BxHxWxCxDxk: batch, height, width, channels in and out, kernel size. Prints a Markdown
table of the forward pass and both gradients in one jit: median and least milliseconds, and the
largest error of the kernel gradient against float64, as a fraction of its largest value. NOTES.md
explains the names.
"""

import argparse
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.cpu_convolution import NHWC, kernel_gradient

DEFAULT = ("4x48x64x64x64x7", "4x48x64x64x64x3", "4x96x128x32x32x7", "4x24x32x128x128x3")
TORCH = """
import sys, time, torch, torch.nn.functional as F
for line in sys.stdin:
    b, h, w, c, d, k = map(int, line.split())
    def random(*shape):
        return torch.randn(shape).to(memory_format=torch.channels_last)
    x, kernel, dy = random(b, c, h, w), random(d, c, k, k), random(b, d, h, w)
    x.requires_grad_(), kernel.requires_grad_()
    for _ in range(2):
        start = time.perf_counter()
        torch.autograd.grad(F.conv2d(x, kernel, padding=k // 2), (x, kernel), dy)
        taken = time.perf_counter() - start
    print(taken, flush=True)
"""


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def product(a, b):
    """Contract batch and space: (B, H, W, M) and (B, H, W, N) to (M, N)."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def padded(x, rows, columns):
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def taps(x, dy, k):
    height, width = x.shape[1:3]
    wide = padded(x, k // 2, k // 2)
    return jnp.stack(
        [
            jnp.stack([product(wide[:, i : i + height, j : j + width], dy) for j in range(k)])
            for i in range(k)
        ]
    )


def rows(x, dy, k):
    height, width = x.shape[1:3]
    wide = padded(x, k // 2, k // 2)
    shifts = jnp.concatenate([wide[:, :, j : j + width] for j in range(k)], -1)
    found = [product(shifts[:, i : i + height], dy) for i in range(k)]
    return jnp.stack(found).reshape(k, k, x.shape[-1], dy.shape[-1])


def against(dy, k):
    """Return for each pixel of x the gradients at all taps of a kernel row: (B, H, W, k D)."""
    width, wide = dy.shape[2], padded(dy, 0, k // 2)
    return jnp.concatenate([wide[:, :, k - 1 - j : k - 1 - j + width] for j in range(k)], -1)


def columns(x, dy, k):
    height, wide, shifts = x.shape[1], padded(x, k // 2, 0), against(dy, k)
    found = [product(wide[:, i : i + height], shifts) for i in range(k)]
    return jnp.stack(found).reshape(k, x.shape[-1], k, dy.shape[-1]).swapaxes(1, 2)


def both(x, dy, k):
    sides = (k // 2, k // 2)
    return kernel_gradient(x, dy, (k, k), (sides, sides), 1)


def im2col(x, dy, k):
    height, width = x.shape[1:3]
    wide = padded(x, k // 2, k // 2)
    shifts = [wide[:, i : i + height, j : j + width] for i in range(k) for j in range(k)]
    return product(jnp.concatenate(shifts, -1), dy).reshape(k, k, x.shape[-1], dy.shape[-1])


def patches(x, dy, k):
    shifts = lax.conv_general_dilated_patches(x, (k, k), (1, 1), "SAME", dimension_numbers=NHWC)
    found = product(shifts, dy).reshape(x.shape[-1], k, k, dy.shape[-1])
    return found.transpose(1, 2, 0, 3)


def layer(gradient):
    """Return the convolution with this function for its kernel gradient."""
    function = jax.custom_vjp(conv)

    def backward(saved, dy):
        x, kernel = saved
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return conv(dy, flipped), gradient(x, dy, kernel.shape[0])

    function.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return function


WAYS = {"xla": conv} | {f.__name__: layer(f) for f in (taps, rows, columns, both, im2col, patches)}


def jitted(function):
    return jax.jit(lambda x, kernel, dy: jax.vjp(function, x, kernel)[1](dy))


def exact(x, dy, k):
    """Return the kernel gradient in float64."""
    height, width = x.shape[1:3]
    border = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    wide = np.pad(x.astype(np.float64), border)
    flat = dy.astype(np.float64).reshape(-1, dy.shape[-1])
    found = [
        wide[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]).T @ flat
        for i in range(k)
        for j in range(k)
    ]
    return np.stack(found).reshape(k, k, x.shape[-1], dy.shape[-1])


def measure(sizes, turns, peer):
    """Return {way: (seconds of each turn, error)} for one layer."""
    b, h, w, c, d, k = sizes
    rng = np.random.default_rng(0)
    shapes = ((b, h, w, c), (k, k, c, d), (b, h, w, d))
    x, kernel, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
    truth, arrays = exact(x, dy, k), jax.device_put((x, kernel, dy))
    functions, errors = {}, {}
    for name, way in WAYS.items():
        functions[name] = jitted(way)
        _, found = jax.block_until_ready(functions[name](*arrays))
        errors[name] = np.abs(np.asarray(found) - truth).max() / np.abs(truth).max()
    seconds = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            seconds[name].append(time.perf_counter() - start)
        if peer:
            peer.stdin.write(" ".join(map(str, sizes)) + "\n")
            peer.stdin.flush()
            seconds.setdefault("torch", []).append(float(peer.stdout.readline()))
    return {name: (found, errors.get(name)) for name, found in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("layers", nargs="*", default=DEFAULT, metavar="BxHxWxCxDxk")
    parser.add_argument("--torch-python", metavar="PYTHON", help="a Python that has torch")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    peer = None
    if options.torch_python:
        pipe = subprocess.PIPE
        command = [options.torch_python, "-c", TORCH]
        peer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    write = sys.stdout.write
    write("| layer | way | median ms | least ms | error |\n| --- | --- | ---: | ---: | ---: |\n")
    for text in options.layers:
        found = measure(tuple(map(int, text.split("x"))), options.turns, peer)
        for name, (seconds, error) in found.items():
            times = f"{1e3 * np.median(seconds):.1f} | {1e3 * min(seconds):.1f}"
            write(f"| {text} | {name} | {times} | {'' if error is None else f'{error:.1e}'} |\n")
        sys.stdout.flush()
    if peer:
        peer.stdin.close()
        peer.wait()


if __name__ == "__main__":
    main()
