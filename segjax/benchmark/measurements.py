"""Read, validate and append rows of `segjax benchmark`.

A row is one network at one batch size and precision. It holds the measurements of each side (segjax
and the implementations timed in turn with it); `Facts` derives rates and ratios from them.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of Python 3.11

from segjax.errors import UserError
from segjax.results import schema
from segjax.results.schema import Amount, Positive, Row, Size, Text

SCHEMA = 1
KIND = "benchmark"
OURS = "segjax"
AGAINST = ("torch", "torch.compile")
MEMORY = ("compiled", "device", "process")
_WHAT = "a benchmark row"


T = TypeVar("T")


class OfPrograms(TypedDict, Generic[T]):
    """A value for each of `process.PROGRAMS`."""

    forward: T
    training_step: T
    gradient: T


class Macs(TypedDict):
    """Multiply-accumulates of convolutions and matrix products, of the batch."""

    forward: Positive
    training_step: Positive


class Peaks(TypedDict):
    """Rates of a large matrix product in the row's precision and of a large copy, in this run."""

    flops_per_second: Amount
    bytes_per_second: Amount


class Times(TypedDict):
    """Milliseconds of one call."""

    median: Amount
    lower_quartile: Amount
    upper_quartile: Amount
    samples: Amount  # number


class Memory(TypedDict):
    """Bytes of each program, according to each of MEMORY."""

    compiled: OfPrograms[Amount | None]
    device: OfPrograms[Amount | None]
    process: OfPrograms[Amount | None]


class Logits(TypedDict):
    """Difference of the logits of both sides: same weights, float32, one image."""

    greatest_difference: Amount
    mean_difference: Amount
    greatest: Amount


class SideFields(TypedDict):
    """Measurements of one side; if it failed, only its error is not null."""

    error: Text | None
    device: Text | None
    versions: dict[str, Any] | None
    ms: OfPrograms[Times] | None
    compile_seconds: OfPrograms[Amount | None] | None
    memory: Memory | None
    idle: Amount | None  # bytes of the process before it runs the network
    bytes: OfPrograms[Amount | None] | None  # memory traffic of each program as XLA expects it
    logits: Logits | None


class BenchmarkRow(TypedDict):
    """The fields of one network at one batch and precision."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    kind: Literal["benchmark"]
    command: Text
    model: Text
    model_options: dict[str, Any]
    num_classes: Positive
    resolution: Size
    batch: Positive
    precision: Literal["float32", "bfloat16"]
    parameters: Positive
    macs: Macs | None
    peaks: Peaks | None
    sides: dict[Literal["segjax", "torch", "torch.compile"], SideFields]
    device: Text
    processor: NotRequired[Text]  # model and vector instructions of the CPU, if it is the device
    versions: dict[str, Any]
    finished: Text  # time, ISO 8601


def _check(row: Any, where: str) -> Row:
    """Return the row, or raise a UserError that names the place and the first error."""
    schema.validate(row, BenchmarkRow, where, _WHAT)
    sides = row["sides"]
    if OURS not in sides:
        raise UserError(f"{where}: sides are {list(sides)}, expected {OURS} among them")
    for name, side in sides.items():
        if (side["error"] is None) == (side["ms"] is None):
            raise UserError(f"{where}: sides.{name} has both or neither of error and ms")
    return row


def read(paths: Iterable[str | Path]) -> list[Row]:
    """Read and validate the rows of `.jsonl` files.

    Raises:
      UserError: a file is missing or has no row, or a row is cut short, lacks a field or has a
        value of the wrong type or range. It names the file and the line.
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
    """Validate a row and append it to a file atomically."""
    _check(row, str(path))
    schema.append(path, row)


def key(row: Mapping[str, Any]) -> str:
    """Return a key that is equal for rows of the same measurement."""
    same = ("model", "model_options", "num_classes", "resolution", "batch", "precision", "device")
    fields = {name: row[name] for name in same} | {"sides": sorted(row["sides"])}
    fields |= {"processor": row.get("processor"), "onednn": row["versions"].get("onednn")}
    return json.dumps(fields, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Quantities derived from a row for one side; None if not measured."""

    row: Row
    side: str = OURS

    @property
    def _measured(self) -> Row:
        return self.row["sides"].get(self.side) or dict.fromkeys(SideFields.__annotations__)

    @property
    def error(self) -> str | None:
        return self._measured["error"]

    def ms(self, program: str) -> float | None:
        """Return the median of one call; `backward` is `gradient` minus `forward`.

        `gradient` includes a forward pass in training mode, while `forward` is in inference mode,
        so batch statistics and dropout count as backward.
        """
        times = self._measured["ms"]
        if times is None:
            return None
        if program == "backward":
            return times["gradient"]["median"] - times["forward"]["median"]
        return times[program]["median"]

    def spread(self, program: str) -> float | None:
        """Return the interquartile range of a call as a fraction of its median."""
        times = self._measured["ms"]
        if times is None or not times[program]["median"]:
            return None
        quartiles = times[program]["upper_quartile"] - times[program]["lower_quartile"]
        return quartiles / times[program]["median"]

    def images_per_second(self, program: str) -> float | None:
        ms = self.ms(program)
        return 1e3 * self.row["batch"] / ms if ms else None

    def memory_mb(self, program: str, source: str) -> float | None:
        """Return millions of bytes according to one of MEMORY."""
        found = self._measured["memory"]
        size = found[source][program] if found else None
        return None if size is None else size / 1e6

    @property
    def compile_seconds(self) -> float | None:
        """Compilation time of the training step."""
        found = self._measured["compile_seconds"]
        return None if found is None else found["training_step"]

    def flops(self, program: str) -> int | None:
        """Return two FLOPs for each MAC of convolutions and matrix products; no others count."""
        macs = self.row["macs"]
        return None if macs is None else 2 * macs[program]

    def arithmetic_ms(self, program: str) -> float | None:
        """Return the time of the FLOPs at the measured peak rate, a lower bound."""
        peaks, flops = self.row["peaks"], self.flops(program)
        return None if peaks is None or flops is None else 1e3 * flops / peaks["flops_per_second"]

    def traffic_ms(self, program: str) -> float | None:
        """Return the time of the memory traffic that XLA expects, at the measured copy rate."""
        peaks, moved = self.row["peaks"], self.row["sides"][OURS]["bytes"]
        if peaks is None or moved is None or moved[program] is None:
            return None
        return 1e3 * moved[program] / peaks["bytes_per_second"]

    def share(self, program: str) -> float | None:
        """Return the achieved fraction of the measured peak rate."""
        ms, least = self.ms(program), self.arithmetic_ms(program)
        return None if not ms or least is None else least / ms
