"""Rows of `segjax benchmark` as data: read, checked, and added to a file.

A row is one network at one batch and precision. What was measured is in it, for each side (segjax
and those that it was timed against, in the same run and turn by turn); what follows from that, such
as rates and ratios, is worked out when it is asked for (`Facts`).
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.errors import UserError
from segjax.results import schema
from segjax.results.schema import Row, is_count, is_number, is_text

SCHEMA = 1
KIND = "benchmark"
OURS = "segjax"
AGAINST = ("torch", "torch.compile")
WHAT = ("forward", "training_step", "gradient")
MEMORY = ("compiled", "device", "process")
_WHAT = "a benchmark row"


def _is_positive(value: Any) -> bool:
    return is_count(value, 1)


def _is_amount(value: Any) -> bool:
    return is_number(value, 1e30)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _of(
    names: Sequence[str], holds: Callable[[Any], bool], null: bool = False
) -> Callable[[Any], bool]:
    """An object with exactly these names, each of one kind."""
    return lambda value: (
        isinstance(value, dict)
        and sorted(value) == sorted(names)
        and all(holds(x) or (null and x is None) for x in value.values())
    )


_QUARTILES = ("median", "lower_quartile", "upper_quartile", "samples")
_FIELDS: schema.Fields = {
    "schema": (str(SCHEMA), lambda v: type(v) is int and v == SCHEMA, False),
    "kind": (repr(KIND), lambda v: v == KIND, False),
    "command": ("a command", is_text, False),
    "model": ("a name", is_text, False),
    "model_options": ("an object", _is_object, False),
    "num_classes": ("an integer >= 1", _is_positive, False),
    "resolution": (
        "[height, width]",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_positive, v)),
        False,
    ),
    "batch": ("an integer >= 1", _is_positive, False),
    "precision": ("float32 or bfloat16", lambda v: v in ("float32", "bfloat16"), False),
    "parameters": ("an integer >= 1", _is_positive, False),
    # Multiply-adds of convolutions and matrix products, of the batch.
    "macs": ("counts of forward, training_step", _of(WHAT[:2], _is_positive), True),
    # Of a large matrix product in this precision and a large copy, in the same run.
    "peaks": (
        "flops_per_second, bytes_per_second",
        _of(("flops_per_second", "bytes_per_second"), _is_amount),
        True,
    ),
    "sides": (
        f"an object of {OURS} and perhaps {', '.join(AGAINST)}",
        lambda v: _is_object(v) and OURS in v and set(v) <= {OURS, *AGAINST},
        False,
    ),
    "device": ("a name", is_text, False),
    "versions": ("an object", _is_object, False),
    "finished": ("a time", is_text, False),
}
# Where a side failed, its error alone is not null.
_SIDE: schema.Fields = {
    "error": ("a text", is_text, True),
    "device": ("a name", is_text, True),
    "versions": ("an object", _is_object, True),
    "ms": (
        f"{', '.join(_QUARTILES)} of {', '.join(WHAT)}",
        _of(WHAT, _of(_QUARTILES, _is_amount)),
        True,
    ),
    "compile_seconds": (f"seconds of {', '.join(WHAT)}", _of(WHAT, _is_amount, null=True), True),
    "memory": (
        f"bytes of {', '.join(WHAT)} by {', '.join(MEMORY)}",
        _of(MEMORY, _of(WHAT, _is_amount, null=True)),
        True,
    ),
    # Of the process before it had a network: Python and the libraries.
    "idle": ("bytes", _is_amount, True),
    # That XLA expects a program to move.
    "bytes": (f"bytes of {', '.join(WHAT)}", _of(WHAT, _is_amount, null=True), True),
    # Of both sides with the same weights, float32, one image.
    "logits": (
        "greatest_difference, mean_difference, greatest",
        _of(("greatest_difference", "mean_difference", "greatest"), _is_amount),
        True,
    ),
}


def _check(row: Any, where: str) -> Row:
    """Gives the row back, or raises a UserError that names the place and the first fault."""
    schema.check_fields(row, _FIELDS, where, f"{_WHAT} (an object)")
    for name, side in row["sides"].items():
        schema.check_fields(side, _SIDE, f"{where}: sides.{name}")
        if (side["error"] is None) == (side["ms"] is None):
            raise UserError(f"{where}: sides.{name} has both or neither of error and ms")
    return row


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Reads and checks the rows of `.jsonl` files.

    Raises:
      UserError: a file that is missing or has no row; a row that is cut short, lacks a field or has
        a value of the wrong kind. It names the file and the line.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected rows of segjax benchmark")
        found = [_check(row, where) for where, row in schema.parse(path, _WHAT)]
        if not found:
            raise UserError(f"{path}: empty, expected rows of segjax benchmark")
        rows += found
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a checked row to a file, which is whole at any instant."""
    _check(row, str(path))
    schema.append(path, row)


