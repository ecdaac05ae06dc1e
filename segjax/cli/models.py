"""`segjax models`: print the table of architectures."""

import argparse

SUMMARY = "Print the table of architectures beside the published figures"
DETAILS = "Columns: parameters at 11 classes, output sizes, receptive fields measured by gradients."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        metavar="NAME",
        help="only these models (default: all, which takes minutes)",
    )
    add("--format", default="markdown", choices=("markdown", "csv", "json"))


def run(options: argparse.Namespace) -> None:
    from segjax import models
    from segjax.models import summary
    from segjax.system.progress import Bar

    names, rows = options.models or list(models.MODELS), []
    with Bar("models", len(names)) as bar:
        for name in names:
            rows.append(summary.describe(name))
            bar.advance(len(rows))
    print(summary.render(rows, options.format))
