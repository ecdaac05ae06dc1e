"""Arguments that several commands share, and the kinds of values they take."""

import argparse
import re
from typing import Any, NoReturn

from segjax.errors import UserError

OVERRIDES = "Any field is overridden by --config.FIELD=VALUE, such as --config.seed=1."


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviated options."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a config file; ARG goes to its get_config, such as smoke",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose among the runs of a grid."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number,
        default=(),
        metavar="SEED",
        help="each point with each of these; a single number N: with the seeds 0 to N - 1",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only runs whose name matches, such as '*,seed=0'; may be repeated",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how the runs of a grid share a machine and its time."""
    parser.add_argument(
        "--jobs",
        type=jobs,
        metavar="N|gpus",
        help="runs at a time, each with its share of cores, GPUs and JAX_NUM_CPU_DEVICES; gpus: "
        "one for each GPU (default: 1; on Slurm as many as it gives)",
    )
    parser.add_argument(
        "--time-limit",
        type=seconds,
        metavar="TIME",
        help="in seconds or [D-]HH:MM:SS: then start nothing new, save what runs, and exit with "
        "status 75 where there is more to do; on Slurm, the limit of each job",
    )


def add_results(parser: argparse.ArgumentParser, images: int) -> None:
    """Add the arguments of reports that show result rows and predictions."""
    add = parser.add_argument
    add(
        *("--results",),
        required=True,
        nargs="+",
        metavar="PATH",
        help="run directories or .jsonl files",
    )
    add(
        "--count",
        type=count,
        default=images,
        metavar="N",
        help=f"test images to predict (default: {images})",
    )
    add("--no-predictions", action="store_true", help="predict no image")
    add("--data-dir", metavar="DIR", help="where prepared datasets are kept, if elsewhere")


def add_crf(parser: argparse.ArgumentParser) -> None:
    """Add --crf, which `crf` reads."""
    parser.add_argument(
        "--crf",
        nargs="?",
        const="v2",
        metavar="v1|v2|NUMBERS",
        help="refine the labels by a dense CRF (default: v2); five numbers with commas are "
        "pos_w,pos_std,bi_w,bi_xy,bi_rgb, in pixels and gray values",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add what refines the output of a network: --crf, --samples, --flip and --scales."""
    add_crf(parser)
    parser.add_argument(
        "--samples",
        type=count,
        metavar="T",
        help="Monte Carlo dropout: average T samples of a network with dropout",
    )
    parser.add_argument(
        "--flip", action="store_true", help="horizontal-flip test-time augmentation"
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=factor,
        metavar="S",
        help="multi-scale test-time augmentation, such as 0.75 1 1.25",
    )


def crf(options: argparse.Namespace) -> Any:
    """Return the parameters of the dense CRF that --crf asks for, or None."""
    if options.crf is None:
        return None
    from segjax.inference import crf

    return crf.parse(options.crf)


def views(options: argparse.Namespace) -> Any:
    """Return the test-time augmentation that --flip and --scales ask for, or None."""
    if not (options.flip or options.scales):
        return None
    from segjax.inference import tta

    return tta.Transforms(tuple(options.scales or (1.0,)), options.flip)


def number(text: str) -> int:
    """Read an integer >= 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, found {text!r}")
    return int(text)


def count(text: str) -> int:
    """Read an integer >= 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return int(text)


def jobs(text: str) -> int | str:
    """Read a count, or `gpus`."""
    return text if text == "gpus" else count(text)


def seconds(text: str) -> int:
    """Read a duration: seconds, HH:MM:SS or D-HH:MM:SS."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):)?(\d+)", text)
    days, hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0,) * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not total:
        raise argparse.ArgumentTypeError(
            f"expected seconds, HH:MM:SS or D-HH:MM:SS, more than none, found {text!r}"
        )
    return total


def factor(text: str) -> float:
    """Read a factor from 1/10 to 10."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 10:
        raise argparse.ArgumentTypeError(f"expected a factor from 0.1 to 10, found {text!r}")
    return found


def size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 96x128, found {text!r}")
    return int(sides[0]), int(sides[1])


def setting(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value
