"""`segjax floors`: score baselines that see no image, and ceilings of coarse label maps."""

import argparse
from pathlib import Path

from segjax.cli.arguments import size

SUMMARY = "Score baselines that see no image, and ceilings of the truth at coarse strides"
DETAILS = "All of one class; the most frequent class at each pixel; majority votes of the truth."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="camvid", help="camvid, isbi2012 or streetscenes")
    add("--split", default="test", help="train, val or test (default: test)")
    add("--data-dir", metavar="DIR", help="where prepared datasets are kept")
    add("--resolution", type=size, metavar="HxW", help="of the images")
    add("--output", type=Path, metavar="FILE.jsonl", help="append the rows to it")


def run(options: argparse.Namespace) -> None:
    from segjax import results
    from segjax.inference import baselines
    from segjax.report import tables
    from segjax.results.summary import summarize

    rows = baselines.rows(
        options.dataset, options.split, options.data_dir, options.resolution, options.shell
    )
    print(tables.render(summarize(rows)))
    if options.output:
        for row in rows:
            results.append(options.output, row)
