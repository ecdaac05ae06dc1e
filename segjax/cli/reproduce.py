"""`segjax reproduce`: train the grid of a published table and print it beside the published."""

import argparse
import os
from pathlib import Path

from segjax.cli.arguments import OVERRIDES, add_choice, add_machine
from segjax.errors import UserError

SUMMARY = "Train the grid of a published table and print it beside the published figures"
DETAILS = (
    "Prepares the dataset, then trains one seed of every network before second seeds, the cheapest "
    f"first. The same command resumes. {OVERRIDES}"
)

GRIDS = {"camvid": "camvid_table"}  # table -> the config file with its grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("table", choices=tuple(GRIDS))
    add(
        "--workdir",
        type=Path,
        help="its run directories are made below (default: runs/TABLE_SIZE)",
    )
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--size",
        default="full",
        choices=("full", "crops", "small", "smoke"),
        help="of the grid (default: full)",
    )
    grid.add_argument("--config", metavar="FILE[:ARG]", help="a config file with another grid")
    add("--source", metavar="DIR", help="the published folder of the dataset (default: download)")
    add_choice(parser)
    add_machine(parser)


def run(options: argparse.Namespace) -> int:
    from segjax import config, results
    from segjax.data import datasets
    from segjax.report import camvid_table
    from segjax.report.table import draw
    from segjax.results.summary import summarize
    from segjax.sweep import grids, local, work

    spec = options.config or _config_file(options.table, options.size)
    workdir = options.workdir or Path("runs", f"{options.table}_{options.size}")
    overrides = config.parse_overrides(options.rest)
    points = work.breadth_first(grids.asked(spec, overrides, options.seeds, options.only))

    data = points[0].config.data
    if data.dataset != options.table:
        raise UserError(f"{spec} trains on {data.dataset}, expected {options.table}")
    datasets.prepare(
        data.dataset,
        data_dir=data.data_dir or None,
        source=options.source,
        resolution=tuple(data.resolution),
    )
    jobs = local.default_jobs(options.jobs, os.environ)
    status = local.run(spec, points, workdir, jobs, time_limit=options.time_limit)

    files = [workdir / point.name / "result.json" for point in points]
    rows = results.read([file for file in files if file.is_file()])
    if rows:
        print(draw(camvid_table.camvid(summarize(rows))))
    return status


def _config_file(table: str, size: str) -> str:
    """Return the config of a table's grid, from this folder or the repository.

    Raises:
      UserError: it is in neither, as segjax was installed without its experiments.
    """
    import segjax

    path = Path("experiments", f"{GRIDS[table]}.py")
    for root in (Path(), Path(segjax.__file__).parents[1]):
        if (root / path).is_file():
            return str(root / path) + (f":{size}" if size != "full" else "")
    raise UserError(f"{path} is not here, expected the repository's folder, or --config")
