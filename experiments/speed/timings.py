"""Rows of what `loop.py`, `growth.py` and `levers.py` measure: checked, read, added, tabulated.

python experiments/speed/timings.py experiments/speed/results/loop_cpu.jsonl

A row has the samples that were taken, of several things in turn; medians and ratios are worked out
when they are asked for.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.cli import arguments
from segjax.errors import UserError
from segjax.report.columns import Sheet
from segjax.report.table import Table, draw
from segjax.results import schema
from segjax.results.schema import Row, is_count, is_number, is_text

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
# kind -> what the others of a turn are compared with
REFERENCES = {"loop": "bare", "first_step": "cold", "levers": "plain"}
_WHAT = "a row of timings"


def _is_setting(value: Any) -> bool:
    """What was run: null where nothing is trained."""
    names = ("model", "model_options", "dataset", "resolution", "batch", "precision", "placement")
    return (
        isinstance(value, dict)
        and all(name in value for name in names)
        and isinstance(value["model_options"], dict)
    )


def _is_samples(value: Any) -> bool:
    """Lists of positive numbers, of the same length as they are of turns."""
    return (
        isinstance(value, dict)
        and all(
            isinstance(found, list) and found and all(is_number(x, 1e12) and x > 0 for x in found)
            for found in value.values()
        )
        and len({len(found) for found in value.values()}) == 1
    )


def _is_bytes_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(x is None or is_number(x, 1e15) for x in value.values())


_FIELDS: schema.Fields = {
    "schema": (str(SCHEMA), lambda v: type(v) is int and v == SCHEMA, False),
    "kind": (f"one of {', '.join(KINDS)}", lambda v: is_text(v) and v in KINDS, False),
    "command": ("a command", is_text, False),
    "setting": ("an object that names model, dataset, resolution, batch", _is_setting, True),
    "unit": ("a unit", is_text, False),
    "samples": ("lists of positive numbers, one of each turn, by name", _is_samples, False),
    "device": ("a name", is_text, False),
    "versions": ("an object", lambda v: isinstance(v, dict), False),
    "finished": ("a time", is_text, False),
}
_OF_LEVERS: schema.Fields = {"bytes": ("bytes by name", _is_bytes_by_name, False)}
_OF_DEVICES: schema.Fields = {
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
    schema.check_fields(row, _FIELDS, where, f"{_WHAT} (an object)")
    unit, names = KINDS[row["kind"]]
    if row["unit"] != unit or sorted(row["samples"]) != sorted(names):
        found = f"{sorted(row['samples'])} in {row['unit']}"
        raise UserError(f"{where}: samples are {found}, expected {sorted(names)} in {unit}")
    if row["kind"] == "devices":
        schema.check_fields(row, _OF_DEVICES, where)
    if row["kind"] == "levers":
        schema.check_fields(row, _OF_LEVERS, where)
    return row


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Reads and checks the rows of `.jsonl` files.

    Raises:
      UserError: a file that is missing or has no row, or a row that is not whole.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        found = schema.parse(path, _WHAT) if path.is_file() else []
        if not found:
            raise UserError(f"{path}: no such file or no row in it, expected rows of timings")
        rows += [check(row, where) for where, row in found]
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a checked row to a file, which is whole at any instant."""
    check(row, str(path))
    schema.append(path, row)


def median(row: Row, name: str) -> float:
    """Of the samples of one thing."""
    return float(np.median(row["samples"][name]))


def ratio(row: Row, name: str, other: str) -> float:
    """The median, over the turns, of one thing by another of the same turn."""
    return float(np.median(np.divide(row["samples"][name], row["samples"][other])))


def table(rows: Sequence[Row]) -> Table:
    """A line for each thing that was measured."""
    lines = [(row, name) for row in rows for name in row["samples"]]
    sheet = Sheet(len(lines))
    sheet.texts("measured", [f"{row['kind']}: {name}".replace("_", " ") for row, name in lines])
    sheet.texts("setting", [_setting(row) for row, _ in lines], absent="")
    sheet.texts("device", [_devices(row) for row, _ in lines])
    sheet.texts("unit", [row["unit"] for row, _ in lines])
    for heading, of in (("median", np.median), ("least", np.min), ("most", np.max)):
        values = [float(of(row["samples"][name])) for row, name in lines]
        sheet.numbers(heading, heading, values)
    sheet.counts("samples", [len(row["samples"][name]) for row, name in lines])
    sheet.numbers("ratio", "ratio", [_against(row, name) for row, name in lines])
    megabytes = [_megabytes(row, name) for row, name in lines]
    if any(megabytes):
        sheet.numbers("MB", "mb", megabytes)
    compared = "; ".join(
        f"{kind.replace('_', ' ')}: to {other}"
        for kind, other in REFERENCES.items()
        if any(row["kind"] == kind for row in rows)
    )
    title = "Medians"
    if compared:
        title += f"; ratio: the median of those of single turns ({compared})"
    if any(megabytes):
        title += "; MB: millions of bytes, as XLA plans them"
    return sheet.table(f"{title}.")


def _setting(row: Row) -> str | None:
    setting = row["setting"]
    if setting is None:
        return None
    options = [f"{name} {value}" for name, value in setting["model_options"].items()]
    size = "x".join(map(str, setting["resolution"]))
    parts = [setting["model"], *options, f"{setting['dataset']} {size}"]
    parts += [f"batch {setting['batch']}", setting["precision"]]
    steps = setting.get("steps_per_dispatch", 1)
    return ", ".join([*parts, *[f"{steps} steps a dispatch"] * (steps > 1)])


def _devices(row: Row) -> str:
    return f"{row['device']} x{row['devices']}" if "devices" in row else row["device"]


def _against(row: Row, name: str) -> float | None:
    other = REFERENCES.get(row["kind"], name)
    return None if other == name else ratio(row, name, other)


def _megabytes(row: Row, name: str) -> float | None:
    found = row.get("bytes")
    found = found.get(name) if isinstance(found, dict) else found
    return None if found is None else found / 1e6


def main(given: list[str] | None = None) -> int:
    """Prints the table; gives the exit status: 2 for what the user can put right."""
    parser = arguments.Parser(description="Medians of measured times, as a table.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    try:
        rows = read(parser.parse_args(given).files)
    except UserError as error:
        sys.stderr.write(f"timings.py: {error}\n")
        return 2
    sys.stdout.write(draw(table(rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
