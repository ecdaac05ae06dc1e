"""Read, validate, append and tabulate rows of `loop.py`, `growth.py` and `levers.py`.

python experiments/speed/timings.py experiments/speed/results/loop_cpu.jsonl

A row holds samples of several programs measured in turn; medians and ratios are computed from them.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of Python 3.11

from segjax.cli import arguments
from segjax.errors import UserError
from segjax.report.columns import TableBuilder
from segjax.report.table import Table, draw
from segjax.results import schema
from segjax.results.schema import Amount, Positive, Row, Size, Text

SCHEMA = 1
# kind -> unit of its samples, names of the programs
KINDS = {
    "loop": ("images/s", ("loop", "program", "bare")),
    "first_step": ("s", ("cold", "warm")),
    "throughput": ("images/s", ("evaluation", "boundary_f", "predict")),
    "start": ("s", ("python", "segjax --help", "segjax train --help")),
    "devices": ("ms", ("training_step",)),
    "levers": ("ms", ("plain", "recompute", "recompute_all", "dispatch", "seeds")),
}
# kind -> the program that the others are compared with
REFERENCES = {"loop": "bare", "first_step": "cold", "levers": "plain"}
_WHAT = "a row of timings"


class Setting(TypedDict):
    """Network, data and precision of a measurement."""

    model: Text
    model_options: dict[str, Any]
    dataset: Text
    resolution: Size
    batch: Positive
    precision: Text
    placement: Text


class TimingRow(TypedDict):
    """The fields of a measurement at one setting."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    kind: Literal["loop", "first_step", "throughput", "start", "devices", "levers"]
    command: Text
    setting: Setting | None  # None if nothing is trained
    unit: Text
    samples: dict[str, Annotated[list[Annotated[Amount, Field(gt=0)]], Field(min_length=1)]]
    device: Text
    versions: dict[str, Any]
    finished: Text  # time, ISO 8601


class LeversRow(TimingRow):
    """A row of kind "levers"."""

    bytes: dict[str, Amount | None]


class DevicesRow(TimingRow):
    """A row of kind "devices"."""

    devices: Positive
    # Of one device: arguments, results and temporary buffers, as XLA plans it.
    bytes: Amount | None
    loss: Annotated[float, Field(ge=0, le=1e6)]  # of the first step


_FURTHER = {"levers": LeversRow, "devices": DevicesRow}


def check(row: Any, where: str) -> Row:
    """Check a row and return it.

    Raises:
      UserError: a field is missing or of the wrong type. It names the place and the first error.
    """
    schema.validate(row, TimingRow, where, _WHAT)
    unit, names = KINDS[row["kind"]]
    samples = row["samples"]
    if row["unit"] != unit or sorted(samples) != sorted(names):
        found = f"{sorted(samples)} in {row['unit']}"
        raise UserError(f"{where}: samples are {found}, expected {sorted(names)} in {unit}")
    turns = {name: len(times) for name, times in samples.items()}
    if len(set(turns.values())) > 1:
        raise UserError(f"{where}: samples has {turns} values, expected one of each per turn")
    if row["kind"] in _FURTHER:
        schema.validate(row, _FURTHER[row["kind"]], where, _WHAT)
    return row


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Read and validate the rows of `.jsonl` files.

    Raises:
      UserError: a file is missing or has no row, or a row is not valid.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        found = schema.parse(path, _WHAT) if path.is_file() else []
        if not found:
            raise UserError(f"{path}: no such file or no row in it, expected rows of timings")
        rows += [check(row, where) for where, row in found]
    return rows


def append(path: Path, row: Row) -> None:
    """Validate a row and append it to a file atomically."""
    check(row, str(path))
    schema.append(path, row)


def median(row: Row, name: str) -> float:
    """Return the median of the samples of one program."""
    return float(np.median(row["samples"][name]))


def ratio(row: Row, name: str, other: str) -> float:
    """Return the median over the turns of the ratio of two programs."""
    return float(np.median(np.divide(row["samples"][name], row["samples"][other])))


def table(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each program of each row."""
    lines = [(row, name) for row in rows for name in row["samples"]]
    builder = TableBuilder(len(lines))
    builder.texts("measured", [f"{row['kind']}: {name}".replace("_", " ") for row, name in lines])
    builder.texts("setting", [_setting(row) for row, _ in lines], absent="")
    builder.texts("device", [_devices(row) for row, _ in lines])
    builder.texts("unit", [row["unit"] for row, _ in lines])
    for heading, of in (("median", np.median), ("least", np.min), ("most", np.max)):
        values = [float(of(row["samples"][name])) for row, name in lines]
        builder.numbers(heading, heading, values)
    builder.counts("samples", [len(row["samples"][name]) for row, name in lines])
    builder.numbers("ratio", "ratio", [_against(row, name) for row, name in lines])
    megabytes = [_megabytes(row, name) for row, name in lines]
    if any(megabytes):
        builder.numbers("MB", "mb", megabytes)
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
    return builder.table(f"{title}.")


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
    """Print the table; return the exit status, 2 for a user error."""
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
