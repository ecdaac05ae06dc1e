"""`segjax reproduce`: train the networks of a published table and print ours beside it."""

import argparse
from pathlib import Path

from segjax.cli.arguments import OVERRIDES, add_choice, add_machine, path
from segjax.errors import UserError

SUMMARY = "Train the networks of a published table and print our rows beside the published ones"
DETAILS = (
    "Prepares the dataset, then trains one seed of every network, the cheapest first, then the "
    f"second seeds, and so on. The same command resumes. {OVERRIDES}"
)

GRIDS = {"camvid": "camvid_table"}  # table: config file with its grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("table", choices=tuple(GRIDS), help="the published table")
    add(
        "--workdir",
        type=path,
        help="folder for the run directories (default: runs/TABLE_SIZE)",
    )
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--size",
        default="full",
        choices=("full", "crops", "short", "small", "smoke"),
        help="full (default): 360x480, on an accelerator; crops: trained on crops, hours per run "
        "on a CPU; short: a third of that; small: 96x128, on a CPU; smoke: a quick test",
    )
    grid.add_argument(
        "--config", metavar="FILE[:ARG]", help="a config file with another grid, instead of --size"
    )
    add(
        "--source",
        type=path,
        metavar="DIR",
        help="folder of the published dataset (default: download it)",
    )
    add_choice(parser)
    add_machine(parser)


def run(options: argparse.Namespace) -> int:
    from segjax import config, results
    from segjax.data import datasets
    from segjax.report import camvid_table
    from segjax.report.table import draw
    from segjax.results.summary import summarize
    from segjax.sweep import costs, grids, local

    spec = options.config or _config_file(options.table, options.size)
    workdir = options.workdir or Path("runs", f"{options.table}_{options.size}")
    overrides = config.parse_overrides(options.rest)
    points = costs.breadth_first(grids.load_selection(spec, overrides, options.seeds, options.only))

    splits = {point.config.test_split for point in points}
    if splits != {"test"}:
        raise UserError(
            f"{spec} has test_split {', '.join(sorted(splits))}, expected test, the images of the "
            "published scores"
        )
    data = points[0].config.data
    if data.dataset != options.table:
        raise UserError(f"{spec} trains on {data.dataset}, expected {options.table}")
    datasets.prepare(
        data.dataset,
        data_dir=data.data_dir or None,
        source=options.source,
        resolution=tuple(data.resolution),
    )
    status = local.run(spec, points, workdir, options.jobs, time_limit=options.time_limit)

    files = [workdir / point.name / "result.json" for point in points]
    rows = results.read([file for file in files if file.is_file()])
    if rows:
        print(draw(camvid_table.camvid(summarize(rows))))
    return status


def _config_file(table: str, size: str) -> str:
    """Return the config file with a table's grid, from the current directory or the repository.

    Raises:
      UserError: neither has it, because segjax was installed without its experiments.
    """
    import segjax

    path = Path("experiments", f"{GRIDS[table]}.py")
    for root in (Path(), Path(segjax.__file__).parents[1]):
        if (root / path).is_file():
            return str(root / path) + (f":{size}" if size != "full" else "")
    raise UserError(f"{path} not found, expected the repository as current directory, or --config")
