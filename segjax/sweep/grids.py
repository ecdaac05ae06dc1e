"""A grid of runs: `sweep()` of a config file, times seeds.

`sweep()` yields dicts of overrides. Each is a run with a config and a folder of its own, named by
its overrides. `segjax.sweep.local` trains them, `segjax.sweep.display` shows how far they are.
"""

import dataclasses
import fnmatch
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segjax import config as configs
from segjax.errors import UserError
from segjax.runs import experiment

_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # made of the overrides that tell it from the others
    overrides: dict[str, Any]
    config: ConfigDict


def points(spec: str, overrides: Mapping[str, Any], seeds: Sequence[int] = ()) -> list[Point]:
    """The runs of a config's grid, each with `overrides` besides its own, and with each seed.

    Where W&B is on and the config names no group, the runs are grouped by the experiment's name. A
    config without a grid has one run for each seed.

    Raises:
      UserError: there is no grid, it varies the seed though seeds are given, a point has a field,
        value or name that no run takes, or two have one name.
    """
    found: dict[str, Point] = {}
    for own in _grid(spec, seeds):
        name = run_name(own)
        clash = sorted(set(own) & set(overrides))
        if clash:
            raise UserError(f"--config.{clash[0]} is given, but the grid of {spec} varies it")
        if name in found:
            raise UserError(f"two runs of the grid of {spec} are {name}")
        both = {**overrides, **own}
        config = configs.load(spec, both)
        if config.wandb.mode != "disabled" and not config.wandb.group:
            group = {"wandb.group": configs.experiment_name(spec)}
            configs.override(config, group)
            both = {**group, **both}
        experiment.check_names(config)
        found[name] = Point(name, both, config)
    if not found:
        raise UserError(f"the grid of {spec} is empty")
    return list(found.values())


def asked(
    spec: str, overrides: Mapping[str, Any], seeds: Sequence[int], patterns: Sequence[str]
) -> list[Point]:
    """The runs that a command line names: one seed N is the seeds 0 to N - 1.

    Raises:
      UserError: as `points` and `select`, or no seed is asked for.
    """
    if list(seeds) == [0]:
        raise UserError("--seeds 0 asks for no run, expected how many or which")
    each = range(seeds[0]) if len(seeds) == 1 else seeds
    return select(points(spec, overrides, each), patterns)


def _grid(spec, seeds):
    module, argument = configs.load_module(spec)
    if not hasattr(module, "sweep"):
        if not seeds:
            raise UserError(f"config file {spec} has no sweep(), and no --seeds are given")
        return [{"seed": seed} for seed in seeds]
    try:
        # A grid that depends on the config's ARG takes it as get_config does.
        takes = argument and inspect.signature(module.sweep).parameters
        grid = [dict(own) for own in (module.sweep(argument) if takes else module.sweep())]
    except Exception as error:
        raise UserError(f"sweep() of {spec}: {type(error).__name__}: {error}") from error
    if not seeds:
        return grid
    if any("seed" in own for own in grid):
        raise UserError(f"--seeds is given, but the grid of {spec} varies the seed")
    return [{**own, "seed": seed} for own in grid for seed in seeds]


def run_name(overrides: Mapping[str, Any]) -> str:
    """Overrides as a folder's name: `loss.class_weights=none,seed=0`."""

    def shown(value):
        return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    text = ",".join(f"{field}={shown(value)}" for field, value in overrides.items())
    return re.sub(r"[^\w.=,+-]+", "-", text) or "default"


def select(grid: Sequence[Point], patterns: Sequence[str]) -> list[Point]:
    """The runs whose name fits one of the patterns, such as `*,seed=0`; all, if there is none.

    Raises:
      UserError: no run fits one of them.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(point.name, pattern) for point in grid):
            names = ", ".join(point.name for point in grid[:_SHOWN])
            more = f" and {len(grid) - _SHOWN} more" if len(grid) > _SHOWN else ""
            raise UserError(f"--only {pattern} fits none of the runs: {names}{more}")
    return [
        point
        for point in grid
        if not patterns or any(fnmatch.fnmatchcase(point.name, pattern) for pattern in patterns)
    ]


def command(spec: str, point: Point, workdir: Path) -> list[str]:
    """The command that trains a run of the grid."""
    return [
        *("segjax", "train", "--config", spec),
        *("--workdir", str(workdir / point.name), "--name", point.name),
        *(f"--config.{field}={value}" for field, value in point.overrides.items()),
    ]
