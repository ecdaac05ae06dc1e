"""Makes resnet.npz: maps and logits of narrow networks on ResNets as PyTorch computes them.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_resnet.py

`image`, NHWC, and of each case the last map of the trunk (`trunk/...`), or the logits at every
third pixel, NHWC. Modules are named and dilated as torchvision's `resnet.py` does it
(`replace_stride_with_dilation`); the weights follow from their names in the project's networks
(`seeded`).
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array
from torch import nn

WIDTH, ASPP_WIDTH, CLASSES = 4, 6, 3
UNITS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
}
LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def conv(inner, outer, kernel_size, stride=1, dilation=1):
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(inner, outer, kernel_size, stride, padding, dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inner, planes, stride, dilation, first, downsample):
        super().__init__()
        self.conv1, self.bn1 = conv(inner, planes, 3, stride, first), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, 1, dilation), nn.BatchNorm2d(planes)
        self.downsample, self.stride = downsample, stride

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        short = self.downsample(x) if self.downsample else F.max_pool2d(x, 1, self.stride)
        return (y + short).relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inner, planes, stride, dilation, first, downsample):
        super().__init__()
        self.conv1, self.bn1 = conv(inner, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride, first), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.downsample, self.stride = downsample, stride

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        short = self.downsample(x) if self.downsample else F.max_pool2d(x, 1, self.stride)
        return (y + short).relu()


class ResNet(nn.Module):
    """`dilated` says of each block from 2 on whether dilation replaces its stride."""

    def __init__(self, name, dilated=(False, False, False), grid=(1, 1, 1)):
        super().__init__()
        self.kind = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
        self.inner, self.dilation = WIDTH, 1
        self.conv1, self.bn1 = conv(3, WIDTH, 7, 2), nn.BatchNorm2d(WIDTH)
        self.layers = []
        depths = UNITS[name] + [UNITS[name][3]] * (len(dilated) - 3)
        for k, depth in enumerate(depths):
            planes, stride = WIDTH * 2 ** min(k, 3), 1 if k == 0 else 2
            dilate = k > 0 and dilated[k - 1]
            layer = self._layer(planes, depth, stride, dilate, grid if k > 2 else ())
            setattr(self, f"layer{k + 1}", layer)
            self.layers.append(layer)

    def _layer(self, planes, depth, stride, dilate, grid):
        previous = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        outer, downsample = planes * self.kind.expansion, None
        if self.inner != outer:
            downsample = nn.Sequential(conv(self.inner, outer, 1, stride), nn.BatchNorm2d(outer))
        units = []
        for n in range(depth):
            multiple = grid[n] if grid else 1
            first = previous if n == 0 else self.dilation
            units.append(
                self.kind(
                    self.inner,
                    planes,
                    stride if n == 0 else 1,
                    multiple * self.dilation,
                    multiple * first,
                    downsample if n == 0 else None,
                )
            )
            self.inner = outer
        return nn.Sequential(*units)

    def forward(self, x):
        maps = [self.bn1(self.conv1(x)).relu()]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def fill(module, prefix):
    """Give a module the weights of the project's names: layer1.0.conv1.weight and so on."""
    for key, tensor in module.state_dict().items():
        name, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        path = re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")
        if leaf == "weight":
            leaf = "kernel" if tensor.ndim == 4 else "scale"
        shape = list(tensor.shape)
        if leaf == "kernel":
            shape = [*shape[2:], shape[1], shape[0]]
        values = torch.tensor(array(f"{prefix}{path}/{LEAVES.get(leaf, leaf)}", shape))
        tensor.copy_(values.permute(3, 2, 0, 1) if leaf == "kernel" else values)
    return module.eval()


def named(module, path):
    """Give a convolution with batch normalization, or one with a bias, its weights."""
    if isinstance(module, nn.Conv2d):
        return fill(nn.ModuleDict({path: module}), "")[path]
    block = nn.ModuleDict({"conv": module[0], "bn": module[1]})
    fill(block, f"{path}/")
    return nn.Sequential(block["conv"], block["bn"], nn.ReLU()).eval()


def block(path, inner, outer, kernel_size, dilation=1):
    layers = nn.Sequential(
        conv(inner, outer, kernel_size, 1, dilation), nn.BatchNorm2d(outer), nn.ReLU()
    )
    return named(layers, path)


