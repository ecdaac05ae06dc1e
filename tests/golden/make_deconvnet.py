"""Makes deconvnet.npz: logits of a narrow DeconvNet as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_deconvnet.py

Image and logits, NHWC float32. The weights follow from their names (`seeded`).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array

WIDTH, FC_WIDTH, CLASSES, FC_KERNEL = 2, 6, 3, 3
SIZE = (70, 91)  # pool5 is 3x3; sides that do not halve
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, features in WIDTH
DECODER = ((8, 8, 8), (8, 8, 4), (4, 4, 2), (2, 1), (1, 1))  # features in WIDTH, stages 5 to 1


def tensor(name, *shape):
    return torch.tensor(array(name, shape))


def normalized(x, name):
    names = ("mean", "var", "scale", "bias")
    mean, var, scale, bias = (tensor(f"{name}/bn/{k}", x.shape[1]) for k in names)
    return F.relu(F.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-5))


def conv(x, name, features, size, padding):
    kernel = tensor(f"{name}/kernel", size, size, x.shape[1], features).permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, tensor(f"{name}/bias", features), padding=padding)


def deconv(x, name, features, size, padding):
    # A kernel (k, k, out, in), applied as PyTorch and Caffe do.
    kernel = tensor(f"{name}/deconv/kernel", size, size, features, x.shape[1]).permute(3, 2, 0, 1)
    bias = tensor(f"{name}/deconv/bias", features)
    return normalized(F.conv_transpose2d(x, kernel, bias, padding=padding), name)


def deconvnet(x):
    pools = []
    for number, (depth, multiple) in enumerate(STAGES, start=1):
        for n in range(1, depth + 1):
            name = f"conv{number}_{n}"
            x = normalized(conv(x, f"{name}/conv", multiple * WIDTH, 3, 1), name)
        shape = x.shape
        x, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        pools.append((indices, shape))
    x = normalized(conv(x, "fc6/conv", FC_WIDTH, FC_KERNEL, 0), "fc6")
    x = normalized(conv(x, "fc7/conv", FC_WIDTH, 1, 0), "fc7")
    x = deconv(x, "fc6-deconv", 8 * WIDTH, FC_KERNEL, 0)
    for number, multiples in zip(range(5, 0, -1), DECODER, strict=True):
        indices, shape = pools[number - 1]
        x = F.max_unpool2d(x, indices, 2, output_size=shape)
        for n, multiple in enumerate(multiples, start=1):
            x = deconv(x, f"deconv{number}_{n}", multiple * WIDTH, 3, 1)
    return conv(x, "seg-score", CLASSES, 1, 0)


def main():
    image = np.random.default_rng(0).normal(size=(1, *SIZE, 3)).astype(np.float32)
    logits = deconvnet(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    path = Path(__file__).with_name("deconvnet.npz")
    np.savez_compressed(path, image=image, logits=logits)


if __name__ == "__main__":
    main()
