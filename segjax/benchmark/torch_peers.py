"""PyTorch implementations of the networks, for `segjax benchmark --against torch`.

PyTorch is not a dependency of segjax: this script runs in any Python that has torch and numpy
(`--torch-python PYTHON`), and answers the requests that `worker.py` lists. It uses
channels_last, autocast for bfloat16, cuDNN autotuning and TensorFloat-32, eager or (`--compile`)
torch.compile. A training step normalizes uint8 images on the device, computes the weighted cross
entropy and its gradient, and applies momentum SGD. Before anything is timed, the logits of both
sides are compared, in float32 and with the same weights.

Parameters are named as in Flax, with dots for slashes and underscores for hyphens.
"""

import argparse
import contextlib
import functools
import gc
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# As a script beside it, for segjax need not be installed.
from process import (
    DISTINCT,
    LEARNING_RATE,
    PROGRAMS,
    WARM_UP,
    forget_peak,
    resident,
    serve,
    warm_up,
)
from torch import nn

STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # VGG-16: convolutions, features in widths


class Block(nn.Sequential):
    """Convolution, by default with batch normalization and ReLU."""

    def __init__(self, inputs, features, size, *, padding=None, dilation=1, bn=True, relu=True):
        super().__init__()
        padding = dilation * (size // 2) if padding is None else padding
        self.conv = nn.Conv2d(inputs, features, size, padding=padding, dilation=dilation)
        if bn:
            self.bn = nn.BatchNorm2d(features)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class DeconvBlock(nn.Sequential):
    """Transposed convolution, batch normalization and ReLU."""

    def __init__(self, inputs, features, size, padding):
        super().__init__()
        self.deconv = nn.ConvTranspose2d(inputs, features, size, padding=padding)
        self.bn = nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)


def crop(x, offset, like):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def mirror(x, top, bottom, left, right):
    """Pad by reflection, repeatedly if the margin exceeds the side."""
    if max(top, bottom) < x.shape[2] and max(left, right) < x.shape[3]:
        return F.pad(x, (left, right, top, bottom), mode="reflect")
    rows = np.pad(np.arange(x.shape[2]), (top, bottom), mode="reflect")
    columns = np.pad(np.arange(x.shape[3]), (left, right), mode="reflect")
    return x[:, :, torch.as_tensor(rows)][:, :, :, torch.as_tensor(columns)]


def add_vgg(module, width, block):
    """Add VGG-16's convolutions, `block(inputs, features, stage, n)`; return the last features."""
    features = 3
    for stage, (depth, multiple) in enumerate(STAGES, 1):
        for n in range(1, depth + 1):
            setattr(module, f"conv{stage}_{n}", block(features, multiple * width, stage, n))
            features = multiple * width
    return features


def vgg_stage(module, stage, x):
    for n in range(1, STAGES[stage - 1][0] + 1):
        x = getattr(module, f"conv{stage}_{n}")(x)
    return x


class Bilinear(nn.Module):
    """Depthwise transposed convolution by a fixed kernel, as in FCN."""

    def __init__(self, channels, size, stride, padding=0):
        super().__init__()
        factor = (size + 1) // 2
        center = factor - 1 if size % 2 else factor - 0.5
        tent = 1 - (torch.arange(size) - center).abs() / factor
        kernel = (tent[:, None] * tent[None, :]).expand(channels, 1, size, size).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)
        self.channels, self.stride, self.padding = channels, stride, padding

    def forward(self, x):
        kernel = self.kernel.to(x.dtype)
        return F.conv_transpose2d(
            x, kernel, stride=self.stride, padding=self.padding, groups=self.channels
        )


class SegNet(nn.Module):
    def __init__(self, classes, width=64, dropout=0.0):
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.drop = nn.Dropout(dropout)
        features = add_vgg(self, width, lambda inputs, out, *_: Block(inputs, out, 3))
        for stage in range(5, 0, -1):
            depth, multiple = STAGES[stage - 1]
            for n in range(depth, 1, -1):
                setattr(self, f"conv{stage}_{n}_D", Block(features, multiple * width, 3))
                features = multiple * width
            if stage > 1:
                narrower = STAGES[stage - 2][1] * width
                setattr(self, f"conv{stage}_1_D", Block(features, narrower, 3))
                features = narrower
        self.conv1_1_D = nn.Conv2d(features, classes, 3, padding=1)

    def forward(self, x):
        pools = []
        for stage in range(1, 6):
            x = vgg_stage(self, stage, x)
            size = x.shape
            x, indices = self.pool(x)
            pools.append((indices, size))
            if stage >= 3:
                x = self.drop(x)
        for stage in range(5, 0, -1):
            indices, size = pools[stage - 1]
            x = self.unpool(x, indices, output_size=size)
            for n in range(STAGES[stage - 1][0], 0, -1):
                x = getattr(self, f"conv{stage}_{n}_D")(x)
            if stage >= 3:
                x = self.drop(x)
        return x


