"""`segjax figures`: draw the figures of results."""

import argparse
from pathlib import Path

from segjax.cli.arguments import add_results

SUMMARY = "Draw the figures of results"
DETAILS = "Bars of each class, learning curves, cost, confusion matrices; predictions as PNG."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_results(parser, images=4)
    add("--output", required=True, type=Path, metavar="DIR", help="where to write")
    add("--format", nargs="+", default=("svg",), choices=("svg", "png"))


def run(options: argparse.Namespace) -> None:
    from segjax.report import groups, predictions

    settings = groups.read_settings(options.results)
    files = predictions.draw(settings, options.output, options.format)
    if not options.no_predictions:
        pictures, missing = predictions.draw_predictions(
            settings, options.output, options.count, options.data_dir
        )
        files += pictures
        for line in missing:
            print(f"no predictions of {line}")
    print(f"{len(files)} figures in {options.output}")
