"""`segjax benchmark`: measure speed, memory and size of architectures."""

import argparse
import sys
from pathlib import Path

from segjax.cli.arguments import count, path, refuse_ignored, size

SUMMARY = "Measure speed, memory and size of architectures"
DETAILS = (
    "Prints one row for each model, batch size and precision; rows already in --output are skipped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="model names (default: one of each kind)")
    add(
        "--options",
        nargs="+",
        default=(),
        metavar="[NAME.]OPTION=VALUE",
        help="an option of one model, or of all models that have it, such as width=16",
    )
    add(
        "--resolution",
        type=size,
        default=(360, 480),
        metavar="HxW",
        help="image size (default: 360x480)",
    )
    add(
        "--batch",
        nargs="+",
        type=count,
        default=(1, 4, 8, 16),
        help="batch sizes (default: 1 4 8 16)",
    )
    add(
        "--precision",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=("bfloat16", "float32"),
        help="floating-point types to compute in (default: both)",
    )
    add(
        "--against",
        nargs="+",
        choices=("torch", "torch.compile"),
        default=(),
        help="also time the same networks in PyTorch, eager or compiled, alternating with ours",
    )
    add(
        "--torch-python",
        metavar="PYTHON",
        help="Python interpreter with torch installed (default: this one)",
    )
    add(
        "--repeats", type=count, default=20, metavar="N", help="timed samples per row (default: 20)"
    )
    add("--seconds", type=count, metavar="S", help="start no more rows after this time")
    add("--output", type=path, metavar="FILE.jsonl", help="append the rows to this file")
    add("--format", default="markdown", choices=("markdown", "latex", "csv", "json"))


def run(options: argparse.Namespace) -> None:
    from segjax.benchmark import run, tables
    from segjax.report.table import draw

    if not options.against:
        refuse_ignored(options, "without --against", "torch_python")
    plan = run.Plan(
        models=tuple(options.models or run.NETWORKS),
        options=run.read_options(options.options),
        resolution=options.resolution,
        batches=tuple(sorted(set(options.batch))),
        precisions=tuple(dict.fromkeys(options.precision)),
        against=tuple(dict.fromkeys(options.against)),
        repeats=options.repeats,
        seconds=options.seconds,
        torch_python=options.torch_python or sys.executable,
    )
    run.check(plan)

    command, other = options.shell, options.torch_python
    if other:  # its path means nothing on another machine
        command = command.replace(other, Path(other).name)
    rows = run.run(plan, command, options.output)
    if rows:
        print(draw(tables.listing(rows), options.format))
