"""`segjax COMMAND`: parse the command line and run the command.

A command is a module of this folder with SUMMARY, DETAILS, `add_arguments(parser)` and
`run(options)`, which returns the exit status, or None for 0. Commands import heavy modules inside
`run`, so that --help is instant.
"""

import argparse
import difflib
import importlib
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

import segjax
from segjax.cli.arguments import Parser
from segjax.errors import UserError, line, one_line
from segjax.ops.onednn import build

COMMANDS = (
    *("data", "train", "evaluate", "predict", "export", "push", "sweep", "reproduce"),
    *("table", "compare", "picture", "figures", "report"),
    *("preview", "models", "benchmark", "baselines"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 means an error that the user can correct."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = argparse.Namespace()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the sign ±
    try:
        try:
            options, rest = parser().parse_known_args(arguments)
            _refuse_unknown(options, rest)
            options.rest = rest
            options.shell = shlex.join(["segjax", *arguments])
            return options.run(options) or 0
        finally:
            _flush()
    except BrokenPipeError:  # the reader has enough, as in `segjax table ... | head`
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"segjax: {line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segjax: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        fault = _environment_fault(error, options)
        if fault is None:
            raise
        print(f"segjax: {fault}", file=sys.stderr)
        return 2


def _refuse_unknown(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise UserError for arguments that are neither options nor overrides of a config."""
    for argument in rest:
        if hasattr(options, "config") and argument.startswith("--config."):
            continue
        name = argument.partition("=")[0]
        close = next(iter(difflib.get_close_matches(name, options.flags, n=1, cutoff=0.75)), None)
        if close is None and hasattr(options, "config"):
            from segjax import config

            field = config.closest(name.removeprefix("--"))
            close = field and f"--config.{field}"
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"unknown argument {argument!r}{hint}; see segjax {options.command} --help")


def _flush() -> None:
    """Write the rest of the output; drop it if that fails, or Python would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _environment_fault(error: Exception, options: argparse.Namespace) -> str | None:
    """Return an exception of JAX that the user can correct in one line; None for any other."""
    *_, raised = traceback.extract_tb(error.__traceback__)
    file, said = raised.filename.replace(os.sep, "/"), one_line(error)
    if said.startswith("RESOURCE_EXHAUSTED"):
        less = "smaller batch_size, eval_batch_size and data.resolution or more micro_batches need"
        hint = f"; {less} less" if hasattr(options, "config") else ""
        return f"the memory of the device is exhausted{hint}: {said[:200]}"
    if file.endswith("/jax/_src/xla_bridge.py"):
        names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")
        given = ", ".join(f"{x}={os.environ[x]!r}" for x in names if x in os.environ)
        return f"JAX finds no device, with {given or 'no variable set'}; {said}".rstrip("; ")
    if file.endswith("/jax/_src/config.py"):
        return f"an environment variable of JAX is wrong: {said}"
    if isinstance(error, RuntimeError) and "home directory" in said:
        return "HOME is not set, expected the home directory, in which datasets are by default"
    return None


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
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, flags=sub.flags())
    return top
