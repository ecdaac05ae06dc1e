"""Makes densenet.npz: logits of a small FC-DenseNet as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_densenet.py

`image`, NHWC, and NHWC `logits`, normalized by running statistics; weights and statistics follow
from their names (`seeded`). Written from the authors' `FC-DenseNet.py`.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array

LAYERS, GROWTH, WIDTH, CLASSES = (1, 2, 3), 2, 4, 3


def tensor(path, *shape):
    return torch.tensor(array(path, shape))


def conv(x, path, features, kernel_size):
    kernel = tensor(f"{path}/kernel", kernel_size, kernel_size, x.shape[1], features)
    bias = tensor(f"{path}/bias", features)
    return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel_size // 2)


def layer(x, name, features, kernel_size):
    mean, var, scale, bias = (
        tensor(f"{name}/bn/{kind}", x.shape[1]) for kind in ("mean", "var", "scale", "bias")
    )
    x = F.batch_norm(x, mean, var, scale, bias, eps=1e-5).relu()
    return conv(x, f"{name}/conv", features, kernel_size)


def block(x, name, count):
    """As the authors: a stack of everything, and the list of what is new."""
    new = []
    for n in range(1, count + 1):
        new.append(layer(x, f"{name}_{n}", GROWTH, 3))
        x = torch.cat([x, new[-1]], 1)
    return x, torch.cat(new, 1)


def up(new, skip, name):
    features = new.shape[1]
    kernel = tensor(f"{name}/kernel", 3, 3, features, features)  # the last axis is the input's
    bias = tensor(f"{name}/bias", features)
    y = F.conv_transpose2d(new, kernel.permute(3, 2, 0, 1), bias, stride=2)
    sides = zip(y.shape[2:], skip.shape[2:], strict=True)
    top, left = ((ours - theirs) // 2 for ours, theirs in sides)
    y = y[:, :, top : top + skip.shape[2], left : left + skip.shape[3]]
    return torch.cat([y, skip], 1)


def network(image):
    x = conv(image, "conv1", WIDTH, 3)
    skips = []
    for number, count in enumerate(LAYERS[:-1], start=1):
        x, _ = block(x, f"down{number}", count)
        skips.append(x)
        x = F.max_pool2d(layer(x, f"transition_down{number}", x.shape[1], 1), 2)
    _, new = block(x, "bottleneck", LAYERS[-1])
    for number in range(len(skips), 0, -1):
        x = up(new, skips[number - 1], f"transition_up{number}")
        x, new = block(x, f"up{number}", LAYERS[number - 1])
    return conv(x, "classifier", CLASSES, 1)


def main():
    image = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, 21, 26)), dtype=torch.float32)
    arrays = {"image": image, "logits": network(image)}
    arrays = {name: x.permute(0, 2, 3, 1).numpy() for name, x in arrays.items()}
    np.savez_compressed(Path(__file__).with_name("densenet.npz"), **arrays)


if __name__ == "__main__":
    main()