def key(row: Mapping[str, Any]) -> str:
    """What rows of the same measurement have in common, as a text to compare."""
    same = ("model", "model_options", "num_classes", "resolution", "batch", "precision", "device")
    fields = {name: row[name] for name in same} | {"sides": sorted(row["sides"])}
    return json.dumps(fields, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What follows from a row for one side; none where it was not measured."""

    row: Row
    side: str = OURS

    @property
    def _measured(self) -> Row:
        return self.row["sides"].get(self.side) or dict.fromkeys(_SIDE)

    @property
    def error(self) -> str | None:
        return self._measured["error"]

    def ms(self, what: str) -> float | None:
        """The median of one call; `backward` is the gradient's less the forward pass's.

        The gradient's has a forward pass of training in it, the other is one of inference, so that
        what batch statistics and dropout take counts as backward.
        """
        times = self._measured["ms"]
        if times is None:
            return None
        if what == "backward":
            return times["gradient"]["median"] - times["forward"]["median"]
        return times[what]["median"]

    def spread(self, what: str) -> float | None:
        """The distance of the quartiles of a call as a fraction of its median."""
        times = self._measured["ms"]
        if times is None or not times[what]["median"]:
            return None
        quartiles = times[what]["upper_quartile"] - times[what]["lower_quartile"]
        return quartiles / times[what]["median"]

    def images_per_second(self, what: str) -> float | None:
        ms = self.ms(what)
        return 1e3 * self.row["batch"] / ms if ms else None

    def memory_mb(self, what: str, source: str) -> float | None:
        """Millions of bytes, by one of `MEMORY`."""
        found = self._measured["memory"]
        return None if found is None or found[source][what] is None else found[source][what] / 1e6

    @property
    def compile_seconds(self) -> float | None:
        """Of the training step."""
        found = self._measured["compile_seconds"]
        return None if found is None else found["training_step"]

    def flops(self, what: str) -> int | None:
        """Two for each multiply-add of convolutions and matrix products; nothing else counts."""
        macs = self.row["macs"]
        return None if macs is None else 2 * macs[what]

    def floor_ms(self, what: str) -> float | None:
        """Of the arithmetic alone at the measured peak."""
        peaks, flops = self.row["peaks"], self.flops(what)
        return None if peaks is None or flops is None else 1e3 * flops / peaks["flops_per_second"]

    def traffic_ms(self, what: str) -> float | None:
        """Of the bytes that XLA expects to move at the measured rate of a copy."""
        peaks, moved = self.row["peaks"], self.row["sides"][OURS]["bytes"]
        if peaks is None or moved is None or moved[what] is None:
            return None
        return 1e3 * moved[what] / peaks["bytes_per_second"]

    def share(self, what: str) -> float | None:
        """Of the measured peak."""
        ms, floor = self.ms(what), self.floor_ms(what)
        return None if not ms or floor is None else floor / ms
