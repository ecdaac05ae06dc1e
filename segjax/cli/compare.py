"""`segjax compare`: test whether one run is better than another."""

import argparse

from segjax.cli.arguments import count, number, path

SUMMARY = "Test whether one run is better than another"
DETAILS = "Prints the differences with intervals of a paired bootstrap over the test images."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("first", type=path, help="a finished run's directory, or the file of its result row")
    add("second", type=path, help="the same of the run to compare with")
    add(
        "--samples",
        type=count,
        default=10_000,
        metavar="N",
        help="bootstrap samples (default: 10000)",
    )
    add("--seed", type=number, default=0, help="seed of the bootstrap (default: 0)")


def run(options: argparse.Namespace) -> None:
    from segjax.results import bootstrap

    differences = bootstrap.compare(
        options.first, options.second, samples=options.samples, seed=options.seed
    )
    print(bootstrap.render(differences))