def upsample(scores, stride, image):
    scores = F.pad(scores, (0, 1, 0, 1), mode="replicate")
    full = [(side - 1) * stride + 1 for side in scores.shape[2:]]
    scores = F.interpolate(scores, full, mode="bilinear", align_corners=True)
    return scores[:, :, : image.shape[2], : image.shape[3]]


def deeplab_v2(image, name, dilated, rates, stride):
    x = fill(ResNet(name, dilated), "trunk/")(image)[-1]
    scores = 0
    for n, rate in enumerate(rates):
        layer = nn.Conv2d(x.shape[1], CLASSES, 3, padding=rate, dilation=rate)
        scores = scores + named(layer, f"fc1_c{n}")(x)
    return upsample(scores, stride, image)


def deeplab_v3(image, name, dilated, grid, rates, stride):
    x = fill(ResNet(name, dilated, grid), "trunk/")(image)[-1]
    if rates:
        inner = x.shape[1]
        branches = [block("aspp0", inner, ASPP_WIDTH, 1)(x)]
        for n, rate in enumerate(rates, start=1):
            branches.append(block(f"aspp{n}", inner, ASPP_WIDTH, 3, rate)(x))
        pooled = block("image_pooling", inner, ASPP_WIDTH, 1)(F.adaptive_avg_pool2d(x, 1))
        branches.append(F.interpolate(pooled, x.shape[2:], mode="bilinear"))
        x = torch.cat(branches, 1)
        x = block("concat_projection", x.shape[1], ASPP_WIDTH, 1)(x)
    scores = named(nn.Conv2d(x.shape[1], CLASSES, 1), "logits")(x)
    return upsample(scores, stride, image)


def unet(image, name):
    *skips, x = fill(ResNet(name), "trunk/")(image)
    features = 4 * WIDTH
    for stride in (16, 8, 4, 2, 1):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        skip = skips.pop() if skips else None
        height, width = (image if skip is None else skip).shape[2:]
        x = x[:, :, :height, :width]
        if skip is not None:
            x = torch.cat([x, skip], 1)
        x = block(f"up{stride}_1", x.shape[1], features, 3)(x)
        x = block(f"up{stride}_2", features, features, 3)(x)
        features //= 2
    return named(nn.Conv2d(x.shape[1], CLASSES, 3, padding=1), "score")(x)


NONE, GRID = (False, False, False), (1, 2, 4)
CASES = {
    "trunk/resnet18/32": lambda x: fill(ResNet("resnet18"), "")(x)[-1],
    "trunk/resnet18/8": lambda x: fill(ResNet("resnet18", (False, True, True)), "")(x)[-1],
    "trunk/resnet34/16": lambda x: fill(ResNet("resnet34", (False, False, True)), "")(x)[-1],
    "trunk/resnet50/32": lambda x: fill(ResNet("resnet50"), "")(x)[-1],
    "deeplab_v2/8": lambda x: deeplab_v2(x, "resnet18", (False, True, True), [6, 12, 18, 24], 8),
    "deeplab_v2/32": lambda x: deeplab_v2(x, "resnet18", NONE, [2, 3, 5, 6], 32),
    "deeplab_v3/8": lambda x: deeplab_v3(x, "resnet18", (False, True, True), GRID, [12, 24, 36], 8),
    "deeplab_v3/16": lambda x: deeplab_v3(
        x, "resnet50", (False, False, True), GRID, [6, 12, 18], 16
    ),
    "deeplab_v3/7/16": lambda x: deeplab_v3(
        x, "resnet18", (False, False, True, True, True, True), GRID, [], 16
    ),
    "deeplab_v3/7/64": lambda x: deeplab_v3(
        x, "resnet18", (False, False, False, False, True, True), (1, 1, 1), [], 64
    ),
    "unet_resnet": lambda x: unet(x, "resnet18"),
}


def main():
    image = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, 70, 93)), dtype=torch.float32)
    arrays = {"image": image.permute(0, 2, 3, 1).numpy()}
    with torch.no_grad():
        for name, case in CASES.items():
            every = 1 if name.startswith("trunk/") else 3
            arrays[name] = case(image).permute(0, 2, 3, 1)[:, ::every, ::every].numpy()
    np.savez_compressed(Path(__file__).with_name("resnet.npz"), **arrays)


if __name__ == "__main__":
    main()
