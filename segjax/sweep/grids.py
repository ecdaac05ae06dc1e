"""Load a grid of runs from a config file: the overrides that its `sweep()` yields, times seeds.

Each set of overrides is a run with its own config and run directory, named by the overrides.
`segjax.sweep.local` trains the runs; `segjax.sweep.display` shows their progress.
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
from segjax.errors import UserError, listing
from segjax.runs import experiment


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # made of the overrides that distinguish it from the others
    overrides: dict[str, Any]
    config: ConfigDict


def load_points(spec: str, overrides: Mapping[str, Any], seeds: Sequence[int] = ()) -> list[Point]:
    """Load all runs of a config's grid.

    With W&B on and no group in the config, the runs are grouped by the experiment's name.

    Args:
      spec: the config file, FILE or FILE:ARG.
      overrides: overrides that all runs share.
      seeds: the seeds of each point; required if the config has no `sweep()`.

    Raises:
      UserError: there is no grid, it varies the seed though seeds are given, a point has an unknown
        field, value or name, or two runs have the same name.
    """
    found: dict[str, Point] = {}
    for own in _load_grid(spec, seeds):
        name = run_name(own)
        clash = sorted(set(own) & set(overrides))
        if clash:
            raise UserError(f"--config.{clash[0]} is given, but the grid of {spec} varies it")
        if name in found:
            raise UserError(f"two runs of the grid of {spec} are named {name}")

        own = {field: configs.plain(field, value) for field, value in own.items()}
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


def load_selection(
    spec: str, overrides: Mapping[str, Any], seeds: Sequence[int], patterns: Sequence[str]
) -> list[Point]:
    """Load the runs that `--seeds` and `--only` select; a single seed N means 0 to N - 1.

    Raises:
      UserError: as for `load_points` and `select_points`, or the seeds are none.
    """
    if list(seeds) == [0]:
        raise UserError("--seeds 0 selects no run, expected a number of seeds or a list of them")
    each = range(seeds[0]) if len(seeds) == 1 else seeds
    return select_points(load_points(spec, overrides, each), patterns)


def _load_grid(spec, seeds):
    module, argument = (None, None) if configs.is_of_run(spec) else configs.load_module(spec)
    if module is None or not hasattr(module, "sweep"):
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
    """Return overrides as a directory name: `loss.class_weights=none,seed=0`."""

    def shown(value):
        return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    text = ",".join(f"{field}={shown(value)}" for field, value in overrides.items())
    return re.sub(r"[^\w.=,+-]+", "-", text) or "default"


def select_points(grid: Sequence[Point], patterns: Sequence[str]) -> list[Point]:
    """Return the runs whose name matches a pattern such as `*,seed=0`; all if there is no pattern.

    Raises:
      UserError: a pattern matches no run.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(point.name, pattern) for point in grid):
            names = listing([point.name for point in grid], most=3)
            raise UserError(f"--only {pattern} matches none of the runs: {names}")
    return [
        point
        for point in grid
        if not patterns or any(fnmatch.fnmatchcase(point.name, pattern) for pattern in patterns)
    ]


def train_command(spec: str, point: Point, workdir: Path) -> list[str]:
    """Return the `segjax train` command of a run of the grid."""
    return [
        *("segjax", "train", "--config", spec),
        *("--workdir", str(workdir / point.name), "--name", point.name),
        *(f"--config.{field}={value}" for field, value in point.overrides.items()),
    ]