class SegNetBasic(nn.Module):
    def __init__(self, classes, width=64, dropout=0.0):
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.drop = nn.Dropout(dropout)
        for n in range(1, 5):
            setattr(self, f"conv{n}", Block(3 if n == 1 else width, width, 7))
            setattr(self, f"conv_decode{n}", Block(width, width, 7, relu=False))
        self.conv_classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        pools = []
        for n in range(1, 5):
            x = getattr(self, f"conv{n}")(x)
            size = x.shape
            x, indices = self.pool(x)
            pools.append((indices, size))
            if n >= 3:
                x = self.drop(x)
        for n in range(4, 0, -1):
            indices, size = pools[n - 1]
            x = getattr(self, f"conv_decode{n}")(self.unpool(x, indices, output_size=size))
            if n >= 3:
                x = self.drop(x)
        return self.conv_classifier(x)


class FCN(nn.Module):
    """FCN-32s, 16s and 8s, with fixed or learned transposed convolutions."""

    SKIPS = ((4, "upscore2", 5), (3, "upscore_pool4", 9))  # pool, upsampling, offset of the crop
    OFFSETS = {32: 19, 16: 27, 8: 31}  # noqa: RUF012

    def __init__(
        self,
        classes,
        stride,
        width=64,
        fc_width=4096,
        dropout=0.5,
        padding="pad100",
        batch_norm=False,
        upsampling="bilinear",
    ):
        super().__init__()

        def larger(factor):
            around = 0 if padding == "pad100" else factor // 2
            if upsampling == "bilinear":
                return Bilinear(classes, 2 * factor, factor, around)
            if upsampling != "learnt":
                raise NoPeer(f"FCN with upsampling {upsampling} has no peer in PyTorch")
            return nn.ConvTranspose2d(
                classes, classes, 2 * factor, factor, padding=around, bias=False
            )

        self.stride, self.padded = stride, padding == "pad100"
        self.pool, self.drop = nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(dropout)

        def block(inputs, out, stage, n):
            around = 100 if self.padded and stage == n == 1 else None
            return Block(inputs, out, 3, padding=around, bn=batch_norm)

        features = add_vgg(self, width, block)
        around = 0 if self.padded else None
        self.fc6 = Block(features, fc_width, 7, padding=around, bn=batch_norm)
        self.fc7 = Block(fc_width, fc_width, 1, bn=batch_norm)
        self.score_fr = nn.Conv2d(fc_width, classes, 1)
        for pool, name, _ in self.SKIPS:
            if 2**pool >= stride:
                multiple = STAGES[pool - 1][1]
                setattr(self, f"score_pool{pool}", nn.Conv2d(multiple * width, classes, 1))
                setattr(self, name, larger(2))
        setattr(self, f"upscore{stride}", larger(stride))

    def forward(self, image):
        x, pools = image, {}
        for stage in range(1, 6):
            x = pools[stage] = self.pool(vgg_stage(self, stage, x))
        x = self.score_fr(self.drop(self.fc7(self.drop(self.fc6(x)))))
        for pool, name, offset in self.SKIPS:
            if 2**pool >= self.stride:
                x = getattr(self, name)(x)
                skip = getattr(self, f"score_pool{pool}")(pools[pool])
                x = x + crop(skip, offset, x) if self.padded else crop(x, 0, skip) + skip
        x = getattr(self, f"upscore{self.stride}")(x)
        return crop(x, self.OFFSETS[self.stride] if self.padded else 0, image)


