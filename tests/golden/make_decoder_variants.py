"""Makes decoder_variants.npz: SegNet and the networks of its paper's Table 1 in PyTorch.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_decoder_variants.py

Each network is written out from the paper, at a width of 2 or 3, with random weights that are drawn
where they are used. NAME/weights has them all end to end, in the order of their paths in this
project, kernels as HWIO (transposed ones HWOI), as float16: sixty-fourths, for they compress.
`image` and NAME/logits are NHWC float32.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

CLASSES, SIZE = 3, (29, 22)  # 29, 15, 8, 4, 2, 1 and 22, 11, 6, 3, 2, 1: odd sides on the way
STAGES = {1: (2, 1), 2: (2, 2), 3: (3, 4), 4: (3, 8), 5: (3, 8)}  # convolutions, multiple of width


class Network:
    """The layers of one network, and the weights that they drew."""

    def __init__(self, rng, width):
        self.rng, self.width, self.arrays = rng, width, {}

    def draw(self, path, values):
        self.arrays[path] = (np.round(values * 64) / 64).astype(np.float16)
        return torch.tensor(self.arrays[path].astype(np.float32))

    def conv(self, x, name, features, side, groups=1):
        shape = (side, side, x.shape[1] // groups, features)
        kernel = self.rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
        kernel = self.draw(f"params/{name}/kernel", kernel).permute(3, 2, 0, 1)
        bias = self.draw(f"params/{name}/bias", self.rng.normal(0, 0.1, features))
        return functional.conv2d(x, kernel, bias, padding=side // 2, groups=groups)

    def block(self, x, name, features, side, relu=True, groups=1):
        x = self.conv(x, f"{name}/conv", features, side, groups)
        x = functional.batch_norm(
            x,
            self.draw(f"batch_stats/{name}/bn/mean", self.rng.normal(0, 0.5, features)),
            self.draw(f"batch_stats/{name}/bn/var", self.rng.uniform(0.5, 1.5, features)),
            self.draw(f"params/{name}/bn/scale", self.rng.uniform(0.5, 1.5, features)),
            self.draw(f"params/{name}/bn/bias", self.rng.normal(0.4, 0.2, features)),
            eps=1e-5,
        )
        return functional.relu(x) if relu else x

    def upsample(self, x, name):
        """Learned 8x8 upsampling by 2."""
        channels = x.shape[1]
        kernel = self.rng.normal(0, np.sqrt(1 / (16 * channels)), (8, 8, channels, channels))
        kernel = self.draw(f"params/{name}/kernel", kernel).permute(3, 2, 0, 1)
        return functional.conv_transpose2d(x, kernel, stride=2, padding=3)

    def encode(self, x):
        """Of each level of SegNet-Basic: the map before the pool, the pooled map, the indices."""
        levels = []
        for n in range(1, 5):
            before = self.block(x, f"conv{n}", self.width, 7)
            x, indices = functional.max_pool2d(before, 2, ceil_mode=True, return_indices=True)
            levels.append((before, x, indices))
        return levels


def unpool(x, indices, like):
    return functional.max_unpool2d(x, indices, 2, output_size=like.shape[2:])


def segnet(net, x):
    pools = []
    for stage, (depth, multiple) in STAGES.items():
        for n in range(1, depth + 1):
            x = net.block(x, f"conv{stage}_{n}", multiple * net.width, 3)
        before = x
        x, indices = functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        pools.append((before, indices))
    for stage in (5, 4, 3, 2, 1):
        depth, multiple = STAGES[stage]
        before, indices = pools[stage - 1]
        x = unpool(x, indices, before)
        for n in range(depth, 1, -1):
            x = net.block(x, f"conv{stage}_{n}_D", multiple * net.width, 3)
        if stage > 1:
            x = net.block(x, f"conv{stage}_1_D", STAGES[stage - 1][1] * net.width, 3)
    return net.conv(x, "conv1_1_D", CLASSES, 3)


def segnet_basic(net, x, add=False, groups=1):
    levels = net.encode(x)
    x = levels[-1][1]
    for n in (4, 3, 2, 1):
        before, _, indices = levels[n - 1]
        x = unpool(x, indices, before)
        x = net.block(x, f"conv_decode{n}", net.width, 7, relu=False, groups=groups)
        if add:
            x = x + before
    return net.conv(x, "conv_classifier", CLASSES, 1)


def bilinear_interpolation(net, x):
    """The decoder first and the classes last, the other way round than in the project."""
    levels = net.encode(x)
    x = levels[-1][1]
    for before, _, _ in reversed(levels):
        size = before.shape[2:]
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
    return net.conv(x, "conv_classifier", CLASSES, 1)


def fcn_basic(net, x, add=True, reduce=True):
    levels = net.encode(x)

    def skip(n):
        pooled = levels[n - 1][1]
        return net.conv(pooled, f"conv_reduce{n}", CLASSES, 1) if reduce else pooled

    x = skip(4)
    for n in (4, 3, 2, 1):
        height, width = levels[n - 1][0].shape[2:]
        x = net.upsample(x, f"upsample{n}")[:, :, :height, :width]
        if add and n > 1:
            x = x + skip(n - 1)
    return x if reduce else net.conv(x, "conv_classifier", CLASSES, 1)


NETWORKS = {
    "segnet": (2, segnet),
    "segnet_basic": (3, segnet_basic),
    "segnet_basic_encoder_addition": (3, lambda net, x: segnet_basic(net, x, add=True)),
    "segnet_basic_single_channel_decoder": (3, lambda net, x: segnet_basic(net, x, groups=3)),
    "bilinear_interpolation": (3, bilinear_interpolation),
    "fcn_basic": (3, fcn_basic),
    "fcn_basic_no_addition": (3, lambda net, x: fcn_basic(net, x, add=False)),
    "fcn_basic_no_dim_reduction": (3, lambda net, x: fcn_basic(net, x, reduce=False)),
    "fcn_basic_no_addition_no_dim_reduction": (
        3,
        lambda net, x: fcn_basic(net, x, add=False, reduce=False),
    ),
}


def main():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 3, *SIZE)).astype(np.float32)
    arrays = {"image": image.transpose(0, 2, 3, 1)}
    for name, (width, run) in NETWORKS.items():
        net = Network(rng, width)
        logits = run(net, torch.tensor(image)).numpy()
        paths = sorted(net.arrays, key=lambda path: path.split("/"))
        weights = np.concatenate([net.arrays[path].ravel() for path in paths])
        arrays |= {f"{name}/weights": weights}
        arrays |= {f"{name}/logits": logits.transpose(0, 2, 3, 1)}
    np.savez_compressed(Path(__file__).with_name("decoder_variants.npz"), **arrays)


if __name__ == "__main__":
    main()
