"""Write a grid as a W&B sweep, whose server hands out the runs to agents on any machine.

A W&B grid is the product of its parameters, but ours is a list of runs. So the W&B sweep has one
parameter, `only`, whose values are the names of the runs. An agent starts
`segjax sweep ... --only NAME`, so run directories, names and configs are the same as without W&B:
a finished run ends at once, and a stopped one resumes.
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


def build_definition(
    spec: str,
    grid: Sequence[grids.Point],
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    workdir: Path,
) -> dict[str, Any]:
    """Return the definition from which `wandb sweep FILE` makes a sweep.

    Args:
      spec: the config file, as a path from the directory in which agents start.
      grid: the runs to hand out.
      overrides, seeds: the ones that the grid was loaded with, from which agents load it again.
      workdir: the sweep's directory, shared by all agents.
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


def unfinished_points(grid: Sequence[grids.Point], workdir: Path) -> list[grids.Point]:
    """Return the runs that have no result in the workdir.

    W&B hands out a run only once, so the runs of lost agents need a new W&B sweep.

    Raises:
      UserError: all runs are finished.
    """
    found = [point for point in grid if not (workdir / point.name / "result.json").exists()]
    if not found:
        raise UserError(f"all {len(grid)} runs are finished in {workdir}")
    return found


def render(content: Mapping[str, Any], shell: str) -> str:
    """Return a definition as YAML, headed by the command that made it."""
    shell = shell.replace("\n", "\n# ")
    return f"# Made by: {shell}\n" + yaml.safe_dump(content, sort_keys=False, width=math.inf)
