"""Makes unpooling.npz: max pooling, unpooling and their gradients as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_unpooling.py

Arrays are NCHW float32 and `indices` are flat positions in the H x W map, as PyTorch has them:
x, pooled, indices, pooled_cotangent, x_gradient = d(pooled . pooled_cotangent) / dx, unpooled,
unpooled_cotangent, pooled_gradient = d(unpooled . unpooled_cotangent) / d(pooled).
"""

from pathlib import Path

import numpy as np
import torch

# name: shape of x, window. Sides that do not divide by the window, down to a single pixel.
CASES = {
    "even": ((1, 2, 4, 6), 2),
    "odd": ((2, 3, 7, 9), 2),
    "odd_height": ((1, 2, 23, 30), 2),
    "pixel": ((1, 1, 1, 1), 2),
    "window_3": ((2, 2, 7, 8), 3),
    "window_3_divides": ((1, 2, 9, 6), 3),
    "window_5": ((1, 1, 11, 12), 5),
    "infinite": ((1, 2, 5, 7), 2),
    "not_a_number": ((1, 2, 5, 7), 2),
}


def make_input(name, shape, rng):
    """Four values, so that ties are common, and negative alone in some windows."""
    x = rng.integers(-2, 2, shape).astype(np.float32) / 2
    if name == "infinite":
        x[rng.random(shape) < 0.6] = -np.inf
        x[:, :, :2, :2] = -np.inf
        x[:, :, 4, 6] = -np.inf
        x[:, :, 2, 3] = np.inf
    if name == "not_a_number":
        # One a window at most: PyTorch gives the last of several, others the first.
        x[:, 0, 0, 1] = x[:, 0, 3, 2] = x[:, 1, 4, 3] = x[:, 1, 4, 6] = np.nan
    return x


def compute(x, window, rng):
    pool = torch.nn.MaxPool2d(window, ceil_mode=True, return_indices=True)
    unpool = torch.nn.MaxUnpool2d(window)
    x = torch.tensor(x, requires_grad=True)
    pooled, indices = pool(x)
    pooled_cotangent = torch.tensor(rng.integers(-8, 9, pooled.shape), dtype=torch.float32)
    pooled.backward(pooled_cotangent)
    leaf = pooled.detach().requires_grad_()
    unpooled = unpool(leaf, indices, output_size=x.shape)
    unpooled_cotangent = torch.tensor(rng.integers(-8, 9, x.shape), dtype=torch.float32)
    unpooled.backward(unpooled_cotangent)
    return {
        "x": x.detach(),
        "pooled": pooled.detach(),
        "indices": indices,
        "pooled_cotangent": pooled_cotangent,
        "x_gradient": x.grad,
        "unpooled": unpooled.detach(),
        "unpooled_cotangent": unpooled_cotangent,
        "pooled_gradient": leaf.grad,
    }


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (shape, window) in CASES.items():
        result = compute(make_input(name, shape, rng), window, rng)
        arrays |= {f"{name}/{key}": value.numpy() for key, value in result.items()}
        arrays[f"{name}/window"] = np.array(window)
    np.savez_compressed(Path(__file__).with_name("unpooling.npz"), **arrays)


if __name__ == "__main__":
    main()