class DeconvNet(nn.Module):
    def __init__(self, classes, width=64, fc_width=4096, fc_kernel=7):
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        features = add_vgg(self, width, lambda inputs, out, *_: Block(inputs, out, 3))
        self.fc6 = Block(features, fc_width, fc_kernel, padding=0)
        self.fc7 = Block(fc_width, fc_width, 1)
        self.fc6_deconv = DeconvBlock(fc_width, features, fc_kernel, 0)
        for stage in range(5, 0, -1):
            depth, multiple = STAGES[stage - 1]
            for n in range(1, depth + 1):
                out = (STAGES[max(stage - 2, 0)][1] if n == depth else multiple) * width
                setattr(self, f"deconv{stage}_{n}", DeconvBlock(features, out, 3, 1))
                features = out
        self.seg_score = nn.Conv2d(features, classes, 1)

    def forward(self, x):
        pools = []
        for stage in range(1, 6):
            x = vgg_stage(self, stage, x)
            size = x.shape
            x, indices = self.pool(x)
            pools.append((indices, size))
        x = self.fc6_deconv(self.fc7(self.fc6(x)))
        for stage in range(5, 0, -1):
            indices, size = pools[stage - 1]
            x = self.unpool(x, indices, output_size=size)
            for n in range(1, STAGES[stage - 1][0] + 1):
                x = getattr(self, f"deconv{stage}_{n}")(x)
        return self.seg_score(x)


class UNet(nn.Module):
    def __init__(self, classes, width=64, dropout=0.5, padding="valid", batch_norm=False):
        super().__init__()
        self.valid, self.drop, self.pool = padding == "valid", nn.Dropout(dropout), nn.MaxPool2d(2)
        around = 0 if self.valid else None

        def block(inputs, features):
            return Block(inputs, features, 3, padding=around, bn=batch_norm)

        features = 3
        for level in range(5):
            out = 2**level * width
            setattr(self, f"conv_d{level}a_b", block(features, out))
            setattr(self, f"conv_d{level}b_c", block(out, out))
            features = out
        source = "d4c"
        for level in range(3, -1, -1):
            out = 2**level * width
            setattr(self, f"upconv_{source}_u{level}a", nn.ConvTranspose2d(2 * out, out, 2, 2))
            setattr(self, f"conv_u{level}b_c", block(2 * out, out))
            setattr(self, f"conv_u{level}c_d", block(out, out))
            source = f"u{level}d"
        self.conv_u0d_score = nn.Conv2d(width, classes, 1)

    def _larger(self, side):
        """Return the smallest input side that gives this many pixels."""
        least, rest, margin = (4, 4, 184) if self.valid else (16, 0, 0)
        return max(side + (rest - side) % 16, least) + margin

    def forward(self, image):
        height, width = image.shape[2:]
        rows, columns = self._larger(height) - height, self._larger(width) - width
        top, left = rows // 2, columns // 2
        x, skips = mirror(image, top, rows - top, left, columns - left), []
        for level in range(5):
            if level:
                skips.append(x)
                x = self.pool(x)
            x = getattr(self, f"conv_d{level}b_c")(getattr(self, f"conv_d{level}a_b")(x))
            if level >= 3:
                x = self.drop(x)
        source = "d4c"
        for level in range(3, -1, -1):
            x = getattr(self, f"upconv_{source}_u{level}a")(x)
            x = torch.cat([x, self._center(skips.pop(), x)], 1)
            x = getattr(self, f"conv_u{level}c_d")(getattr(self, f"conv_u{level}b_c")(x))
            source = f"u{level}d"
        return self._center(self.conv_u0d_score(x), image)

    @staticmethod
    def _center(x, like):
        top, left = (x.shape[2] - like.shape[2]) // 2, (x.shape[3] - like.shape[3]) // 2
        return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]


class DeepLab(nn.Module):
    """The VGG-16 trunk at stride 8 and one or four dilated heads."""

    def __init__(
        self, classes, rates, width=64, fc_width=1024, dropout=0.5, batch_norm=False, average=False
    ):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.MaxPool2d(3, stride, padding=1, ceil_mode=True) for stride in (2, 2, 2, 1, 1)
        )
        self.average = nn.AvgPool2d(3, 1, padding=1) if average else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.branches = [f"_{n}" for n in range(1, 1 + len(rates))] if len(rates) > 1 else [""]

        def block(inputs, out, stage, _):
            return Block(inputs, out, 3, dilation=2 if stage == 5 else 1, bn=batch_norm)

        features = add_vgg(self, width, block)
        for rate, name in zip(rates, self.branches, strict=True):
            setattr(self, f"fc6{name}", Block(features, fc_width, 3, dilation=rate, bn=batch_norm))
            setattr(self, f"fc7{name}", Block(fc_width, fc_width, 1, bn=batch_norm))
            setattr(self, f"fc8{name}", nn.Conv2d(fc_width, classes, 1))

    def forward(self, image):
        x = image
        for stage in range(1, 6):
            x = self.pools[stage - 1](vgg_stage(self, stage, x))
        x, scores = self.average(x), 0
        for name in self.branches:
            y = self.drop(getattr(self, f"fc6{name}")(x))
            y = self.drop(getattr(self, f"fc7{name}")(y))
            scores = scores + getattr(self, f"fc8{name}")(y).float()
        size = [8 * (side - 1) + 1 for side in scores.shape[2:]]
        full = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
        return crop(full, 0, image)


