"""Published CamVid results, with their sources.

`published.json` holds one record per line. Scores are in percent with the printed digits, or null
if not printed. They were read in the source itself ("V") or in another text that quotes it ("V2").
Per-class lists are in the order of the papers' columns.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from segjax import results
from segjax.errors import UserError
from segjax.results import schema
from segjax.results.schema import Positive, Row, Text

CLASSES = (
    *("Building", "Tree", "Sky", "Car", "SignSymbol", "Road"),
    *("Pedestrian", "Fence", "Pole", "Pavement", "Bicyclist"),
)
"""Our names of the classes, in the order of the columns of the SegNet and Tiramisu papers."""

# Group of records -> its heading in a table.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The setting of a result that is comparable with ours."""

    training_images: int
    test_images: int
    resolution: tuple[int, int]  # height, width


def _by_class(values: Any) -> Any:
    """Convert a list in the order of CLASSES to a dict by class."""
    if not (isinstance(values, list) and len(values) == len(CLASSES)) or values.count(None) == len(
        CLASSES
    ):
        raise ValueError(f"{len(CLASSES)} percentages or null")
    return dict(zip(CLASSES, values, strict=True))


def _percent(value: Any) -> Number:
    if type(value) not in (Decimal, int) or not 0 <= value <= 100:
        raise ValueError("a percentage")
    return value


def _amount(value: Any) -> Number:
    if type(value) not in (Decimal, int) or not value > 0:
        raise ValueError("a number above 0")
    return value


# Plain validators, which keep the digits of a Decimal and the type of an int.
Percent = Annotated[Number, PlainValidator(_percent)]
Amount = Annotated[Number, PlainValidator(_amount)]
PerClass = Annotated[Mapping[str, Percent | None], BeforeValidator(_by_class)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The results of one method in one source."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    method: Text
    group: Text  # a key of GROUPS
    source: Text  # a key of Published.sources
    verified: Literal["V", "V2"]  # read in the source itself, or in a quotation
    protocol: Literal["ours", "differs", "unknown"]  # if not ours, the notes say why
    notes: tuple[Text, ...]
    sic: tuple[str, ...] = ()  # scores, costs or classes whose printed value is suspect
    split: Literal["train", "val", "test"] | None = None
    training_images: Positive | None = None
    resolution: tuple[Positive, Positive] | None = None  # height, width
    scores: Mapping[str, Percent | None] = dataclasses.field(default_factory=dict)  # by SCORES
    per_class_accuracy: PerClass = dataclasses.field(default_factory=dict)  # by class, or empty
    per_class_iou: PerClass = dataclasses.field(default_factory=dict)
    parameters_m: Amount | None = None  # millions
    # Milliseconds and megabytes, by COSTS.
    cost: Mapping[str, Amount | None] = dataclasses.field(default_factory=dict)
    iterations: Text | None = None
    class_weights: Literal["median frequency", "natural"] | None = None
    # Our corresponding network, and the options that identify it.
    model: Text | None = None
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    crf: bool = False
    sampled: bool = False  # the mean of samples with dropout
    pretrained: bool = False  # an encoder from ImageNet's weights, where other records have none


_PROTOCOL, _RECORDS = TypeAdapter(Protocol), TypeAdapter(Record)


@dataclasses.dataclass(frozen=True)
class Published:
    """The content of the file."""

    protocol: Protocol
    sources: Mapping[str, str]  # short name -> citation
    records: tuple[Record, ...]


def load(file: Path = FILE) -> Published:
    """Load and validate published results.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; a class, source or
        note is not declared; or a protocol that is not ours has no note. It names the record.
    """
    data = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    if tuple(data["classes"]) != CLASSES:
        raise UserError(f"{file}: classes are {data['classes']}, expected {list(CLASSES)}")
    protocol = _PROTOCOL.validate_python(data["protocol"])
    records = tuple(
        _record(fields, f"{file}: record {number}", data["sources"], data["notes"])
        for number, fields in enumerate(data["records"], 1)
    )
    return Published(protocol, data["sources"], records)


def _record(
    fields: dict[str, Any], where: str, sources: Mapping[str, str], notes: Mapping[str, str]
) -> Record:
    where += f" ({fields.get('method')}, {fields.get('source')})"
    try:
        record = _RECORDS.validate_python(fields)
    except ValidationError as error:
        raise schema.fault(error, where, "a record") from None

    for name, values, known in (
        ("group", [record.group], GROUPS),
        ("source", [record.source], sources),
        ("notes", record.notes, notes),
        ("sic", record.sic, (*SCORES, *COSTS, *CLASSES)),
    ):
        for value in values:
            if value not in known:
                raise UserError(f"{where}: {name} has {value!r}, expected {', '.join(known)}")
    for name, numbers, names in (("scores", record.scores, SCORES), ("cost", record.cost, COSTS)):
        if name in fields and tuple(numbers) != names:
            raise UserError(f"{where}: {name} has {list(numbers)}, expected {list(names)}")
    if record.protocol != "ours" and not record.notes:
        raise UserError(f"{where}: its protocol is not ours, expected a note that says why")
    if bool(record.scores) == bool(record.cost) or bool(record.scores) != bool(record.split):
        raise UserError(f"{where}: expected either scores and their split, or cost")
    return dataclasses.replace(record, notes=tuple(notes[note] for note in record.notes))


@functools.cache
def shipped() -> Published:
    """Return the published results in the package."""
    return load()


def records(group: str, split: str | None) -> list[Record]:
    """Return the records of a group and split (None for costs), in the order of the file."""
    return [r for r in shipped().records if r.group == group and r.split == split]


def follows_protocol(row: Row) -> bool:
    """Return whether a row is scored on CamVid's test images, all of them, at their own size."""
    protocol = shipped().protocol
    own_size = results.is_native(row) or tuple(row["resolution"]) == protocol.resolution
    return (
        row["dataset"] == "camvid"
        and row["split"] == "test"
        and row["num_images"] == protocol.test_images
        and own_size
    )


def closest(model: str, options: Mapping[str, Any]) -> Record | None:
    """Return the published test mIoU on CamVid to compare a network of ours with, or None.

    A record with model options is only of a network that has them. Records with our training
    images and resolution come first, then the highest mIoU. Reimplementations are left out.
    """
    found = [
        record
        for record in shipped().records
        if record.model == model
        and all(options.get(name) == value for name, value in record.model_options.items())
        and record.split == "test"
        and record.group in ("network", "tiramisu", "table1", "table3")
        and record.scores.get("mean_iou") is not None
    ]
    return max(found, key=lambda r: (r.protocol == "ours", r.scores["mean_iou"] or 0), default=None)
