"""Tables of the cost of networks, from rows of `segjax benchmark` and the SegNet paper."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal

from segjax.benchmark.measurements import AGAINST, Facts
from segjax.errors import UserError
from segjax.report.camvid_table import notes_of, size_text, source_notes
from segjax.report.columns import TableBuilder
from segjax.report.table import Footnotes, Table
from segjax.results import published
from segjax.results.published import Record
from segjax.results.schema import Row

# Batch sizes of the paper: times and inference memory, training memory.
_TIMED, _TRAINED = 1, 4

Number = Decimal | float | int | None


def paper(rows: Sequence[Row] = ()) -> Table:
    """Return the SegNet paper's Table 6 beside ours.

    Without rows, ours are only the parameters, at 4 bytes each. With rows, there is a group of
    lines for each device, precision and resolution: the networks of the paper, other networks that
    were measured, and the sum over those in both.

    Raises:
      UserError: two rows fit one line, or no row has a batch size of the paper.
    """
    records = published.records("cost", None)
    if not rows:
        return _paper_alone(records)
    lines, groups = [], []
    for setting, found in _settings(rows).items():
        members = _lines(records, found)
        lines += [*members, _total(members)]
        groups.append((setting, len(members) + 1))
    return _beside(records, lines, groups)


def _paper_alone(records: Sequence[Record]) -> Table:
    footnotes = Footnotes()
    parameters = [_parameters(record) for record in records]
    builder = TableBuilder(len(records))
    marks = [footnotes.marks(notes_of(record)) for record in records]
    builder.texts("network", [record.method for record in records], marks=marks)
    for name in published.COSTS:
        builder.scores(
            _heading(name),
            f"paper_{name}",
            [record.cost[name] for record in records],
            over="paper",
            sic=[name in record.sic for record in records],
        )
    megabytes = [round(4e-6 * count) for count in parameters]
    builder.counts("parameters", parameters, over="ours")
    builder.counts("model MB", megabytes, over="ours")
    builder.data("notes", [" ".join(notes_of(record)) for record in records])
    return builder.table(
        f"Cost at {size_text(records[0].resolution)}; paper: Caffe, memory at batch 4 in training, "
        "1 in inference; ours: parameters at 11 classes, and 4 bytes of each in millions of bytes.",
        notes=footnotes.listed() + source_notes(records),
    )


def _parameters(record: Record) -> int:
    """Return the number of parameters of our network at 11 classes."""
    import jax  # slow to import, and not needed for rows

    from segjax import models
    from segjax.models import summary

    model = models.create(str(record.model), summary.NUM_CLASSES, **record.model_options)
    shapes = summary.abstract(model, summary.SIZES[0])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@dataclasses.dataclass(frozen=True)
class _Line:
    """A network of the paper, of ours, or of both; or the sum over those in both."""

    name: str
    comparable: bool  # ours was measured at the paper's resolution
    notes: Sequence[str]
    paper: Mapping[str, Number]  # by published.COSTS
    ours: Mapping[str, Number]  # keys of published.COSTS, and training_step_ms
    ratios: Mapping[str, Number]  # theirs divided by ours; keys such as "torch forward"


def _settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by precision, device and resolution, in words."""
    settings: dict[str, list[Row]] = {}
    for row, device in zip(rows, _devices(rows), strict=True):
        if row["batch"] in (_TIMED, _TRAINED):
            words = f"{row['precision']} on {device} at {size_text(row['resolution'])}"
            settings.setdefault(words, []).append(row)
    if not settings:
        raise UserError(f"no row has batch {_TIMED} or {_TRAINED}, the batch sizes of Table 6")
    return settings


def _devices(rows: Sequence[Row]) -> list[str]:
    """Return the device of each row, with the processor and oneDNN of a CPU where these differ."""
    devices = [row["device"] for row in rows]
    processors = [row.get("processor", "") for row in rows]
    engines = [
        f"oneDNN {row['versions'].get('onednn') or 'off'}" if row["device"] == "cpu" else ""
        for row in rows
    ]
    columns = [devices, *(each for each in (processors, engines) if len(set(each)) > 1)]
    return [", ".join(filter(None, words)) for words in zip(*columns, strict=True)]


