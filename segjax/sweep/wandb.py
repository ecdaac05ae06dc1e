"""A grid as a W&B sweep: its server hands out the runs, agents on any machine train them.

W&B's grid is the product of its parameters, and ours is a list of runs, so the sweep has one
parameter, `only`, whose values are the names of the runs. What an agent starts is
`segjax sweep ... --only NAME`, so workdirs, names and configs are those of a sweep without W&B, a
run that is finished ends at once, and one that is half-done goes on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segjax import config as configs
from segjax.errors import UserError
from segjax.sweep import grids

_PARAMETER = "only"


def definition(
    spec: str,
    grid: Sequence[grids.Point],
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    workdir: Path,
) -> dict[str, Any]:
    """Return the definition from which `wandb sweep FILE` makes a sweep.

    Args:
      spec: the config file, found from where the agents are started.
      grid: the runs that are part of it.
      overrides, seeds: those that the grid was made with, for the agents to make it again.
      workdir: where the agents write, the same for all.
    """
    config = grid[0].config
    given = ["--seeds", *map(str, seeds)] if seeds else []
    return {
        "name": configs.experiment_name(spec),
        "description": f"the grid of {spec}, in {workdir}",
        "project": config.wandb.project,
        "method": "grid",
        "metric": {"name": f"val/{config.best_metric}", "goal": "maximize"},
        "parameters": {_PARAMETER: {"values": [point.name for point in grid]}},
        "command": [
            *("segjax", "sweep", "--config", spec, "--workdir", str(workdir), *given),
            *(f"--config.{field}={value}" for field, value in overrides.items()),
            "${args_no_equals}",  # --only NAME
        ],
    }


def unfinished(grid: Sequence[grids.Point], workdir: Path) -> list[grids.Point]:
    """The runs without a result, as far as the workdir can be seen from here.

    W&B hands out a run once, so those of lost agents are for another sweep.

    Raises:
      UserError: all have one.
    """
    found = [point for point in grid if not (workdir / point.name / "result.json").exists()]
    if not found:
        raise UserError(f"all {len(grid)} runs are finished in {workdir}")
    return found


def render(content: Mapping[str, Any], shell: str) -> str:
    """A definition as a file, headed by the command that made it."""
    return f"# Made by: {shell}\n" + yaml.safe_dump(content, sort_keys=False, width=math.inf)
