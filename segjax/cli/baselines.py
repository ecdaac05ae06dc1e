"""`segjax baselines`: evaluate baselines without an image, and upper bounds of coarse labels."""

import argparse

from segjax.cli.arguments import path, size
from segjax.errors import UserError

SUMMARY = "Evaluate baselines that see no image, and the best scores that coarse labels allow"
DETAILS = (
    "Baselines: one class everywhere; the most frequent class at each pixel. Best scores: the "
    "true labels, reduced to coarse strides by majority vote."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="camvid", help="as data.dataset in a config")
    add("--folder", type=path, metavar="DIR", help="images and masks of dataset folder")
    add("--split", default="test", help="train, val or test (default: test)")
    add("--data-dir", type=path, metavar="DIR", help="folder of the prepared datasets")
    add("--resolution", type=size, metavar="HxW", help="size of the images")
    add("--output", type=path, metavar="FILE.jsonl", help="append the rows to this file")


def run(options: argparse.Namespace) -> None:
    from segjax import results
    from segjax.inference import baselines
    from segjax.report import tables
    from segjax.results.summary import summarize

    if (options.dataset == "folder") != (options.folder is not None):
        raise UserError("--dataset folder and --folder DIR belong together")
    rows = baselines.rows(
        options.dataset,
        options.split,
        options.data_dir,
        options.resolution,
        options.shell,
        folder=options.folder,
    )
    print(tables.render(summarize(rows)))
    if options.output:
        for row in rows:
            results.append(options.output, row)
