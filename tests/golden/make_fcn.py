"""Makes fcn.npz: logits of narrow FCNs as PyTorch computes them, from the authors' layer lists.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_fcn.py

Of each case image and logits, NHWC float32. The weights follow from their names (`seeded`).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from seeded import array

WIDTH, FC_WIDTH, CLASSES = 2, 6, 3
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, features in WIDTH
SCALES = {"score_pool4": 0.01, "score_pool3": 0.0001}

# name: stride of the finest scores, padding, learned upsampling, at once, size of the image.
CASES = {
    "fcn32s": (32, "pad100", False, False, (24, 31)),
    "fcn16s_learnt": (16, "pad100", True, False, (33, 20)),
    "fcn8s": (8, "pad100", False, False, (38, 51)),
    "fcn8s_at_once": (8, "pad100", False, True, (21, 32)),
    "fcn8s_same_learnt": (8, "same", True, False, (45, 37)),
}


def conv(x, name, features, size, padding):
    kernel = array(f"{name}/kernel", (size, size, x.shape[1], features)).transpose(3, 2, 0, 1)
    bias = array(f"{name}/bias", (features,))
    return F.conv2d(x, torch.tensor(kernel), torch.tensor(bias), padding=padding)


def upsample(x, name, stride, learned, padding):
    """Deconvolution with a kernel of twice the stride, from each class to itself unless learned."""
    size = 2 * stride
    if learned:
        kernel = array(f"{name}/kernel", (size, size, CLASSES, CLASSES)).transpose(3, 2, 0, 1)
    else:
        place = np.arange(size)
        line = 1 - np.abs(place - (stride - 0.5)) / stride
        kernel = np.zeros((CLASSES, CLASSES, size, size), np.float32)
        kernel[range(CLASSES), range(CLASSES)] = line[:, None] * line[None, :]
    return F.conv_transpose2d(
        x, torch.tensor(np.ascontiguousarray(kernel)), stride=stride, padding=padding
    )


def crop(x, offset, like):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def fcn(image, stride, padding, learned, at_once):
    same = padding == "same"
    x, pools = image, {}
    for number, (depth, multiple) in enumerate(STAGES, start=1):
        for n in range(1, depth + 1):
            name = f"conv{number}_{n}"
            border = 100 if name == "conv1_1" and not same else 1
            x = F.relu(conv(x, f"{name}/conv", multiple * WIDTH, 3, border))
        x = pools[number] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    x = F.relu(conv(x, "fc6/conv", FC_WIDTH, 7, 3 if same else 0))
    x = F.relu(conv(x, "fc7/conv", FC_WIDTH, 1, 0))
    x = conv(x, "score_fr", CLASSES, 1, 0)

    def skip(x, up, name, pool, offset):
        x = upsample(x, up, 2, learned, 1 if same else 0)
        score = conv(pool * (SCALES[name] if at_once else 1), name, CLASSES, 1, 0)
        return crop(x, 0, score) + score if same else x + crop(score, offset, x)

    if stride <= 16:
        x = skip(x, "upscore2", "score_pool4", pools[4], 5)
    if stride <= 8:
        x = skip(x, "upscore_pool4", "score_pool3", pools[3], 9)
    x = upsample(x, f"upscore{stride}", stride, learned, stride // 2 if same else 0)
    return crop(x, 0 if same else {32: 19, 16: 27, 8: 31}[stride], image)


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (stride, padding, learned, at_once, size) in CASES.items():
        image = rng.normal(size=(1, *size, 3)).astype(np.float32)
        logits = fcn(torch.tensor(image).permute(0, 3, 1, 2), stride, padding, learned, at_once)
        arrays[f"{name}/image"] = image
        arrays[f"{name}/logits"] = logits.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(Path(__file__).with_name("fcn.npz"), **arrays)


if __name__ == "__main__":
    main()
