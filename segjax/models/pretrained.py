"""Weights trained on ImageNet, for the networks with the trunk of VGG-16 or a ResNet.

A safetensors file is read from its path, or from the Hugging Face hub by the name of a repository
and perhaps a revision, such as timm/vgg16.tv_in1k, timm/resnet50.a1_in1k or
timm/vgg16.tv_in1k@main. The hub's own library downloads it once into the hub's own cache and
follows its variables: HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT. Keys of VGG-16 are ours
(conv1_1/kernel, HWIO), torchvision's (features.0.weight, OIHW) or timm's; those of a ResNet are
torchvision's, which timm has as well (layer1.0.conv1.weight, by the rule in
`segjax.models.resnet`). The weights need RGB in [0, 1] minus ImageNet's mean, divided by its
standard deviation: `data.normalization = "imagenet"`.
"""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from segjax.errors import UserError, one_line
from segjax.models import vgg
from segjax.system import waiting

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
LEAVES = ("kernel", "bias")
CLASSIFIERS = ("classifier.6.", "head.fc.")  # of ImageNet's 1000 classes, not used
COUNTER = ".num_batches_tracked"  # of PyTorch's batch normalization, not used

RESNET_CLASSIFIER = "fc."
STATISTICS = {"running_mean": "mean", "running_var": "var"}
FURTHER = re.compile("layer[567]_")  # blocks that a file of a ResNet does not have

FILE = "model.safetensors"  # of a repository on the hub


def fill(variables: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the variables of a network with a file's weights in the layers of the same name.

    Of VGG-16, all thirteen convolutions are filled, and fc6 and fc7 where the file has them and the
    network's own have that shape. Everything else, batch normalization included, stays as it is. Of
    a ResNet, which is the network's `trunk`, all convolutions and batch normalizations with their
    statistics are filled, but for blocks 5 to 7.

    Args:
      variables: as `init` gives them.
      source: path of a safetensors file, or `name` or `name@revision` of a repository on the hub.

    Raises:
      UserError: the file is missing or is not of the network's trunk.
    """
    if "layer1_0" in variables["params"].get("trunk", {}):
        return _fill_resnet(variables, source)
    layers = load(source)
    params = dict(variables["params"])
    for layer, given in layers.items():
        own = params.get(layer, {}).get("conv", {})
        wrong = [x for x in LEAVES if x not in own or own[x].shape != given[x].shape]
        if not wrong:
            # Copies, because training donates their memory.
            params[layer] = {**params[layer], "conv": {k: jnp.array(x) for k, x in given.items()}}
        elif layer in CONVOLUTIONS:
            leaf = wrong[0]
            found = f"has {_by(own[leaf].shape)}" if leaf in own else "lacks it"
            raise UserError(
                f"{source}: {layer}/{leaf} is {_by(given[leaf].shape)}, but the network {found}"
            )
    return {**variables, "params": params}


def _fill_resnet(variables: dict[str, Any], source: str) -> dict[str, Any]:
    """Fill a network's trunk from a file of the same ResNet."""
    kinds = ("params", "batch_stats")
    own = flatten_dict({kind: variables[kind]["trunk"] for kind in kinds})
    missing = {path for path in own if not FURTHER.match(path[1])}
    for key, value in _read(_locate(source), source).items():
        if key.startswith(RESNET_CLASSIFIER):
            continue
        path = _place(key, value.ndim)
        given = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if path not in missing:
            raise UserError(f"{source} has {key!r}, which is not in the network's ResNet")
        if own[path].shape != given.shape:
            raise UserError(
                f"{source}: {key} is {_by(value.shape)}, but the network's {'/'.join(path[1:])} is "
                f"{_by(own[path].shape)}"
            )
        own[path] = jnp.array(given, jnp.float32)  # a copy, because training donates its memory
        missing.remove(path)
    if missing:
        names = sorted("/".join(path[1:]) for path in missing)
        raise UserError(f"{source} lacks {len(names)} arrays of ResNet: {', '.join(names[:4])}")
    filled = unflatten_dict(own)
    return variables | {kind: {**variables[kind], "trunk": filled[kind]} for kind in kinds}


def _place(key: str, axes: int) -> tuple[str, ...]:
    """Return the path of an array in a network's variables by torchvision's name of it."""
    name, _, leaf = key.rpartition(".")
    layer = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    if leaf in STATISTICS:
        return ("batch_stats", *layer, STATISTICS[leaf])
    if leaf == "weight":
        leaf = "kernel" if axes == 4 else "scale"
    return ("params", *layer, leaf)


def load(source: str) -> dict[str, dict[str, np.ndarray]]:
    """Load VGG-16's {"conv1_1": {"kernel": float32 HWIO, "bias": float32}, ...}, however named.

    It has fc6 and fc7 only if the file does, as convolutions of 7x7 and 1x1.

    Raises:
      UserError: as `fill`.
    """
    layers: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in CONVOLUTIONS}
    for key, value in _read(_locate(source), source).items():
        if key.startswith(CLASSIFIERS):
            continue
        name, _, leaf = key.replace("/", ".").rpartition(".")
        if name not in LAYERS or leaf not in (*LEAVES, "weight"):
            raise UserError(f"{source} has {key!r}, which is not a layer of VGG-16")
        if leaf == "weight":
            if value.ndim == 2:  # a matrix, of which each row of fc6 is (512, 7, 7)
                side = 7 if LAYERS[name] == "fc6" and value.shape[1] % 49 == 0 else 1
                value = value.reshape(len(value), -1, side, side)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
            leaf = "kernel"
        layers.setdefault(LAYERS[name], {})[leaf] = value.astype(np.float32)
    missing = [f"{x}/{leaf}" for x in layers for leaf in LEAVES if leaf not in layers[x]]
    if missing:
        raise UserError(f"{source} lacks {len(missing)} arrays of VGG-16: {', '.join(missing[:4])}")
    return layers


def _by(shape):
    return "x".join(map(str, shape))


def _read(path, source):
    """Return {key: array of floats} of a safetensors file."""
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = one_line(error)
        raise UserError(f"{source} cannot be read as a safetensors file: {reason}") from error
    arrays = {key: value for key, value in arrays.items() if not key.endswith(COUNTER)}
    for key, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{source}: {key!r} is {value.dtype}, expected floating point")
    return arrays


def _locate(source):
    """Return the path of a file, downloaded where the source is a name on the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) or path.suffix == ".safetensors":
        raise UserError(
            f"pretrained weights {source}: no such file, and not a name on the Hugging Face hub "
            "such as timm/vgg16.tv_in1k"
        )

    from huggingface_hub import hf_hub_download  # slow to import

    name, _, revision = source.partition("@")
    try:
        with waiting.reported(f"waiting for {FILE} of {name} on the Hugging Face hub"):
            return hf_hub_download(name, FILE, revision=revision or None)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"pretrained weights {source} cannot be downloaded: {reason}") from error
