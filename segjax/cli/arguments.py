"""What command lines are parsed with: mistakes in one line, and kinds of values."""

import argparse
from pathlib import Path
from typing import NoReturn

from segjax.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a config file; ARG goes to its get_config, such as smoke",
    )


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the runs of a grid, which `segjax.sweep.grids.asked` takes."""
    add_config(parser)
    parser.add_argument("--workdir", required=True, type=Path, help="its runs live below")
    add_choice(parser)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Adds those that choose among the runs of a grid."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number,
        default=(),
        metavar="SEED",
        help="each point with each of these; one number N: with the seeds 0 to N - 1",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="runs whose name fits, such as '*,seed=0'; may be given again",
    )


def number(text: str) -> int:
    """A number from 0 up."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, found {text!r}")
    return int(text)


def count(text: str) -> int:
    """A number from 1 up."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """K/N, such as 1/3."""
    found = text.split("/")
    if (
        len(found) != 2
        or not all(x.isdigit() for x in found)
        or not 1 <= int(found[0]) <= int(found[1])
    ):
        raise argparse.ArgumentTypeError(f"expected K/N such as 1/3, found {text!r}")
    return int(found[0]), int(found[1])


def factor(text: str) -> float:
    """A factor from 1/10 to 10."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 10:
        raise argparse.ArgumentTypeError(f"expected a factor from 0.1 to 10, found {text!r}")
    return found


def size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 96x128, found {text!r}")
    return int(sides[0]), int(sides[1])


def setting(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value
