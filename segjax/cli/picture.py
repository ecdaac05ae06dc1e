"""`segjax picture`: draw test images with the labels of each run."""

import argparse
from pathlib import Path

from segjax.cli import arguments
from segjax.cli.arguments import count
from segjax.errors import UserError

SUMMARY = "Draw test images, their truth and each run's labels"
DETAILS = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--results", required=True, type=Path, metavar="DIR", help="folder of finished runs")
    add("--output", required=True, type=Path, metavar="FILE.png")
    add("--count", type=count, default=4, metavar="N", help="images (default: 4)")
    add("--data-dir", metavar="DIR", help="where prepared datasets are kept, if elsewhere")
    arguments.add_crf(parser)


def run(options: argparse.Namespace) -> None:
    from segjax import predict

    crf = arguments.crf(options)
    workdirs = sorted(path.parent for path in options.results.rglob("result.json"))
    if not workdirs:
        raise UserError(f"{options.results}: no finished run below, expected a result.json")
    predict.save_comparison(workdirs, options.output, options.count, options.data_dir, crf)
    print(f"{len(workdirs)} runs drawn in {options.output}")
