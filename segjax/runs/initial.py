"""The variables that a run starts from: pretrained trunks, or the weights of another run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import UserError, warn
from segjax.models import flops, pretrained
from segjax.runs import hub, processes, weights
from segjax.runs.experiment import Experiment, load_variables, open_run, read_description
from segjax.training.steps import TrainState


def fill(run: Experiment, state: TrainState) -> TrainState:
    """Return the state of a new run, filled as `model.pretrained` or `model.init_from` asks for.

    Raises:
      UserError: as `pretrained.fill` and `start_from`.
    """
    model, variables = run.config.model, state.variables
    if model.pretrained:
        variables = pretrained.fill(variables, model.pretrained)
    elif model.init_from:
        variables = start_from(run, variables, model.init_from)
    else:
        return state
    ema = jax.tree.map(jnp.copy, variables) if state.ema else {}
    return dataclasses.replace(state, variables=variables, ema=ema)


def start_from(run: Experiment, variables: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the variables of a run with those of another in their places.

    Score layers, whose shapes depend on the number of classes, keep their initialization if the
    source has another number of classes or lacks them; those that only the source has are not used.
    A warning names both. Everything else must fit, running statistics included.

    Args:
      run: that starts.
      variables: as `init` gives them.
      source: a run directory, an exported folder, a .safetensors file, or `hf:user/name`.

    Raises:
      UserError: the source is none of these, or an array of it is missing, is not one of the
        network, or has another shape; names the first.
    """
    given = _read(run, source)
    own, classes = weights.flatten(variables), len(run.info.class_names)
    one_more = _shapes(run, classes + 1)
    scores = {name for name, x in own.items() if x.shape != one_more[name]}
    theirs = _classes(given, own, one_more, scores, classes)
    expected = _shapes(run, theirs)
    filled, kept = [], []
    for name, x in own.items():
        found = given.get(name)
        if found is None and name not in scores:
            raise UserError(f"{source} lacks {name}, which {run.config.model.name} has")
        if found is not None and found.shape != expected[name]:
            raise UserError(
                f"{source}: {name} is {weights.by(found.shape)}, expected "
                f"{weights.by(expected[name])} of {run.config.model.name}"
            )
        if found is None or (name in scores and theirs != classes):
            kept.append(name)
            found = x
        filled.append(jnp.array(found))  # a copy, because training donates its memory
    unused = sorted(given.keys() - own.keys())
    for name in unused:
        if given[name].shape[-1:] != (theirs,):
            raise UserError(f"{source} has {name}, which {run.config.model.name} lacks")
    if processes.is_first() and (kept or unused):
        said = [f"{_layers(kept)} keep their initialization"] if kept else []
        said += [f"{_layers(unused)} are not used"] if unused else []
        warn(f"starting from {source}: {', and '.join(said)}")
    return jax.tree.unflatten(jax.tree.structure(variables), filled)


def _read(run, source):
    """Return {path: float32} of a source, and warn if it saw images normalized differently."""
    path = hub.locate(source)
    if path.is_file():
        return weights.read(path)[0]
    if not (path / "config.json").is_file():
        raise UserError(
            f"config field 'model.init_from' is {source!r}, expected a run directory, an exported "
            "folder, a .safetensors file or hf:user/name"
        )
    config, _, _ = read_description(path)
    ours, theirs = run.config.data.normalization, config.data.normalization
    if ours != theirs and processes.is_first():
        warn(f"starting from {source}, whose data.normalization is {theirs}, this run's is {ours}")
    other, _ = open_run(path, None)
    variables, facts = load_variables(other, path, None)
    if facts["kind"] == "best" and not (path / weights.FILE).is_file() and processes.is_first():
        warn(f"{source} is not finished: starting from its best checkpoint, step {facts['steps']}")
    return {name: np.asarray(x) for name, x in weights.flatten(variables).items()}


def _shapes(run, num_classes):
    """Return {path: shape} of the run's network with another number of classes."""
    model = run.model.clone(num_classes=num_classes)
    shapes = flops.abstract(model, (*run.config.data.resolution, len(run.info.mean)))
    return {name: x.shape for name, x in weights.flatten(shapes).items()}


def _classes(given, own, one_more, scores, classes):
    """Return the number of classes of the source, by the first array whose shape tells it."""
    for name in sorted(scores & given.keys()):
        for n, more, found in zip(own[name].shape, one_more[name], given[name].shape, strict=False):
            if n not in (more, found):
                theirs, rest = divmod(found - n, more - n)
                return classes + theirs if not rest and classes + theirs > 0 else classes
    return classes


def _layers(names):
    """Return the layers of paths, without params/ and the names of their arrays."""
    return ", ".join(dict.fromkeys("/".join(name.split("/")[1:-1]) for name in names))
