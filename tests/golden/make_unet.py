"""Makes unet.npz: the logits of U-Net as PyTorch computes them, written from the paper alone.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_unet.py

Arrays are NCHW. `valid/image` is int8 (1, 1, 204, 220), in quarters, and `valid/logits` float32
(1, 3, 20, 36); `same/image` is (2, 3, 32, 48) and `same/logits` (2, 3, 32, 48), with batch
normalization at running statistics. The parameters are not stored: `parameters` makes them anew
from a seed.
"""

from pathlib import Path

import numpy as np

WIDTH, CLASSES = 3, 3


def parameters(channels, batch_norm):
    """The layers in the order of the network: a list of dicts of NumPy arrays, PyTorch's layout.

    3x3 and 1x1 convolutions are (out, in, k, k), up-convolutions (in, out, 2, 2); `bn` is scale,
    shift, mean and variance.
    """
    rng = np.random.default_rng(1505)

    def layer(shape, features, fan_in, bn=False):
        made = {
            "weight": rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32),
            "bias": rng.normal(0, 0.1, features).astype(np.float32),
        }
        if bn:
            made["bn"] = [
                rng.uniform(0.5, 1.5, features).astype(np.float32),
                rng.normal(0, 0.1, features).astype(np.float32),
                rng.normal(0, 0.1, features).astype(np.float32),
                rng.uniform(0.5, 1.5, features).astype(np.float32),
            ]
        return made

    def conv(c_in, c_out, side=3):
        shape = (c_out, c_in, side, side)
        return layer(shape, c_out, side * side * c_in, batch_norm and side == 3)

    features = [WIDTH * 2**level for level in range(5)]
    layers = []
    for c_in, c_out in zip([channels, *features[:4]], features, strict=True):
        layers += [conv(c_in, c_out), conv(c_out, c_out)]
    for c_in, c_out in zip(features[:0:-1], features[3::-1], strict=True):
        layers.append(layer((c_in, c_out, 2, 2), c_out, 4 * c_in))
        layers += [conv(c_in, c_out), conv(c_out, c_out)]
    return [*layers, conv(features[0], CLASSES, 1)]


def unet(image, layers, padding):
    import torch
    from torch.nn import functional

    layers = iter(layers)

    def conv(x, relu=True):
        made = next(layers)
        weight, bias = torch.from_numpy(made["weight"]), torch.from_numpy(made["bias"])
        x = functional.conv2d(x, weight, bias, padding=padding if weight.shape[2] == 3 else 0)
        if "bn" in made:
            scale, shift, mean, variance = map(torch.from_numpy, made["bn"])
            x = functional.batch_norm(x, mean, variance, scale, shift, eps=1e-5)
        return functional.relu(x) if relu else x

    x, skips = conv(conv(image)), []
    for _ in range(4):
        skips.append(x)
        x = conv(conv(functional.max_pool2d(x, 2)))
    for skip in reversed(skips):
        made = next(layers)
        weight, bias = torch.from_numpy(made["weight"]), torch.from_numpy(made["bias"])
        x = functional.conv_transpose2d(x, weight, bias, stride=2)
        top, left = ((skip.shape[k] - x.shape[k]) // 2 for k in (2, 3))
        skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = conv(conv(torch.cat([x, skip], 1)))
    return conv(x, relu=False)


def main():
    import torch

    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape, padding in (("valid", (1, 1, 204, 220), 0), ("same", (2, 3, 32, 48), 1)):
        image = rng.integers(-8, 9, shape, np.int8)
        layers = parameters(shape[1], batch_norm=name == "same")
        quarters = torch.from_numpy(image).float() / 4
        with torch.no_grad():
            logits = unet(quarters, layers, padding).numpy()
        arrays |= {f"{name}/image": image, f"{name}/logits": logits}
    np.savez_compressed(Path(__file__).with_name("unet.npz"), **arrays)


if __name__ == "__main__":
    main()
