"""Rows of what `loop.py` and `growth.py` measure: checked, read, and added to a file.

A row has the samples that were taken, of several things in turn; medians and ratios are worked out
when they are asked for.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segjax import jsonrows
from segjax.errors import UserError
from segjax.jsonrows import Row, is_count, is_number, is_text

SCHEMA = 1
# kind -> the unit of its samples, and what they are of
KINDS = {
    "loop": ("images/s", ("loop", "program", "bare")),
    "first_step": ("s", ("cold", "warm")),
    "throughput": ("images/s", ("evaluation", "boundary_f", "predict")),
    "start": ("s", ("python", "segjax --help", "segjax train --help")),
    "devices": ("ms", ("training_step",)),
    "levers": ("ms", ("plain", "recompute", "recompute_all", "dispatch", "seeds")),
}
_WHAT = "a row of timings"


def _is_setting(value: Any) -> bool:
    """What was run: null where nothing is trained."""
    names = ("model", "model_options", "dataset", "resolution", "batch", "precision", "placement")
    return isinstance(value, dict) and all(name in value for name in names)


def _is_samples(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(found, list) and found and all(is_number(x, 1e12) for x in found)
        for found in value.values()
    )


_FIELDS: jsonrows.Fields = {
    "schema": (str(SCHEMA), lambda v: type(v) is int and v == SCHEMA, False),
    "kind": (f"one of {', '.join(KINDS)}", lambda v: is_text(v) and v in KINDS, False),
    "command": ("a command", is_text, False),
    "setting": ("an object that names model, dataset, resolution, batch", _is_setting, True),
    "unit": ("a unit", is_text, False),
    "samples": ("lists of numbers by name", _is_samples, False),
    "device": ("a name", is_text, False),
    "versions": ("an object", lambda v: isinstance(v, dict), False),
    "finished": ("a time", is_text, False),
}
_OF_DEVICES: jsonrows.Fields = {
    "devices": ("an integer >= 1", lambda v: is_count(v, 1), False),
    # Of one device: arguments, results and what is between, as XLA plans it.
    "bytes": ("bytes", lambda v: is_number(v, 1e15), True),
    "loss": ("a number", lambda v: is_number(v, 1e6), False),  # of the first step
}


def check(row: Any, where: str) -> Row:
    """Gives the row back.

    Raises:
      UserError: a field is missing or of the wrong kind; it names the place and the first fault.
    """
    jsonrows.check_fields(row, _FIELDS, where, f"{_WHAT} (an object)")
    unit, names = KINDS[row["kind"]]
    if row["unit"] != unit or sorted(row["samples"]) != sorted(names):
        found = f"{sorted(row['samples'])} in {row['unit']}"
        raise UserError(f"{where}: samples are {found}, expected {sorted(names)} in {unit}")
    if row["kind"] == "devices":
        jsonrows.check_fields(row, _OF_DEVICES, where)
    return row


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Reads and checks the rows of `.jsonl` files.

    Raises:
      UserError: a file that is missing or has no row, or a row that is not whole.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        found = jsonrows.parse(path, _WHAT) if path.is_file() else []
        if not found:
            raise UserError(f"{path}: no such file or no row in it, expected rows of timings")
        rows += [check(row, where) for where, row in found]
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a checked row to a file, which is whole at any instant."""
    check(row, str(path))
    jsonrows.append(path, row)


def median(row: Row, name: str) -> float:
    """Of the samples of one thing."""
    return float(np.median(row["samples"][name]))


def ratio(row: Row, name: str, other: str) -> float:
    """The median, over the turns, of one thing by another of the same turn."""
    return float(np.median(np.divide(row["samples"][name], row["samples"][other])))
