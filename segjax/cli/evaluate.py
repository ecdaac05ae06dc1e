"""`segjax evaluate`: evaluate trained runs on a split."""

import argparse

from segjax.cli import arguments
from segjax.cli.arguments import count, path

SUMMARY = "Evaluate a trained run on a split of its dataset"
DETAILS = "Several runs are evaluated as an ensemble, by the mean of their probabilities."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        action="append",
        type=path,
        help="the run directory, or hf:user/name; repeat it for an ensemble",
    )
    add("--split", default="test", help="train, val or test (default: test)")
    arguments.add_checkpoint(parser)
    add("--limit", type=count, metavar="N", help="evaluate only the first N images")
    arguments.add_data_dir(parser)
    add(
        "--native",
        action="store_true",
        help="score on the labels at their own sizes, not resized: the output of the network at "
        "the training resolution is resized to each label",
    )
    arguments.add_window(parser)
    add(
        "--calibration",
        action="store_true",
        help="also measure the expected calibration error, in 15 bins of confidence",
    )
    arguments.add_inference(parser)


def run(options: argparse.Namespace) -> None:
    from segjax import evaluate, results
    from segjax.inference import windows
    from segjax.report import tables
    from segjax.results.counts import write_counts
    from segjax.results.summary import summarize
    from segjax.runs import compilation_cache

    compilation_cache.enable()
    fit = windows.choose_fit(native=options.native, window=options.window, overlap=options.overlap)
    path, row, counts = evaluate.evaluate_workdirs(
        options.workdir,
        options.split,
        kind=options.checkpoint,
        limit=options.limit,
        data_dir=options.data_dir,
        crf=arguments.crf(options),
        samples=options.samples,
        transforms=arguments.augmentation(options),
        native=options.native,
        window=fit if isinstance(fit, windows.Windows) else None,
        calibration=options.calibration,
    )
    write_counts(path, counts)
    results.write_row(path, row)
    print(tables.render(summarize([row])))
    print(f"written to {path}")