class Dilation8(nn.Module):
    CONTEXT = (1, 1, 2, 4, 8, 16, 1)  # dilations of the context module
    NAMES = ("conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc1")

    def __init__(self, classes, width=64, fc_width=4096, dropout=0.5, batch_norm=False):
        super().__init__()
        self.pool, self.drop = nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(dropout)

        def block(inputs, features, size, dilation):
            return Block(inputs, features, size, padding=0, dilation=dilation, bn=batch_norm)

        features = add_vgg(
            self, width, lambda inputs, out, stage, _: block(inputs, out, 3, 2 if stage == 5 else 1)
        )
        self.fc6, self.fc7 = block(features, fc_width, 7, 4), block(fc_width, fc_width, 1, 1)
        self.final = nn.Conv2d(fc_width, classes, 1)
        for name, dilation in zip(self.NAMES, self.CONTEXT, strict=True):
            conv = nn.Conv2d(classes, classes, 3, padding=dilation, dilation=dilation)
            setattr(self, f"ctx_{name}", conv)
        self.ctx_final = nn.Conv2d(classes, classes, 1)
        self.upsample = Bilinear(classes, 16, 8, 4)

    def forward(self, image):
        x = mirror(image, 186, 186, 186, 186)
        for stage in range(1, 6):
            x = vgg_stage(self, stage, x)
            x = self.pool(x) if stage <= 3 else x
        x = self.final(self.drop(self.fc7(self.drop(self.fc6(x)))))
        for name in self.NAMES:
            x = F.relu(getattr(self, f"ctx_{name}")(x))
        return crop(self.upsample(self.ctx_final(x).float()), 0, image)


def fcn(stride):
    return lambda classes, **options: FCN(classes, stride, **options)


def deeplab_largefov(classes, rate=12, **options):
    return DeepLab(classes, (rate,), average=True, **options)


def deeplab_aspp(classes, rates=(6, 12, 18, 24), **options):
    return DeepLab(classes, tuple(rates), **options)


NETWORKS = {
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "fcn32s": fcn(32),
    "fcn16s": fcn(16),
    "fcn8s": fcn(8),
    "deconvnet": DeconvNet,
    "unet": UNet,
    "deeplab_largefov": deeplab_largefov,
    "deeplab_aspp": deeplab_aspp,
    "dilation8": Dilation8,
}

# Collection and last part of a path in Flax -> name in PyTorch.
WORDS = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def state_dict(arrays):
    """Convert Flax arrays, by their paths, to a state_dict.

    Kernels are HWIO in Flax and OIHW here; those of transposed convolutions (k, k, out, in) and
    (in, out, k, k), which is the same permutation.
    """
    state = {}
    for path, array in arrays.items():
        collection, *names, last = path.split("/")
        if last == "kernel":
            array = array.transpose(3, 2, 0, 1)
        name = ".".join([*names, WORDS[collection, last]]).replace("-", "_")
        state[name] = torch.tensor(np.ascontiguousarray(array))
    return state


VOID = 255
# As in segjax/training/losses.py.
CLASS_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


class NoPeer(Exception):
    """No PyTorch peer of the requested network exists."""


