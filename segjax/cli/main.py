"""`segjax <command>`: the one entry point.

Nothing heavy is imported before a command needs it, so that --help answers at once.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import segjax
from segjax.cli import commands
from segjax.cli.arguments import (
    Parser,
    add_choice,
    add_config,
    add_grid,
    count,
    factor,
    number,
    part,
    size,
)
from segjax.errors import UserError, line
from segjax.ops.onednn import build
from segjax.sweep import slurm_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 2 for what the user can put right."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and not hasattr(options, "config"):
            raise UserError(f"unknown argument {rest[0]!r}; see segjax {options.command} --help")
        options.rest = rest
        options.shell = shlex.join(["segjax", *arguments])
        return options.run(options) or 0
    except (
        UserError,
        OSError,
    ) as error:  # the latter: of a full disk
        print(f"segjax: {line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segjax: interrupted", file=sys.stderr)
        return 130


class _Version(argparse.Action):
    """Print the versions of segjax and JAX, and what convolutions on a CPU are computed by."""

    def __call__(self, *_: Any) -> NoReturn:
        jax = metadata.version("jax")
        engine = build.describe()
        print(f"segjax {segjax.__version__}\njax {jax}\nconvolutions on a CPU: {engine}")
        raise SystemExit


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="segjax",
        description="Architecture ablations in semantic segmentation, in JAX and Flax.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, summary, details=""):
        sub = subparsers.add_parser(name, help=summary, description=f"{summary}. {details}")
        sub.set_defaults(run=run)
        return sub

    def refined(sub):
        sub.add_argument(
            "--crf",
            nargs="?",
            const="v2",
            metavar="v1|v2|NUMBERS",
            help="refine the labels by a dense CRF (default: v2); five numbers with commas are "
            "pos_w,pos_std,bi_w,bi_xy,bi_rgb, in pixels and grey values",
        )

    def sampled(sub):
        sub.add_argument(
            "--samples",
            type=count,
            metavar="T",
            help="average T samples of a network with dropout, units dropped as in training",
        )

    def viewed(sub):
        sub.add_argument(
            "--flip", action="store_true", help="average what is said of each image and its mirror"
        )
        sub.add_argument(
            "--scales",
            nargs="+",
            type=factor,
            metavar="S",
            help="average what is said of each image resized by these, such as 0.75 1 1.25",
        )

    override_help = "Any field is overridden by --config.FIELD=VALUE, such as --config.seed=1."

    data = command(
        "data", commands.data, "Prepare a data set", "Done once; a prepared one is left alone."
    )
    data.add_argument("name", help="camvid, isbi2012 or streetscenes")
    data.add_argument("--source", metavar="DIR", help="the published folder (none: download it)")
    data.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie")
    data.add_argument(
        "--resolution", type=size, metavar="HxW", help="the size streetscenes are drawn at"
    )

    data.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet of it")

    train = command(
        "train", commands.train, "Train and test one run, or go on with it", override_help
    )
    add_config(train)
    train.add_argument("--workdir", required=True, type=Path, help="where the run lives")
    train.add_argument("--name", help="of the run (default: the config's name)")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="one process of several, as on a slice of TPU VMs; under Slurm, and from "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, known without it",
    )

    evaluate = command("evaluate", commands.evaluate, "Score a trained run on a split")
    evaluate.add_argument(
        "--workdir",
        required=True,
        action="append",
        type=Path,
        help="of the run; given again, the mean probabilities of all of them are scored",
    )
    evaluate.add_argument("--split", default="test", help="train, val or test (default: test)")
    evaluate.add_argument(
        "--checkpoint",
        choices=("final", "best", "latest"),
        help="default: final where the run is finished, else best",
    )
    evaluate.add_argument("--limit", type=count, metavar="N", help="only the first N images")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")
    refined(evaluate)
    sampled(evaluate)
    viewed(evaluate)

    predict = command(
        "predict", commands.predict, "Write label maps and overlays for images of any size"
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders")
    predict.add_argument("--workdir", required=True, type=Path, help="of the run")
    predict.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    predict.add_argument(
        "--native",
        action="store_true",
        help="feed images at their own size, not resized to the height of training",
    )
    refined(predict)
    sampled(predict)
    viewed(predict)

    sweep = command(
        "sweep",
        commands.sweep,
        "Run the grid of a config",
        f"Runs that are finished are skipped and failed ones tried again, so it may be killed and "
        f"started again. {override_help}",
    )
    add_grid(sweep)
    sweep.add_argument(
        "--jobs",
        type=count,
        metavar="N",
        help="runs at a time, on one machine each with its part of the cores, GPUs and "
        "JAX_NUM_CPU_DEVICES (default: 1; on Slurm as many as it gives)",
    )
    sweep.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where: on this machine (default), or submitted to Slurm as one job array",
    )
    instead = sweep.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="print the runs, their parameters, multiply-adds of training and status, and the "
        "script for Slurm, and stop",
    )
    instead.add_argument("--commands", action="store_true", help="print their commands and stop")
    instead.add_argument("--status", action="store_true", help="print how far they are and stop")
    slurm_script.add_arguments(sweep)

    reproduce = command(
        "reproduce",
        commands.reproduce,
        "Do the grid of a published table piece by piece, each within a budget",
        f"One seed of every network comes before second ones, and what is begun before what is "
        f"not. It saves before the time is over, and the same command goes on; exit status 75 "
        f"where there is more to do. {override_help}",
    )
    reproduce.add_argument("table", choices=("camvid",))
    reproduce.add_argument(
        "--budget",
        required=True,
        type=count,
        metavar="SECONDS",
        help="nothing runs when it is over",
    )
    reproduce.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="its runs live below; results.jsonl has their rows",
    )
    which = reproduce.add_mutually_exclusive_group()
    which.add_argument(
        "--size", choices=("full", "small", "smoke"), help="of the grid (default: full)"
    )
    which.add_argument("--config", metavar="FILE[:ARG]", help="a config file with another grid")
    reproduce.add_argument(
        "--source",
        metavar="DIR",
        help="the published folder, to prepare the data set from where it is not yet",
    )
    reproduce.add_argument(
        "--part",
        type=part,
        default=(1, 1),
        metavar="K/N",
        help="the K-th of N parts of the grid, for several machines",
    )
    add_choice(reproduce)
    reproduce.add_argument(
        "--whole",
        action="store_true",
        help="begin no run that will not end in time, where the folder will not be kept",
    )
    reproduce.add_argument("--retry", action="store_true", help="try again what has failed twice")

    table = command(
        "table",
        commands.table,
        "Render result rows as a table, mean and sd over seeds, or beside published figures",
        "camvid: the published methods; table1, table3, cost: Tables 1, 3 and 6 of the SegNet "
        "paper; benchmark: the rows of `segjax benchmark`; without a name: the rows alone.",
    )
    table.add_argument(
        "name", nargs="?", choices=("camvid", "table1", "table3", "cost", "benchmark")
    )
    table.add_argument("--results", nargs="+", metavar="PATH", help="workdirs or .jsonl files")
    table.add_argument("--format", default="markdown", choices=("markdown", "latex", "csv", "json"))
    table.add_argument(
        "--per-class", choices=("iou", "accuracy"), help="default: iou; accuracy for camvid"
    )
    table.add_argument("--split", help="only rows of this split (published tables: test)")
    table.add_argument(
        "--interval",
        action="store_true",
        help="the 95%% interval of the mean over the seeds (Student's t) in place of the sd",
    )
    table.add_argument("--sort", metavar="HEADING", help="sort by this column, numbers downwards")
    table.add_argument(
        "--columns", nargs="+", metavar="HEADING", help="only these, beside those that name a line"
    )
    table.add_argument(
        "--groups", nargs="+", metavar="GROUP", help="of published methods, for camvid"
    )

    compare = command(
        "compare",
        commands.compare,
        "Tell how sure it is that one run is better than another",
        "A paired bootstrap over the test images of two finished runs.",
    )
    compare.add_argument("first", type=Path, help="the workdir of a run, or the file of its row")
    compare.add_argument("second", type=Path, help="likewise")
    compare.add_argument("--samples", type=count, default=10_000, help="(default: 10000)")
    compare.add_argument("--seed", type=number, default=0, help="of the draw (default: 0)")

    picture = command(
        "picture", commands.picture, "Draw test images, their truth and each run's labels"
    )
    picture.add_argument("--results", required=True, type=Path, metavar="DIR", help="of the runs")
    picture.add_argument("--output", required=True, type=Path, metavar="FILE.png")
    picture.add_argument("--count", type=count, default=4, metavar="N", help="images (default: 4)")
    picture.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")
    refined(picture)

    def reported(sub, images):
        sub.add_argument(
            "--results", required=True, nargs="+", metavar="PATH", help="workdirs or .jsonl files"
        )
        sub.add_argument(
            "--count",
            type=count,
            default=images,
            metavar="N",
            help=f"test images to predict (default: {images})",
        )
        sub.add_argument("--no-predictions", action="store_true", help="ask no network")
        sub.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")

    figures = command(
        "figures",
        commands.figures,
        "Draw the figures of results",
        "Bars of each class, learning curves, cost, confusion matrices; and as PNG what is "
        "predicted.",
    )
    reported(figures, 4)
    figures.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    figures.add_argument("--format", nargs="+", default=("svg",), choices=("svg", "png"))

    report = command(
        "report",
        commands.report,
        "Write results as one page: tables, figures, predictions, configs and provenance",
        "It needs no network and no other file.",
    )
    reported(report, 3)
    report.add_argument("--output", required=True, type=Path, metavar="FILE.html")

    preview = command(
        "preview",
        commands.preview,
        "Draw what a config trains on: images, labels and weights, plain and augmented",
        override_help,
    )
    add_config(preview)
    preview.add_argument("--output", required=True, type=Path, metavar="FILE.png")
    preview.add_argument("--count", type=count, default=4, metavar="N", help="images (default: 4)")

    architectures = command(
        "models",
        commands.models,
        "Set the architectures beside what is published of them",
        "Parameters at 11 classes, sizes of output, and receptive fields measured by gradient.",
    )
    architectures.add_argument(
        "--models", nargs="+", metavar="NAME", help="only these (default: all, some minutes)"
    )
    architectures.add_argument("--format", default="markdown", choices=("markdown", "csv", "json"))

    benchmark = command(
        "benchmark",
        commands.benchmark,
        "Measure time, memory and size of architectures",
        "Each network at each batch and precision is one row; what the output has is not measured "
        "again.",
    )
    benchmark.add_argument("--models", nargs="+", metavar="NAME", help="(default: one of each)")
    benchmark.add_argument(
        "--options",
        nargs="+",
        default=(),
        metavar="[NAME.]OPTION=VALUE",
        help="of one model, or of all that have it, such as width=16",
    )
    benchmark.add_argument(
        "--resolution", type=size, default=(360, 480), metavar="HxW", help="(default: 360x480)"
    )
    benchmark.add_argument(
        "--batch", nargs="+", type=count, default=(1, 4, 8, 16), help="images (default: 1 4 8 16)"
    )
    benchmark.add_argument(
        "--precision",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=("bfloat16", "float32"),
        help="of the computation (default: both)",
    )
    benchmark.add_argument(
        "--against",
        nargs="+",
        choices=("torch", "torch.compile"),
        default=(),
        help="time PyTorch's, eager or compiled, in turn with ours",
    )
    benchmark.add_argument(
        "--torch-python", metavar="PYTHON", help="one that has torch (default: this one)"
    )
    benchmark.add_argument(
        "--repeats", type=count, default=20, metavar="N", help="samples of each (default: 20)"
    )
    benchmark.add_argument(
        "--seconds", type=count, metavar="S", help="begin no other row after this time"
    )
    benchmark.add_argument("--output", type=Path, metavar="FILE.jsonl", help="add the rows to it")
    benchmark.add_argument(
        "--format", default="markdown", choices=("markdown", "latex", "csv", "json")
    )

    floors = command(
        "floors",
        commands.floors,
        "Score guesses that see no image, and ceilings of the truth at coarse strides",
        "All of one class; the most frequent class at each pixel; majority votes of the truth.",
    )
    floors.add_argument("--dataset", default="camvid", help="camvid, isbi2012 or streetscenes")
    floors.add_argument("--split", default="test", help="train, val or test (default: test)")
    floors.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie")
    floors.add_argument("--resolution", type=size, metavar="HxW", help="of the images")
    floors.add_argument("--output", type=Path, metavar="FILE.jsonl", help="add the rows to a file")
    return parser
