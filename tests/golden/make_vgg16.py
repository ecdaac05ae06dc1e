"""Makes vgg16.npz: what the real VGG-16 makes of a picture, as PyTorch computes it.

PyTorch is not a dependency of the project. In an environment of its own:

    pip install torch==2.13.0 numpy && python tests/golden/make_vgg16.py WEIGHTS PICTURE.npy

WEIGHTS is the safetensors file with the keys conv1_1/kernel ..., PICTURE.npy a uint8 (H, W, 3)
array: scene 7 of world 3 at 48x64, `np.save("picture.npy", scenery.render(3, 7, 48, 64)[0])`.

`image`, and for the last convolution of each stage, after its ReLU: the mean of each channel and
the values at every 101st place of the NHWC map.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTHS = (2, 2, 3, 3, 3)
EVERY = 101


def read(path):
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    arrays = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__":
            assert entry["dtype"] == "F16"
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[start:stop], np.float16).reshape(entry["shape"])
            arrays[key] = torch.tensor(values.astype(np.float32))
    return arrays


def main(weights, picture):
    weights, image = read(weights), np.load(picture)
    x = (torch.tensor(image).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    x = x.permute(2, 0, 1)[None]
    arrays = {"image": image}
    for stage, depth in enumerate(DEPTHS, start=1):
        for n in range(1, depth + 1):
            kernel = weights[f"conv{stage}_{n}/kernel"].permute(3, 2, 0, 1)
            x = F.conv2d(x, kernel, weights[f"conv{stage}_{n}/bias"], padding=1).relu()
        arrays[f"conv{stage}_{n}/means"] = x.mean((0, 2, 3)).numpy()
        arrays[f"conv{stage}_{n}/values"] = x.permute(0, 2, 3, 1).flatten()[::EVERY].numpy()
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    np.savez_compressed(Path(__file__).with_name("vgg16.npz"), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