class Bench:
    """A network and its programs; the methods answer the requests that worker.py lists."""

    def __init__(self, compiled):
        self.compiled = compiled
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True

    def network(self, model, model_options, num_classes, resolution, precision, folder):
        if model not in NETWORKS:
            raise NoPeer(f"{model} has no peer in PyTorch")
        idle = resident()
        self.bfloat16, self.size, self.classes = precision == "bfloat16", resolution, num_classes
        self.model = NETWORKS[model](num_classes, **model_options)
        arrays = dict(np.load(Path(folder) / "weights.npz"))
        missing, unknown = self.model.load_state_dict(state_dict(arrays), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unknown:
            raise NoPeer(f"{model} lacks {missing} and does not know {unknown}")
        self.model = self.model.to(self.device, memory_format=torch.channels_last)
        logits = self._compare(Path(folder))
        self.run_model = torch.compile(self.model) if self.compiled else self.model
        versions = {"torch": torch.__version__}
        if self.device.type == "cuda":
            versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        parameters = sum(x.numel() for x in self.model.parameters())
        return {
            "device": name,
            "versions": versions,
            "parameters": parameters,
            "idle": idle[0] if idle else None,
            "logits": logits,
        }

    def _compare(self, folder):
        self._tensorfloat(False)
        image = self._channels_last(np.load(folder / "image.npy"))
        with torch.inference_mode():
            ours = self.model.eval()(image).permute(0, 2, 3, 1).cpu().numpy()
        theirs = np.load(folder / "logits.npy")
        self._tensorfloat(True)  # as XLA does, and as is usual
        difference = np.abs(ours - theirs)
        return {
            "greatest_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "greatest": float(np.abs(theirs).max()),
        }

    @staticmethod
    def _tensorfloat(allow):
        torch.backends.cuda.matmul.allow_tf32 = allow
        torch.backends.cudnn.allow_tf32 = allow

    def _channels_last(self, images):
        return torch.tensor(images).permute(0, 3, 1, 2).to(self.device)  # NHWC in memory

    def batch(self, batch):
        self.inputs = self.optimizer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.compiled:
            torch.compiler.reset()
        rng = np.random.default_rng(1)
        shape, kinds = (batch, *self.size), np.append(np.arange(self.classes), VOID)
        images = rng.standard_normal((DISTINCT, *shape, 3), np.float32)
        self.inputs = {
            "images": [self._channels_last(x) for x in images],
            "raw": [
                self._channels_last(rng.integers(0, 256, (*shape, 3), np.uint8))
                for _ in range(DISTINCT)
            ],
            "labels": [
                torch.tensor(rng.choice(kinds, shape)).to(self.device) for _ in range(DISTINCT)
            ],
        }
        weights = CLASS_WEIGHTS if self.classes == len(CLASS_WEIGHTS) else np.ones(self.classes)
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        kernels = [x for x in self.model.parameters() if x.ndim > 1]
        others = [x for x in self.model.parameters() if x.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": others}]
        self.optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9)
        self.count, self.calls, seconds = 0, {}, {}
        memory = {source: dict.fromkeys(PROGRAMS) for source in ("compiled", "device", "process")}
        for program in PROGRAMS:
            start = time.perf_counter()
            self._run_to_end(program)
            seconds[program] = time.perf_counter() - start
            forget_peak()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            call = functools.partial(self._run_to_end, program)
            self.calls[program] = warm_up(call, WARM_UP)
            if self.device.type == "cuda":
                memory["device"][program] = torch.cuda.max_memory_allocated()
            elif found := resident():
                memory["process"][program] = found[1]
        return {
            # torch.compile compiles at the first call, which is therefore included.
            "compile_seconds": seconds if self.compiled else dict.fromkeys(PROGRAMS),
            "memory": memory,
            "bytes": dict.fromkeys(PROGRAMS),
        }

    def _run(self, program):
        place, self.count = self.count % DISTINCT, self.count + 1
        if program == "forward":
            self.model.eval()
            with torch.inference_mode(), self._precision():
                return self.run_model(self.inputs["images"][place]).float()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        image = (self.inputs["raw"][place].float() / 255 - 0.5) / 0.25
        labels = self.inputs["labels"][place]
        with self._precision():
            logits = self.run_model(image)
        total = F.cross_entropy(
            logits.float(), labels, self.class_weights, ignore_index=VOID, reduction="sum"
        )
        loss = total / (labels != VOID).sum()
        loss.backward()
        if program == "training_step":
            self.optimizer.step()
        return loss.detach()

    def _run_to_end(self, program):
        self._run(program)
        self._wait()

    def _precision(self):
        if not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, program):
        calls = self.calls[program]
        start = time.perf_counter()
        for _ in range(calls):
            self._run(program)
        self._wait()
        return {"ms": 1e3 * (time.perf_counter() - start) / calls}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile instead of eager mode"
    )
    bench = Bench(parser.parse_args().compile)
    serve({name: getattr(bench, name) for name in ("network", "batch", "time")}, NoPeer)


if __name__ == "__main__":
    main()
