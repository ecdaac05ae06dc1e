"""Makes dilation.npz: logits of narrow Dilation8 networks as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_dilation.py

`image`, NHWC, and the NHWC logits without context module, with the basic and with the large one;
the weights follow from their names (`seeded`). Written from the authors' `network.py`.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array

WIDTH, FC_WIDTH, CLASSES = 2, 4, 2
FRONT_END = [
    *[("conv1_1", 1, 3, 1), ("conv1_2", 1, 3, 1), "pool", ("conv2_1", 2, 3, 1)],
    *[("conv2_2", 2, 3, 1), "pool", ("conv3_1", 4, 3, 1), ("conv3_2", 4, 3, 1)],
    *[("conv3_3", 4, 3, 1), "pool", ("conv4_1", 8, 3, 1), ("conv4_2", 8, 3, 1)],
    *[("conv4_3", 8, 3, 1), ("conv5_1", 8, 3, 2), ("conv5_2", 8, 3, 2), ("conv5_3", 8, 3, 2)],
    *[("fc6", FC_WIDTH / WIDTH, 7, 4), ("fc7", FC_WIDTH / WIDTH, 1, 1)],
]
CONTEXT = ["conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc1"]
DILATIONS = [1, 1, 2, 4, 8, 16, 1]
MULTIPLES = {"basic": [1] * 7, "large": [2, 2, 4, 8, 16, 32, 32]}


def conv(x, path, features, kernel_size, dilation=1, padding=0):
    kernel = array(f"{path}/kernel", (kernel_size, kernel_size, x.shape[1], features))
    return F.conv2d(
        x,
        torch.tensor(kernel).permute(3, 2, 0, 1),
        torch.tensor(array(f"{path}/bias", (features,))),
        dilation=dilation,
        padding=padding,
    )


def front_end(image):
    x = torch.tensor(np.pad(image, ((0, 0), (0, 0), (186, 186), (186, 186)), mode="reflect"))
    for layer in FRONT_END:
        if layer == "pool":
            x = F.max_pool2d(x, 2, ceil_mode=True)
        else:
            name, multiple, kernel_size, dilation = layer
            x = conv(x, f"{name}/conv", int(multiple * WIDTH), kernel_size, dilation).relu()
    return conv(x, "final", CLASSES, 1)


def context(x, multiples):
    for name, dilation, multiple in zip(CONTEXT, DILATIONS, multiples, strict=True):
        x = conv(x, f"ctx_{name}", multiple * CLASSES, 3, dilation, dilation).relu()
    return conv(x, "ctx_final", CLASSES, 1)


def upsample(x, size):
    tent = 1 - np.abs(np.arange(16) - 7.5) / 8
    kernel = torch.tensor(np.outer(tent, tent), dtype=torch.float32).expand(CLASSES, 1, 16, 16)
    full = F.conv_transpose2d(x, kernel, stride=8, padding=4, groups=CLASSES)
    return full[:, :, : size[0], : size[1]].permute(0, 2, 3, 1).numpy()


def main():
    image = np.random.default_rng(0).normal(size=(1, 3, 25, 34)).astype(np.float32)
    scores = front_end(image)
    arrays = {"image": image.transpose(0, 2, 3, 1), "none": upsample(scores, image.shape[2:])}
    for name, multiples in MULTIPLES.items():
        arrays[name] = upsample(context(scores, multiples), image.shape[2:])
    np.savez_compressed(Path(__file__).with_name("dilation.npz"), **arrays)


if __name__ == "__main__":
    main()
