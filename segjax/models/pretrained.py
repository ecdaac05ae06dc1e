"""Weights of VGG-16 learnt on ImageNet, for the networks that have it as their trunk.

A safetensors file is read by its path, or fetched by its name on the Hugging Face hub such as
timm/vgg16.tv_in1k. Its keys are ours (conv1_1/kernel, HWIO), torchvision's (features.0.weight,
OIHW) or timm's. The weights expect RGB in [0, 1] minus ImageNet's mean, divided by its standard
deviation: `data.normalization = "imagenet"`.
"""

import http.client
import json
import os
import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.errors import UserError
from segjax.models import vgg

CONVOLUTIONS = [
    f"conv{stage}_{n + 1}" for stage, (depth, _) in enumerate(vgg.STAGES, 1) for n in range(depth)
]
# torchvision counts layers from 0, each ReLU and pool among them.
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LAYERS = {
    **{layer: layer for layer in (*CONVOLUTIONS, "fc6", "fc7")},
    **{f"features.{n}": layer for n, layer in zip(PLACES, CONVOLUTIONS, strict=True)},
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "pre_logits.fc1": "fc6",  # timm's
    "pre_logits.fc2": "fc7",
}
LEAVES = {"kernel": "kernel", "weight": "kernel", "bias": "bias"}
CLASSIFIERS = ("classifier.6.", "head.fc.")  # of the 1000 classes of ImageNet, of no use here

DTYPES: dict[str, Any] = {
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
HUB = "https://huggingface.co"
TIMEOUT = 60  # seconds without an answer


def fill(variables: dict[str, Any], source: str) -> dict[str, Any]:
    """Variables of a network with the weights of VGG-16 in its layers of that name.

    All thirteen convolutions are filled, and fc6 and fc7 where the file has them and the network's
    own have that shape. Everything else, batch normalisation included, stays as it is.

    Args:
      variables: as `init` gives them.
      source: path of a safetensors file, or a name on the hub.

    Raises:
      UserError: there is no such file, it is not of VGG-16, or the network's convolutions are not.
    """
    layers = load(source)
    params = dict(variables["params"])
    for layer, given in layers.items():
        own = params.get(layer, {}).get("conv", {})
        wrong = [leaf for leaf, x in given.items() if leaf not in own or own[leaf].shape != x.shape]
        if not wrong:
            # Copies of their own, for training gives their memory up.
            params[layer] = {**params[layer], "conv": {k: jnp.array(x) for k, x in given.items()}}
        elif layer in CONVOLUTIONS:
            leaf = wrong[0]
            found = _by(own[leaf].shape) if leaf in own else "not there"
            raise UserError(
                f"{source}: {layer}/{leaf} is {_by(given[leaf].shape)}, but in the network {found}"
            )
    return {**variables, "params": params}


def load(source: str) -> dict[str, dict[str, np.ndarray]]:
    """{"conv1_1": {"kernel": float32 HWIO, "bias": float32}, ...} of a file, however it names them.

    fc6 and fc7 are there only if the file has them, as convolutions of 7x7 and 1x1.

    Raises:
      UserError: as `fill`.
    """
    layers: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in CONVOLUTIONS}
    for key, value in _read(_locate(source), source).items():
        if key.startswith(CLASSIFIERS):
            continue
        name, _, leaf = key.replace("/", ".").rpartition(".")
        if name not in LAYERS or leaf not in LEAVES:
            raise UserError(f"{source} has {key!r}, which is no layer of VGG-16")
        if leaf == "weight":
            if value.ndim == 2:  # a matrix, of which each row of fc6 is (512, 7, 7)
                side = 7 if LAYERS[name] == "fc6" and value.shape[1] % 49 == 0 else 1
                value = value.reshape(len(value), -1, side, side)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        layers.setdefault(LAYERS[name], {})[LEAVES[leaf]] = value.astype(np.float32)
    missing = [
        f"{x}/{leaf}" for x in layers for leaf in ("kernel", "bias") if leaf not in layers[x]
    ]
    if missing:
        raise UserError(f"{source} lacks {len(missing)} arrays of VGG-16: {', '.join(missing[:4])}")
    return layers


def _by(shape):
    return "x".join(map(str, shape))


def _read(path, source):
    """{key: array} of a safetensors file: the length of the header, the header, the bytes."""
    try:
        data = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        content = data[8 + length :]
        arrays = {}
        for key, entry in header.items():
            start, stop = entry["data_offsets"]
            values = content[start:stop].view(DTYPES[entry["dtype"]])
            arrays[key] = values.reshape(entry["shape"])
        return arrays
    except OSError as error:
        raise UserError(f"pretrained weights {source} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{source} is not a whole safetensors file of floats: {said}") from error


def _locate(source):
    """The path of a file, fetched where the source is a name on the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix == ".safetensors":
        raise UserError(
            f"pretrained weights {source}: there is no such file, nor is it a name on the Hugging "
            "Face hub such as timm/vgg16.tv_in1k"
        )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segjax"
    path = folder / f"{source.replace('/', '--')}.safetensors"
    if not path.exists():
        _fetch(source, path)
    return path


def _fetch(name, path):
    """Downloads a file of the hub (of $HF_ENDPOINT, where that is set) whole or not at all."""
    url = f"{os.environ.get('HF_ENDPOINT') or HUB}/{name}/resolve/main/model.safetensors"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as file:
            shutil.copyfileobj(response, file, 2**20)
            expected = int(response.headers.get("Content-Length", file.tell()))
            if file.tell() != expected:
                raise OSError(f"it ended after {file.tell()} of {expected} bytes")
        part.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"pretrained weights {name} cannot be fetched, {url}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
