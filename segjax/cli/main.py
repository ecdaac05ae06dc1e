"""`segjax COMMAND`: parse the command line and run the command.

A command is a module of this folder with SUMMARY, DETAILS, `add_arguments(parser)` and
`run(options)`, which returns the exit status, or None for 0. Commands import heavy modules inside
`run`, so that --help is instant.
"""

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

import segjax
from segjax.cli.arguments import Parser
from segjax.errors import UserError, line
from segjax.ops.onednn import build

COMMANDS = (
    *("data", "train", "evaluate", "predict", "sweep", "reproduce"),
    *("table", "compare", "picture", "figures", "report"),
    *("preview", "models", "benchmark", "floors"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 means an error that the user can correct."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options, rest = parser().parse_known_args(arguments)
        if rest and not hasattr(options, "config"):
            raise UserError(f"unknown argument {rest[0]!r}; see segjax {options.command} --help")
        options.rest = rest
        options.shell = shlex.join(["segjax", *arguments])
        return options.run(options) or 0
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"segjax: {line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segjax: interrupted", file=sys.stderr)
        return 130


class _Version(argparse.Action):
    """Print the versions of segjax and JAX, and the implementation of CPU convolutions."""

    def __call__(self, *_: Any) -> NoReturn:
        print(f"segjax {segjax.__version__}")
        print(f"jax {metadata.version('jax')}")
        print(f"convolutions on a CPU: {build.describe()}")
        raise SystemExit


def parser() -> argparse.ArgumentParser:
    """Return the parser for all commands."""
    top = Parser(
        prog="segjax",
        description="Architecture ablations in semantic segmentation, in JAX and Flax.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name in COMMANDS:
        module = importlib.import_module(f"segjax.cli.{name}")
        description = f"{module.SUMMARY}. {module.DETAILS}"
        sub = commands.add_parser(name, help=module.SUMMARY, description=description)
        sub.set_defaults(run=module.run)
        module.add_arguments(sub)
    return top
