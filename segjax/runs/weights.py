"""Weights as safetensors files: float32 arrays by their paths, such as params/conv1_1/conv/kernel.

`segjax export` writes them into a folder beside the config.json of the run, and its result.json if
it is finished; such a folder can be opened wherever a run directory can.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from segjax.errors import UserError, one_line
from segjax.system.files import write_whole

FILE = "model.safetensors"  # of an exported folder


def flatten(variables: Any) -> dict[str, Any]:
    """Return {"params/conv1_1/conv/kernel": array} of the variables of a network, or any tree."""
    leaves = jax.tree.leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def write(path: Path, variables: Any, facts: dict[str, Any]) -> None:
    """Write variables as float32 and, in the metadata, the facts of their checkpoint."""
    arrays = {name: np.asarray(x, np.float32) for name, x in flatten(variables).items()}
    write_whole(path, save(arrays, metadata={"format": "segjax", "facts": json.dumps(facts)}))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Read a file; return {path: float32} and the facts of the checkpoint, None without any.

    Raises:
      UserError: the file is missing, damaged, not of floats, or not a safetensors file.
    """
    try:
        arrays = load_file(path)
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path} cannot be read as a safetensors file: {reason}") from error
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"{path}: {name} is {x.dtype}, expected floating point")
    return {name: x.astype(np.float32) for name, x in arrays.items()}, facts


def restore(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read an exported file; return variables with the structure of `like`, and their facts.

    Raises:
      UserError: as `read`; or the file was not exported, or its arrays are not those of `like`.
    """
    arrays, facts = read(path)
    if facts is None:
        raise UserError(f"{path} has no facts of a training, expected a file of segjax export")
    expected = {name: x.shape for name, x in flatten(like).items()}
    for name in sorted(expected.keys() | arrays.keys()):
        found = by(arrays[name].shape) if name in arrays else "missing"
        wanted = by(expected[name]) if name in expected else "no such array"
        if found != wanted:
            raise UserError(f"{path}: {name} is {found}, expected {wanted}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected]), facts


def by(shape: tuple[int, ...]) -> str:
    """Return a shape as text: 3x3x64x64."""
    return "x".join(map(str, shape))
