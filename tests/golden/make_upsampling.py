"""Makes upsampling.npz: every way of making a map larger, and its gradient, as PyTorch does it.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_upsampling.py

Arrays are float32 and NCHW, kernels (C, D, k, k) as PyTorch has them. Each case has x, y, cotangent
and x_gradient = d(y . cotangent) / dx, and what it was made with: shape (H, W) of y, or kernel and
settings (stride, padding, output_padding, rate), with kernel_gradient.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

# Shapes of x and y. Whole factors, odd sizes, factors that are not whole, and a map made smaller.
RESIZED = {
    "twice": ((1, 2, 3, 4), (6, 8)),
    "odd": ((2, 1, 5, 7), (9, 13)),
    "three_and_a_bit": ((1, 2, 4, 5), (13, 17)),
    "one_side": ((1, 1, 6, 5), (6, 11)),
    "pixel": ((1, 2, 1, 1), (3, 5)),
    "smaller": ((1, 1, 9, 7), (4, 5)),
}
# Shape of x, outputs, side of the kernel, and stride, padding, output_padding, rate.
TRANSPOSED = {
    "k4_s2": ((1, 3, 5, 6), 2, 4, (2, 1, 0, 1)),
    "k3_s2": ((2, 2, 4, 3), 3, 3, (2, 1, 1, 1)),
    "k2_s2": ((1, 3, 3, 5), 1, 2, (2, 0, 0, 1)),
    "k8_s2": ((1, 2, 4, 3), 2, 8, (2, 3, 0, 1)),
    "k16_s8": ((1, 1, 3, 2), 1, 16, (8, 4, 0, 1)),
    "k3_s1_dilated": ((1, 2, 5, 4), 2, 3, (1, 2, 0, 2)),
    "k3_s3_dilated": ((1, 2, 3, 4), 2, 3, (3, 1, 2, 2)),
    "gaps": ((1, 2, 3, 3), 1, 1, (3, 0, 1, 1)),
    "cut": ((1, 1, 6, 5), 1, 3, (1, 3, 0, 1)),
}
# Shape of x, side of the kernel, stride and padding, of Caffe's fixed bilinear deconvolution.
BILINEAR_TRANSPOSED = {
    "k4_s2": ((1, 3, 5, 4), (4, 2, 1)),
    "k3_s2": ((1, 2, 3, 4), (3, 2, 0)),
    "k8_s2": ((1, 2, 4, 4), (8, 2, 3)),
    "k16_s8": ((1, 2, 3, 2), (16, 8, 0)),
    "k64_s32": ((1, 1, 2, 1), (64, 32, 19)),
}


def caffe_bilinear(size):
    """Caffe's BilinearFiller, which scales the places and not the distances."""
    f = np.ceil(size / 2.0)
    c = (size - 1) / (2.0 * f)
    kernel = np.zeros((size, size), np.float32)
    for y, x in np.ndindex(size, size):
        kernel[y, x] = (1 - abs(x / f - c)) * (1 - abs(y / f - c))
    return kernel


def backward(y, rng):
    cotangent = torch.tensor(rng.integers(-8, 9, y.shape), dtype=torch.float32)
    y.backward(cotangent)
    return {"y": y.detach().numpy(), "cotangent": cotangent.numpy()}


def tensor(shape, rng):
    return torch.tensor(rng.normal(size=shape), dtype=torch.float32, requires_grad=True)


def main():
    rng = np.random.default_rng(0)
    arrays = {}

    def save(case, **values):
        arrays.update({f"{case}/{key}": np.asarray(value) for key, value in values.items()})

    for mode in ("nearest-exact", "bilinear"):
        for name, (shape, size) in RESIZED.items():
            x = tensor(shape, rng)
            options = {"align_corners": False} if mode == "bilinear" else {}
            made = backward(functional.interpolate(x, size, mode=mode, **options), rng)
            case = f"{mode.partition('-')[0]}/{name}"
            save(case, x=x.detach(), x_gradient=x.grad, shape=size, **made)
    for name, (shape, outputs, side, settings) in TRANSPOSED.items():
        stride, padding, output_padding, rate = settings
        x, kernel = tensor(shape, rng), tensor((shape[1], outputs, side, side), rng)
        y = functional.conv_transpose2d(
            x,
            kernel,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=rate,
        )
        made = backward(y, rng)
        made |= {"kernel": kernel.detach(), "kernel_gradient": kernel.grad}
        save(f"conv_transpose/{name}", x=x.detach(), x_gradient=x.grad, settings=settings, **made)
    for name, (shape, settings) in BILINEAR_TRANSPOSED.items():
        size, stride, padding = settings
        x, tent = tensor(shape, rng), caffe_bilinear(size)
        kernel = torch.tensor(tent).expand(shape[1], 1, size, size)
        y = functional.conv_transpose2d(x, kernel, stride=stride, padding=padding, groups=shape[1])
        made = backward(y, rng)
        case = f"bilinear_conv_transpose/{name}"
        save(case, x=x.detach(), x_gradient=x.grad, settings=settings, kernel=tent, **made)
    np.savez_compressed(Path(__file__).with_name("upsampling.npz"), **arrays)


if __name__ == "__main__":
    main()
