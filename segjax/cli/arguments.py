"""Command-line arguments that several commands share, and the readers of their values."""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

from segjax.errors import UserError
from segjax.system.files import local_path

OVERRIDES = "--config.FIELD=VALUE overrides any field of the config, such as --config.seed=1."


class Parser(argparse.ArgumentParser):
    """An argparse parser with one-line errors, and no abbreviated or repeated options."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})
        self.register("action", None, _Once)
        self.register("action", "append", _Again)
        self._arguments: list[str] = []

    def parse_known_args(self, args=None, namespace=None):
        self._arguments = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # A mistyped option makes a required one missing.
        names = (x.partition("=")[0] for x in self._arguments if x.startswith("--"))
        for name in (x for x in names if x not in self.flags() and x[:9] != "--config."):
            close = difflib.get_close_matches(name, self.flags(), n=1, cutoff=0.75)
            message += f"; {name} is unknown, did you mean {close[0]}?" if close else ""
        raise UserError(f"{message}; see {self.prog} --help")

    def flags(self) -> list[str]:
        """Return the options of the command, such as --workdir."""
        return [flag for action in self._actions for flag in action.option_strings]


class _Once(argparse._StoreAction):
    """Store the value of an option, and its name in `given`; refuse to replace a value."""

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, values, option_string)
        if option_string:
            given = vars(namespace).setdefault("given", set())
            if self.dest in given:
                parser.error(f"{option_string} is given twice, expected once")
            given.add(self.dest)


class _Again(argparse._AppendAction):
    """Add the value of an option to its list, and its name to `given`."""

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, values, option_string)
        vars(namespace).setdefault("given", set()).add(self.dest)


def refuse_ignored(options: argparse.Namespace, why: str, *names: str) -> None:
    """Check that options that have no effect were not given.

    Raises:
      UserError: the first of them that was given, and why it does nothing.
    """
    for name in names:
        if name in getattr(options, "given", ()):
            raise UserError(f"--{name.replace('_', '-')} does nothing {why}")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a config file, such as experiments/segnet.py, whose get_config is called with ARG; "
        "or the config.json of a run",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add --seeds and --only, which select runs of a grid."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number,
        default=(),
        metavar="SEED",
        help="train each run of the grid with these seeds; a single N means seeds 0 to N - 1",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only runs whose name matches a pattern such as '*,seed=0'; may be repeated",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --jobs and --time-limit, which divide a machine and its time among runs."""
    parser.add_argument(
        "--jobs",
        type=jobs,
        metavar="N|gpus",
        help="number of runs at a time, each with its share of the GPUs and CPU cores; gpus: one "
        "run per GPU (default: 1; on Slurm, as many as the cluster gives)",
    )
    parser.add_argument(
        "--time-limit",
        type=seconds,
        metavar="TIME",
        help="seconds or [D-]HH:MM:SS, after which no run starts, running ones save, and the exit "
        "status is 75 if runs are unfinished; on Slurm, the time limit of each job",
    )


def add_results(parser: argparse.ArgumentParser, images: int) -> None:
    """Add the arguments of commands that draw result rows and predictions."""
    add = parser.add_argument
    add(
        "--results",
        required=True,
        nargs="+",
        type=path,
        metavar="PATH",
        help="run directories or .jsonl files",
    )
    add(
        "--count",
        type=count,
        default=images,
        metavar="N",
        help=f"number of test images to predict (default: {images})",
    )
    add("--no-predictions", action="store_true", help="leave out predictions")
    add_data_dir(parser)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add --data-dir, for trained runs whose datasets have moved."""
    parser.add_argument(
        "--data-dir",
        type=path,
        metavar="DIR",
        help="folder of the prepared datasets (default: as in training)",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, the `kind` of `load_variables`."""
    parser.add_argument(
        "--checkpoint",
        choices=("final", "best", "latest"),
        help="which weights (default: final if the run is finished, else best)",
    )


def add_crf(parser: argparse.ArgumentParser) -> None:
    """Add --crf, which `crf` reads."""
    parser.add_argument(
        "--crf",
        nargs="?",
        const="v2",
        metavar="v1|v2|NUMBERS",
        help="refine the labels with the dense CRF of DeepLab v1 or v2 (v2 if none is named), or "
        "with five numbers: pos_w,pos_std,bi_w,bi_xy,bi_rgb, in pixels and gray values",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add --crf, --samples, --flip and --scales, which refine the output of a network."""
    add_crf(parser)
    parser.add_argument(
        "--samples",
        type=count,
        metavar="T",
        help="Monte Carlo dropout: average the probabilities of T passes with dropout",
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


def add_window(parser: argparse.ArgumentParser) -> None:
    """Add --window and --overlap, for `windows.choose_fit`."""
    parser.add_argument(
        "--window",
        type=size,
        metavar="HxW",
        help="run the network on windows over an image at its own size, and average them by a "
        "Gaussian; memory is bounded, and one compilation serves images of all larger sizes",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="F",
        help="least share of a side that neighboring windows have in common (default: 0.5)",
    )


def crf(options: argparse.Namespace) -> Any:
    """Return the dense CRF parameters of --crf, or None without it."""
    if options.crf is None:
        return None
    from segjax.inference import crf

    return crf.parse(options.crf)


def augmentation(options: argparse.Namespace) -> Any:
    """Return the test-time augmentation of --flip and --scales, or None without them."""
    if not (options.flip or options.scales):
        return None
    from segjax.inference import tta

    return tta.Transforms(tuple(options.scales or (1.0,)), options.flip)


def path(text: str) -> Path:
    """Read a path on this machine."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(text: str) -> int:
    """Read an integer >= 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, found {text!r}")
    return int(text)


def count(text: str) -> int:
    """Read an integer >= 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, found {text!r}")
    return int(text)


def jobs(text: str) -> int | str:
    """Read an integer >= 1, or `gpus`."""
    return text if text == "gpus" else count(text)


def seconds(text: str) -> int:
    """Read a duration: seconds, HH:MM:SS or D-HH:MM:SS."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):)?(\d+)", text)
    days, hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0,) * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not total:
        raise argparse.ArgumentTypeError(
            f"expected a time > 0 in seconds, HH:MM:SS or D-HH:MM:SS, found {text!r}"
        )
    return total


def factor(text: str) -> float:
    """Read a scale factor from 0.1 to 10."""
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
