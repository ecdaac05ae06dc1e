"""`segjax report`: write results as one HTML page."""

import argparse

from segjax.cli.arguments import add_results, path, refuse_ignored

SUMMARY = "Write results as one HTML page: tables, figures, predictions, configs and provenance"
DETAILS = "The page is a single file that works offline."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_results(parser, images=3)
    parser.add_argument("--output", required=True, type=path, metavar="FILE.html")


def run(options: argparse.Namespace) -> None:
    from segjax.report import page

    if options.no_predictions:
        refuse_ignored(options, "with --no-predictions", "count", "data_dir")
    count = 0 if options.no_predictions else options.count
    rows = page.write(options.results, options.output, count=count, data_dir=options.data_dir)
    print(f"{rows} rows in {options.output}")
