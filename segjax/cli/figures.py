"""`segjax figures`: draw result rows as figures."""

import argparse

from segjax.cli.arguments import add_results, path, refuse_ignored

SUMMARY = "Draw figures of results"
DETAILS = (
    "Per-class bars, learning curves, mIoU against the numbers that a grid varies, cost and "
    "confusion matrices; predictions are PNG files."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_results(parser, images=4)
    add("--output", required=True, type=path, metavar="DIR", help="folder for the figures")
    add(
        "--format",
        nargs="+",
        default=("svg",),
        choices=("svg", "png"),
        help="file formats (default: svg)",
    )


def run(options: argparse.Namespace) -> None:
    from segjax.report import groups, predictions

    if options.no_predictions:
        refuse_ignored(options, "with --no-predictions", "count", "data_dir")
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
