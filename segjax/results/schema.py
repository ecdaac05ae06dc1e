"""Rows of JSON in files, of results and of measurements: parsed strictly, checked, added whole."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segjax.errors import UserError
from segjax.files import write_whole

Row = dict[str, Any]

# name -> (what is expected, its test, whether null is one of the values)
Fields = Mapping[str, tuple[str, Callable[[Any], bool], bool]]


def is_count(value: Any, least: int = 0) -> bool:
    """An integer that every JSON reader holds exactly."""
    return type(value) is int and least <= value < 2**53


def is_number(value: Any, most: float) -> bool:
    """A number from 0 to the most."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def is_text(value: Any) -> bool:
    """A text that says something."""
    return isinstance(value, str) and value != ""


def check_fields(
    row: Any, fields: Fields, where: str, what: str = "an object", optional: Fields | None = None
) -> None:
    """Refuses a row that is no object, lacks a field, or has a value of the wrong kind.

    Args:
      row: as it was parsed.
      fields: that it must have; others may be there.
      where: its place, in a message.
      what: it should be, in a message.
      optional: fields that are checked where they are there.

    Raises:
      UserError: it names the place and the first fault.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: found {_short(row)}, expected {what}")
    optional = optional or {}
    for name, (expected, holds, nullable) in {**fields, **optional}.items():
        if name not in row:
            if name in optional:
                continue
            raise UserError(f"{where}: {name} is missing, expected {expected}")
        if not (holds(row[name]) or (nullable and row[name] is None)):
            raise UserError(f"{where}: {name} is {_short(row[name])}, expected {expected}")


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse(path: Path, what: str) -> list[tuple[str, Any]]:
    """The rows of a file, each with its place: one, or in a `.jsonl` one a line.

    Args:
      path: of the file.
      what: a row is, in a message.

    Raises:
      UserError: a file that is not text, or a row that is cut short, has a number that JSON has
        not, or a name twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, expected {what}") from None
    if path.suffix != ".jsonl":
        return [(str(path), _parse(text, str(path), None, what))]
    lines = enumerate(text.split("\n"), 1)
    return [
        (f"{path}:{number}", _parse(line, str(path), number, what))
        for number, line in lines
        if line.strip()
    ]


def _parse(text, path, line, what):
    def refuse(token):
        raise ValueError(f"found {token}, which is not JSON")

    def unique(pairs):
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno if line is None else line}"
        raise UserError(
            f"{place}: damaged at column {error.colno} ({error.msg}), expected {what}"
        ) from None
    except ValueError as error:
        place = path if line is None else f"{path}:{line}"
        raise UserError(f"{place}: {error}, expected {what}") from None


def dump(value: Any) -> str:
    """A row, or a part of one, in one line."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def append(path: Path, row: Row) -> None:
    """Adds a line to a file, which is whole at any instant."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "" if text.endswith("\n") or not text else "\n"
    write_whole(path, text + gap + dump(row) + "\n")
