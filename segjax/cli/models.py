"""`segjax models`: print the table of architectures."""

import argparse

SUMMARY = "Set the architectures beside what is published of them"
DETAILS = "Parameters at 11 classes, output sizes, and receptive fields measured by gradient."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="only these (default: all, some minutes)")
    add("--format", default="markdown", choices=("markdown", "csv", "json"))


def run(options: argparse.Namespace) -> None:
    from segjax import models
    from segjax.models import summary
    from segjax.progress import Bar

    names, rows = options.models or list(models.MODELS), []
    with Bar("models", len(names)) as bar:
        for name in names:
            rows.append(summary.describe(name))
            bar.advance(len(rows))
    print(summary.render(rows, options.format))