def _lines(records: Sequence[Record], rows: Sequence[Row]) -> list[_Line]:
    found: dict[str, dict[int, Row]] = {}
    comparable = size_text(rows[0]["resolution"]) == size_text(records[0].resolution)
    for row in rows:
        of_batch = found.setdefault(_named(row), {})
        if row["batch"] in of_batch:
            raise UserError(
                f"two rows have {_named(row)} at batch {row['batch']} in {row['precision']}, "
                "expected one"
            )
        of_batch[row["batch"]] = row
    lines = []
    for record in records:
        names = [name for name, its in found.items() if _fits(record, next(iter(its.values())))]
        if len(names) > 1:
            raise UserError(f"{names[0]} and {names[1]} both fit {record.method}, expected one")
        of_batch = found.pop(names[0]) if names else {}
        other = _options(next(iter(of_batch.values())), record.model_options) if of_batch else ""
        name = f"{record.method} ({other})" if other else record.method
        ours = _ours(of_batch), _ratios(of_batch)
        lines.append(_Line(name, comparable, notes_of(record), record.cost, *ours))
    for name, of_batch in found.items():
        lines.append(_Line(name, comparable, (), {}, _ours(of_batch), _ratios(of_batch)))
    return lines


def _fits(record: Record, row: Row) -> bool:
    options = row["model_options"]
    return row["model"] == record.model and all(
        options.get(name) == value for name, value in record.model_options.items()
    )


def _options(row: Row, without: Collection[str] = ()) -> str:
    options = row["model_options"].items()
    return ", ".join(f"{name} {value}" for name, value in options if name not in without)


def _named(row: Row) -> str:
    options = _options(row)
    return f"{row['model']} ({options})" if options else row["model"]


