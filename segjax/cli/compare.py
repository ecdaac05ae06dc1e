"""`segjax compare`: tell whether one run is better than another."""

import argparse
from pathlib import Path

from segjax.cli.arguments import count, number

SUMMARY = "Tell how certain it is that one run is better than another"
DETAILS = "A paired bootstrap over the test images of two finished runs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("first", type=Path, help="a run directory, or the file of its result row")
    add("second", type=Path, help="likewise")
    add("--samples", type=count, default=10_000, help="of the bootstrap (default: 10000)")
    add("--seed", type=number, default=0, help="of the samples (default: 0)")


def run(options: argparse.Namespace) -> None:
    from segjax.results import bootstrap

    differences = bootstrap.compare(
        options.first, options.second, samples=options.samples, seed=options.seed
    )
    print(bootstrap.render(differences))
