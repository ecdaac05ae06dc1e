"""Makes patches.npz: logits of patches as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_patches.py

`patches`, NHWC, and their `logits`, (N, 3); the weights follow from their names (`seeded`).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array


def conv(x, path, features, kernel_size):
    kernel = array(f"{path}/kernel", (kernel_size, kernel_size, x.shape[1], features))
    bias = array(f"{path}/bias", (features,))
    return F.conv2d(x, torch.tensor(kernel).permute(3, 2, 0, 1), torch.tensor(bias))


def main():
    patches = np.random.default_rng(0).normal(size=(6, 3, 19, 19)).astype(np.float32)
    x = torch.tensor(patches)
    for name, kernel_size in (("conv1", 4), ("conv2", 3)):
        x = F.max_pool2d(conv(x, f"{name}/conv", 4, kernel_size).relu(), 2)
    x = conv(x, "fc1/conv", 5, 3).relu()
    logits = conv(x, "fc2", 3, 1)[:, :, 0, 0].numpy()
    path = Path(__file__).with_name("patches.npz")
    np.savez_compressed(path, patches=patches.transpose(0, 2, 3, 1), logits=logits)


if __name__ == "__main__":
    main()
