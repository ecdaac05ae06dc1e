"""The command lines of `launch/`: which runs of which grid, and mistakes in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from segjax import config
from segjax.cli import arguments
from segjax.errors import UserError


def grid_parser(description: str) -> arguments.Parser:
    """A parser with the arguments that name the runs of a grid, and overrides."""
    parser = arguments.Parser(
        description=f"{description} Any field is overridden by --config.FIELD=VALUE.",
        # An abbreviation would take an override for an argument of its own.
        allow_abbrev=False,
    )
    arguments.add_grid(parser)
    return parser


def run(
    parser: arguments.Parser,
    act: Callable[[argparse.Namespace], None],
    given: Sequence[str] | None,
) -> int:
    """Parses, acts, and gives the exit status: 2 for what the user can put right."""
    try:
        options, rest = parser.parse_known_args(given)
        options.overrides = config.parse_overrides(rest)
        act(options)
    except (UserError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0
