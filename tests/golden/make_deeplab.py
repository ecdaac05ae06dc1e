"""Makes deeplab.npz: logits of narrow DeepLab networks as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_deeplab.py

`image`, NHWC, and the NHWC logits of each case; the weights follow from their names (`seeded`).
Written from the authors' Caffe files: pools of 3x3 that round up, an average pool whose padding
counts, and an interpolation that keeps the corners of a map of 8 k + 1 pixels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array

WIDTH, FC_WIDTH, CLASSES = 2, 4, 3
STAGES = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]
# name: rates of fc6 after the trade, stride and dilation of pool4, pool5 and conv5
CASES = {
    "deeplab_largefov_8": ([12], 1, 1, 2),
    "deeplab_largefov_16": ([6], 2, 1, 1),
    "deeplab_largefov_32": ([3], 2, 2, 1),
    "deeplab_aspp_8": ([6, 12, 18, 24], 1, 1, 2),
    "deeplab_aspp_32": ([2, 3, 5, 6], 2, 2, 1),
}


def conv(x, path, features, kernel_size, dilation=1):
    kernel = array(f"{path}/kernel", (kernel_size, kernel_size, x.shape[1], features))
    return F.conv2d(
        x,
        torch.tensor(kernel).permute(3, 2, 0, 1),
        torch.tensor(array(f"{path}/bias", (features,))),
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
    )


def network(image, name, rates, pool4, pool5, dilation5):
    x = image
    strides = [2, 2, 2, pool4, pool5]
    for stage, ((depth, multiple), stride) in enumerate(zip(STAGES, strides, strict=True), start=1):
        for n in range(1, depth + 1):
            dilation = dilation5 if stage == 5 else 1
            x = conv(x, f"conv{stage}_{n}/conv", multiple * WIDTH, 3, dilation).relu()
        x = F.max_pool2d(x, 3, stride, padding=1, ceil_mode=True)
    branches = [f"_{k}" for k in range(1, 5)]
    if "largefov" in name:
        x = F.avg_pool2d(x, 3, 1, padding=1)
        branches = [""]
    scores = 0
    for branch, rate in zip(branches, rates, strict=True):
        y = conv(x, f"fc6{branch}/conv", FC_WIDTH, 3, rate).relu()
        y = conv(y, f"fc7{branch}/conv", FC_WIDTH, 1).relu()
        scores = scores + conv(y, f"fc8{branch}", CLASSES, 1)
    stride = 8 * pool4 * pool5
    full = [(side - 1) * stride + 1 for side in scores.shape[2:]]
    scores = F.interpolate(scores, full, mode="bilinear", align_corners=True)
    return scores[:, :, : image.shape[2], : image.shape[3]]


def main():
    image = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, 30, 41)), dtype=torch.float32)
    arrays = {"image": image.permute(0, 2, 3, 1).numpy()}
    for name, case in CASES.items():
        arrays[name] = network(image, name, *case).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(Path(__file__).with_name("deeplab.npz"), **arrays)


if __name__ == "__main__":
    main()
