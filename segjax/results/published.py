"""Published CamVid results, with their sources.

`published.json` holds one record a line. Scores keep the printed digits, in percent; what is not
printed is null. Everything was read in its source ("V") or where another text quotes it ("V2").
Per-class lists are in the order of the papers' columns.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from segjax.errors import UserError

CLASSES = (
    *("Building", "Tree", "Sky", "Car", "SignSymbol", "Road"),
    *("Pedestrian", "Fence", "Pole", "Pavement", "Bicyclist"),
)
"""Our names, in the order of the columns of the SegNet and Tiramisu papers."""

# Key in the file -> heading in a table.
GROUPS = {
    "unary": "Without a CRF",
    "crf": "With a CRF",
    "network": "Networks",
    "tiramisu": "Networks, as compared by the Tiramisu paper",
    "reimplementation": "Reimplementations",
    "table1": "Decoder variants (SegNet paper, Table 1)",
    "table3": "Controlled benchmark (SegNet paper, Table 3)",
    "cost": "Cost (SegNet paper, Table 6)",
}
SCORES = ("global_accuracy", "class_accuracy", "mean_iou", "boundary_f")
COSTS = ("forward_ms", "backward_ms", "training_mb", "inference_mb", "model_mb")
FILE = Path(__file__).with_name("published.json")

Number = Decimal | int
Numbers = Mapping[str, Number | None]  # by name; None: not printed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The setting in which a result is comparable with ours."""

    training_images: int
    test_images: int
    resolution: tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The results of one method in one source."""

    method: str
    group: str  # a key of GROUPS
    source: str  # a key of Published.sources
    verified: str  # V: read in the source; V2: read where it is quoted
    protocol: str  # ours, differs or unknown; the notes say why if not ours
    notes: tuple[str, ...]
    sic: tuple[str, ...] = ()  # names of scores, costs or classes whose printed value is suspect
    split: str | None = None
    training_images: int | None = None
    resolution: tuple[int, int] | None = None  # height, width
    scores: Numbers = dataclasses.field(default_factory=dict)  # by SCORES, percent
    per_class_accuracy: Numbers = dataclasses.field(default_factory=dict)  # by CLASSES, or empty
    per_class_iou: Numbers = dataclasses.field(default_factory=dict)
    parameters_m: Number | None = None  # millions
    cost: Numbers = dataclasses.field(default_factory=dict)  # by COSTS: milliseconds, megabytes
    iterations: str | None = None
    class_weights: str | None = None  # median frequency or natural
    # Our corresponding network, and the options that identify it.
    model: str | None = None
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    crf: bool = False


@dataclasses.dataclass(frozen=True)
class Published:
    """The whole file."""

    protocol: Protocol
    sources: Mapping[str, str]  # short name -> citation
    records: tuple[Record, ...]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_amount(value: Any) -> bool:
    return isinstance(value, Decimal | int) and not isinstance(value, bool) and value > 0


def _is_percent(value: Any) -> bool:
    return isinstance(value, Decimal | int) and not isinstance(value, bool) and 0 <= value <= 100


def _is_list_of_percents(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(CLASSES)
        and all(x is None or _is_percent(x) for x in value)
        and any(x is not None for x in value)
    )


def _are(names: tuple[str, ...], holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and tuple(value) == names
        and all(x is None or holds(x) for x in value.values())
    )


def _one_of(*values: str) -> tuple[str, Callable[[Any], bool]]:
    return " or ".join(values), lambda value: value in values


_PER_CLASS = (f"{len(CLASSES)} percentages or null", _is_list_of_percents)
# name -> (what is expected, its test)
_REQUIRED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method": ("a name", _is_text),
    "group": _one_of(*GROUPS),
    "source": ("a name", _is_text),
    "verified": _one_of("V", "V2"),
    "protocol": _one_of("ours", "differs", "unknown"),
    "notes": ("a list of names", lambda v: isinstance(v, list) and all(map(_is_text, v))),
}
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sic": (
        "names of scores, costs or classes",
        lambda v: isinstance(v, list) and set(v) <= {*SCORES, *COSTS, *CLASSES},
    ),
    "split": _one_of("train", "val", "test"),
    "training_images": ("a count or null", lambda v: v is None or _is_count(v)),
    "resolution": ("[height, width] or null", lambda v: v is None or _is_size(v)),
    "scores": (f"percentages or null of {', '.join(SCORES)}", _are(SCORES, _is_percent)),
    "per_class_accuracy": _PER_CLASS,
    "per_class_iou": _PER_CLASS,
    "parameters_m": ("millions", _is_amount),
    "cost": (f"numbers of {', '.join(COSTS)}", _are(COSTS, _is_amount)),
    "iterations": ("a text", _is_text),
    "class_weights": _one_of("median frequency", "natural"),
    "model": ("a name", _is_text),
    "model_options": ("an object", lambda v: isinstance(v, dict)),
    "crf": ("true or false", lambda v: isinstance(v, bool)),
}


def load(file: Path = FILE) -> Published:
    """Load and validate published results.

    Raises:
      UserError: a field is unknown, missing, ill-typed or out of range, a class, source or note is
        not declared, or a differing protocol has no note. It names the record.
    """
    data = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    if tuple(data["classes"]) != CLASSES:
        raise UserError(f"{file}: classes are {data['classes']}, expected {list(CLASSES)}")
    protocol = Protocol(
        training_images=data["protocol"]["training_images"],
        test_images=data["protocol"]["test_images"],
        resolution=tuple(data["protocol"]["resolution"]),
    )
    records = tuple(
        _record(fields, f"{file}: record {number}", data["sources"], data["notes"])
        for number, fields in enumerate(data["records"], 1)
    )
    return Published(protocol, data["sources"], records)


def _record(
    fields: dict[str, Any], where: str, sources: Mapping[str, str], notes: Mapping[str, str]
) -> Record:
    where += f" ({fields.get('method')}, {fields.get('source')})"
    for name in fields:
        if name not in _REQUIRED | _OPTIONAL:
            raise UserError(f"{where}: {name} is no field of a record")
    for name, (expected, holds) in (_REQUIRED | _OPTIONAL).items():
        if name in fields and not holds(fields[name]):
            raise UserError(f"{where}: {name} is {fields[name]!r}, expected {expected}")
        if name in _REQUIRED and name not in fields:
            raise UserError(f"{where}: {name} is missing, expected {expected}")
    if fields["source"] not in sources:
        raise UserError(f"{where}: its source is not among the sources")
    for note in fields["notes"]:
        if note not in notes:
            raise UserError(f"{where}: note {note!r} is not among the notes")
    if fields["protocol"] != "ours" and not fields["notes"]:
        raise UserError(f"{where}: its protocol is not ours, expected a note that says why")
    if ("scores" in fields) == ("cost" in fields) or ("scores" in fields) != ("split" in fields):
        raise UserError(f"{where}: expected either scores and their split, or cost")
    made = dict(fields)
    made["notes"] = tuple(notes[note] for note in fields["notes"])
    made["sic"] = tuple(fields.get("sic", ()))
    if fields.get("resolution"):
        made["resolution"] = tuple(fields["resolution"])
    for name in ("per_class_accuracy", "per_class_iou"):
        if name in fields:
            made[name] = dict(zip(CLASSES, fields[name], strict=True))
    return Record(**made)


@functools.cache
def shipped() -> Published:
    """Return the published results that come with the package."""
    return load()


def records(group: str, split: str | None) -> list[Record]:
    """Return the records of a group for a split (None: costs), in the order of the file."""
    return [r for r in shipped().records if r.group == group and r.split == split]
