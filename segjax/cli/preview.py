"""`segjax preview`: draw the training images of a config."""

import argparse

from segjax.cli.arguments import OVERRIDES, add_config, count, path

SUMMARY = "Draw the training images, labels and weights of a config, plain and augmented"
DETAILS = OVERRIDES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--output", required=True, type=path, metavar="FILE.png")
    parser.add_argument(
        "--count", type=count, default=4, metavar="N", help="number of images (default: 4)"
    )


def run(options: argparse.Namespace) -> None:
    from segjax import config
    from segjax.data import pictures
    from segjax.runs import preview

    loaded = config.load(options.config, config.parse_overrides(options.rest))
    pictures.save(options.output, preview.preview(loaded, options.count))
    print(f"drawn in {options.output}")
