"""Parse, validate and append rows of JSON, of results and of measurements."""

import functools
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from segjax.errors import UserError
from segjax.system import stored
from segjax.system.files import write_whole

Row = dict[str, Any]

# Types of the fields of a row.
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]  # exact in every JSON reader
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]  # height, width in pixels

_adapter = functools.cache(TypeAdapter)


def validate(row: Any, fields: type, where: str, what: str) -> None:
    """Check a row against a TypedDict; additional fields are allowed.

    Args:
      row: parsed JSON; no value is converted.
      fields: the TypedDict.
      where: file and line, for the message.
      what: what the row should be, such as "a result row".

    Raises:
      UserError: the row is not an object, or a field is missing or has the wrong type or range. It
        names the place and the first error.
    """
    try:
        _adapter(fields).validate_python(row, strict=True)
    except ValidationError as error:
        raise fault(error, where, what) from None


def fault(error: ValidationError, where: str, what: str) -> UserError:
    """Convert pydantic's first error to a UserError that names place and field."""
    first = error.errors(include_url=False, include_context=False)[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    field = "".join(steps).removeprefix(".")
    if not field:
        return UserError(f"{where}: found {_short(first['input'])}, expected {what} (an object)")
    if first["type"] == "missing":
        return UserError(f"{where}: {field} is missing, expected in {what}")
    if first["type"] == "unexpected_keyword_argument":
        return UserError(f"{where}: {field} is not a field of {what}")
    expected = re.sub(r"^Value error, |^\w+ should (be|have) ", "", first["msg"])
    return UserError(f"{where}: {field} is {_short(first['input'])}, expected {expected}")


def _short(value):
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def parse(path: Path, what: str) -> list[tuple[str, Any]]:
    """Return (place, row) of each row of a file: one, or in a `.jsonl` one per line.

    Args:
      path: JSON or JSON Lines file.
      what: what a row should be, for the message.

    Raises:
      UserError: the file is not UTF-8, or a row is cut short, is nested too deeply, has a number or
        a character that JSON or UTF-8 does not have, or a name twice, or was changed after it was
        written.
    """
    text = _text(path, what)
    if path.suffix != ".jsonl":
        return [(str(path), _parse(text, str(path), None, what))]
    return [
        (f"{path}:{number}", _parse(line, str(path), number, what))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _text(path, what):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, expected {what}") from None


def _parse(text, path, line, what):
    try:
        row = stored.parse(text)
        return stored.unseal(row) if isinstance(row, dict) else row
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno if line is None else line}"
        raise UserError(
            f"{place}: damaged at column {error.colno} ({error.msg}), expected {what}"
        ) from None
    except ValueError as error:
        place = path if line is None else f"{path}:{line}"
        raise UserError(f"{place}: {error}, expected {what}") from None


def dump(value: Any) -> str:
    """Return a row, or a part of one, as one line of JSON."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def append(path: Path, row: Row) -> None:
    """Append a row, with a checksum, to a `.jsonl` file atomically."""
    text = _text(path, "rows of JSON") if path.exists() else ""
    gap = "" if text.endswith("\n") or not text else "\n"
    write_whole(path, text + gap + dump(stored.seal(row)) + "\n")
