"""`segjax picture`: draw test images beside the predictions of each run."""

import argparse

from segjax.cli import arguments
from segjax.cli.arguments import count, path
from segjax.errors import UserError, listing, warn

SUMMARY = "Draw test images beside their true labels and the predictions of each run"
DETAILS = "Writes one PNG file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--results",
        required=True,
        type=path,
        metavar="DIR",
        help="folder with finished runs in or below it",
    )
    add("--output", required=True, type=path, metavar="FILE.png")
    add("--count", type=count, default=4, metavar="N", help="number of images (default: 4)")
    arguments.add_data_dir(parser)
    arguments.add_crf(parser)


def run(options: argparse.Namespace) -> None:
    from segjax import predict, results

    crf = arguments.crf(options)
    files = results.read_files([options.results])
    workdirs = [folder for file in files if (folder := results.run_directory(file))]
    if not workdirs:
        raise UserError(
            f"{options.results} has no finished run in or below it, expected a result.json "
            "beside a config.json"
        )
    if bare := [file for file in files if not results.run_directory(file)]:
        warn(f"not drawn, without a config.json: {listing(bare)}")
    predict.save_comparison(workdirs, options.output, options.count, options.data_dir, crf)
    print(f"{len(workdirs)} runs drawn in {options.output}")