def _ours(of_batch: Mapping[int, Row]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    if _TIMED in of_batch:
        facts = Facts(of_batch[_TIMED])
        found["forward_ms"], found["backward_ms"] = facts.ms("forward"), facts.ms("backward")
        found["inference_mb"] = facts.memory_mb("forward", "compiled")
    if _TRAINED in of_batch:
        facts = Facts(of_batch[_TRAINED])
        found["training_mb"] = facts.memory_mb("training_step", "compiled")
        found["training_step_ms"] = facts.ms("training_step")
    if of_batch:
        found["model_mb"] = 4e-6 * next(iter(of_batch.values()))["parameters"]
    return found


def _ratios(of_batch: Mapping[int, Row]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for side in AGAINST:
        if _TIMED in of_batch:
            found[f"{side} forward"] = against(of_batch[_TIMED], side, "forward")
        if _TRAINED in of_batch:
            row = of_batch[_TRAINED]
            found[f"{side} training step"] = against(row, side, "training_step")
            found[f"{side} training memory"] = memory_against(row, side, "training_step")
    return found


def against(row: Row, side: str, program: str) -> float | None:
    """Return the time of another side divided by ours."""
    return _ratio(Facts(row, side).ms(program), Facts(row).ms(program))


def memory_against(row: Row, side: str, program: str) -> float | None:
    """Return the peak memory of another side divided by ours, of the device or the process."""
    for source in ("device", "process"):
        pair = [facts.memory_mb(program, source) for facts in (Facts(row, side), Facts(row))]
        if None not in pair:
            return _ratio(*pair)
    return None


def _ratio(theirs: Number, ours: Number) -> float | None:
    return None if theirs is None or not ours else float(theirs) / float(ours)


def _total(lines: Sequence[_Line]) -> _Line:
    """Return the sums over the networks that are both in the paper and measured, by cost."""
    paper: dict[str, Number] = {}
    ours: dict[str, Number] = {}
    for name in published.COSTS:
        pairs = [(line.paper.get(name), line.ours.get(name)) for line in lines]
        both = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
        paper[name], ours[name] = map(sum, zip(*both, strict=True)) if both else (None, None)
    return _Line("total of both", lines[0].comparable, (), paper, ours, {})


def _beside(
    records: Sequence[Record], lines: Sequence[_Line], groups: Sequence[tuple[str, int]]
) -> Table:
    footnotes = Footnotes()
    builder = TableBuilder(len(lines))
    marks = [footnotes.marks(line.notes) for line in lines]
    builder.texts("network", [line.name for line in lines], marks=marks)
    for name in published.COSTS:
        values = [line.paper.get(name) for line in lines]
        builder.numbers(_heading(name), f"paper_{name}", values, over="paper")
    for name in (*published.COSTS, "training_step_ms"):
        values = [line.ours.get(name) for line in lines]
        builder.numbers(_heading(name), f"ours_{name}", values, over="ours")
    for name in published.COSTS[:-1]:
        ratios = [
            _ratio(line.paper.get(name), line.ours.get(name)) if line.comparable else None
            for line in lines
        ]
        builder.numbers(_heading(name), f"ratio_{name}", ratios, over="paper / ours")
    for side in AGAINST:
        for program in ("forward", "training step", "training memory"):
            values = [line.ratios.get(f"{side} {program}") for line in lines]
            if any(value is not None for value in values):
                key = f"{side}_{program}".replace(" ", "_").replace(".", "_")
                builder.numbers(program, key, values, over=f"{side} / ours")
    return builder.table(
        f"Cost; paper: Caffe at {size_text(records[0].resolution)}; forward and backward at batch "
        f"{_TIMED}, in milliseconds; memory at batch {_TRAINED} in training, {_TIMED} in "
        "inference, in millions of bytes; ours: medians; backward is loss and gradient less the "
        "forward pass; memory as the compiled program plans it; a ratio above 1 is in our favor, "
        "and is given only at the resolution of the paper.",
        groups=groups,
        notes=footnotes.listed() + source_notes(records),
    )


def _heading(name: str) -> str:
    return name.replace("_", " ").replace("mb", "MB")


def listing(rows: Sequence[Row]) -> Table:
    """Return a table of all rows with derived quantities, one line per row."""
    builder = TableBuilder(len(rows))
    facts = [Facts(row) for row in rows]
    builder.texts("network", [_named(row) for row in rows])
    builder.texts("precision", [row["precision"] for row in rows])
    columns: dict[str, Sequence[str | None]] = {
        "resolution": [size_text(row["resolution"]) for row in rows],
        "device": _devices(rows),
    }
    for heading, texts in columns.items():
        if len(set(texts)) > 1:
            builder.texts(heading, texts)
        else:
            builder.data(heading, texts)
    builder.counts("batch", [row["batch"] for row in rows])
    builder.numbers("params M", "parameters_m", [row["parameters"] / 1e6 for row in rows])
    builder.numbers("model MB", "model_mb", [4e-6 * row["parameters"] for row in rows])
    for program, over in (("forward", "forward"), ("training_step", "training step")):
        for heading, key, values in _columns(facts, program):
            builder.numbers(heading, f"{program}_{key}", values, over=over)
        for key, values in _more(facts, program):
            builder.data(f"{program}_{key}", values)
    builder.numbers("backward ms", "backward_ms", [fact.ms("backward") for fact in facts])
    builder.numbers("compile s", "compile_seconds", [fact.compile_seconds for fact in facts])
    for side in AGAINST:
        if not any(side in row["sides"] for row in rows):
            continue
        for heading, ratios in (
            ("forward", [against(row, side, "forward") for row in rows]),
            ("training step", [against(row, side, "training_step") for row in rows]),
            ("inference memory", [memory_against(row, side, "forward") for row in rows]),
            ("training memory", [memory_against(row, side, "training_step") for row in rows]),
            ("logits differ", [_difference(row, side) for row in rows]),
        ):
            key = f"{side}_{heading}".replace(" ", "_").replace(".", "_")
            builder.numbers(heading, key, ratios, over=f"{side} / ours")
    failed = [
        f"{_named(row)} at batch {row['batch']} in {row['precision']}, {name}: {side['error']}."
        for row in rows
        for name, side in row["sides"].items()
        if side["error"]
    ]
    return builder.table(
        "Cost; medians; FLOPs: two for each MAC of convolutions and matrix products; "
        "peak: the rate of a large matrix product; backward: loss and gradient less the forward "
        "pass; MB: millions of bytes, as the compiled program plans them; another side's time or "
        "peak memory divided by ours is above 1 where ours is faster or smaller.",
        notes=[("", text) for text in failed],
    )


def _columns(facts: Sequence[Facts], program: str) -> Iterator[tuple[str, str, list[Number]]]:
    """Yield heading, key and values of the printed columns of a program."""
    yield "GMACs", "gmacs", [_times(fact.flops(program), 0.5e-9) for fact in facts]
    yield "GFLOPs", "gflops", [_times(fact.flops(program), 1e-9) for fact in facts]
    yield "ms", "ms", [fact.ms(program) for fact in facts]
    yield "IQR %", "iqr_percent", [_times(fact.spread(program), 100) for fact in facts]
    yield "images/s", "images_per_second", [fact.images_per_second(program) for fact in facts]
    yield "% of peak", "percent_of_peak", [_times(fact.share(program), 100) for fact in facts]
    yield "MB", "compiled_mb", [fact.memory_mb(program, "compiled") for fact in facts]


def _more(facts: Sequence[Facts], program: str) -> Iterator[tuple[str, list[Number]]]:
    """Yield key and values of the columns that only the records have."""
    yield "floor_ms", [fact.arithmetic_ms(program) for fact in facts]
    yield "traffic_ms", [fact.traffic_ms(program) for fact in facts]
    for source in ("device", "process"):
        yield f"{source}_mb", [fact.memory_mb(program, source) for fact in facts]


def _times(value: Number, factor: float) -> float | None:
    return None if value is None else factor * float(value)


def _difference(row: Row, side: str) -> float | None:
    """Return the greatest difference of logits as a fraction of the greatest logit."""
    logits = (row["sides"].get(side) or {}).get("logits")
    return logits["greatest_difference"] / logits["greatest"] if logits else None
