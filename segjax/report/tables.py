"""The table of result rows: one line per config, over its seeds."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from segjax import results
from segjax.errors import UserError
from segjax.report.columns import percent
from segjax.report.table import Cell, Column, Table, draw
from segjax.results import published
from segjax.results.published import Record
from segjax.results.schema import Row
from segjax.results.summary import MEAN_SCORES, MEASURED, PER_CLASS, SCORES, Estimate, Summary


def render(summaries: Sequence[Summary]) -> str:
    """Return `table` as Markdown."""
    return draw(table(summaries))


def table(summaries: Sequence[Summary], per_class: str = "iou", *, interval: bool = False) -> Table:
    """Return a table with a line for each summary, in the order given.

    Scores are percentages with one decimal. Overrides and settings that differ between the lines
    are columns, shared ones are in the title, and the best mean of a column is bold. The records
    hold everything, as fractions at full precision.

    Args:
      summaries: from `results.summary.summarize`, at least one, with equal class names.
      per_class: "iou" or "accuracy", the per-class columns.
      interval: print the 95% interval over the seeds, not the deviation.

    Raises:
      UserError: class names differ.
    """
    names = summaries[0].row["class_names"]
    for summary in summaries:
        if summary.row["class_names"] != names:
            raise UserError(
                f"{results.title(summary.row)}: its classes are not those of "
                f"{results.title(summaries[0].row)}, expected one set of classes in a table"
            )
    apart = differing(summaries)
    alike = {
        heading: next(filter(None, map(cell, summaries)), "")
        for heading, cell in _SETTINGS.items()
        if heading not in apart
    }
    stated = [f"{name} {value}" for name, value in alike.items() if value not in ("", "-")]
    stated += [f"percent, {spread(interval)} over the seeds"]
    stated += [f"per class: {PER_CLASS[per_class]}"]
    return Table(
        title="; ".join(stated) + ".",
        columns=_columns(summaries, apart, per_class, interval),
        records=[_record(summary, summaries, per_class, interval) for summary in summaries],
    )


def spread(interval: bool) -> str:
    """Describe what `Estimate.percent` prints."""
    if interval:
        return "mean [95% interval of the mean, Student's t]"
    return "mean ± sample standard deviation"


def text(value: Any) -> str:
    """Format the value of an override."""
    return value if isinstance(value, str) else json.dumps(value)


def _size(summary: Summary) -> str:
    return "x".join(map(str, summary.row["resolution"]))


# Heading -> value of a setting: a column if the lines differ, else part of the title.
_SETTINGS: dict[str, Callable[[Summary], str]] = {
    "experiment": lambda summary: summary.row["experiment"],
    "dataset": lambda summary: summary.row["dataset"],
    "split": lambda summary: summary.row["split"],
    "images": lambda summary: str(summary.row["num_images"]),
    "resolution": _size,
    "steps": lambda summary: str(summary.row["steps"] or ""),
    "batch norm": lambda summary: summary.row["batch_norm"] or "",
    "inference": lambda summary: summary.row.get("inference", "-"),
}


def differing(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Return {heading: texts} of the columns that distinguish the lines, except the model."""
    keys = dict.fromkeys(name for summary in summaries for name in summary.overrides)
    keys.pop("model.name", None)
    columns = {}
    for key in keys:
        cells = [text(s.overrides[key]) if key in s.overrides else "" for s in summaries]
        # A baseline without a seed has no config that could differ.
        if len({cell for cell, s in zip(cells, summaries, strict=True) if s.seeds}) > 1:
            columns[key] = cells
    for heading, cell in _SETTINGS.items():
        cells = [cell(s) for s in summaries]
        if len(set(cells) - {""}) > 1:
            columns[heading] = cells
    lines = list(zip([s.row["model"] for s in summaries], *columns.values(), strict=True))
    if len(set(lines)) < len(lines):
        columns["config"] = [s.row["config_digest"] or "" for s in summaries]
    return columns


def _columns(
    summaries: Sequence[Summary], apart: dict[str, list[str]], per_class: str, interval: bool
) -> list[Column]:
    columns = [
        Column(heading, list(map(Cell, cells)), names=True, ranks=_numbers(cells))
        for heading, cells in apart.items()
    ]
    columns += [
        Column("model", [Cell(s.row["model"]) for s in summaries], names=True),
        Column(
            "params M",
            [Cell(f"{s.row['parameters'] / 1e6:.2f}") for s in summaries],
            ranks=[s.row["parameters"] for s in summaries],
        ),
        Column(
            "seeds",
            [Cell(str(len(s.seeds)) if s.seeds else "-") for s in summaries],
            ranks=[len(s.seeds) for s in summaries],
        ),
    ]
    for name, heading in SCORES.items():
        estimates = [s.scores[name] for s in summaries]
        columns.append(_scores(heading, name, estimates, interval, printed=any(estimates)))
    for name, heading in (MEAN_SCORES | MEASURED).items():
        estimates = [s.scores[name] for s in summaries]
        least = name == "expected_calibration_error"
        columns.append(_scores(heading, name, estimates, interval, printed=False, least=least))
    columns += _published_columns(summaries)
    for k, name in enumerate(summaries[0].row["class_names"]):
        estimates = [s.per_class[per_class][k] for s in summaries]
        columns.append(_scores(name, f"{per_class}_{name}", estimates, interval, rotated=True))
    return columns


def _published(summary: Summary) -> Record | None:
    """Return the published result of a whole network, if the row is scored on the same images."""
    row, inference = summary.row, summary.row.get("inference", "")
    record = published.closest(row["model"], row["model_options"])
    refined = inference not in ("", "native")
    if record and record.sampled:
        refined = not re.fullmatch(r"(native, )?mean of \d+ samples", inference)
    return None if refined or _narrowed(row) or not published.follows_protocol(row) else record


def _narrowed(row: Row) -> bool:
    """Return whether the network of a row is smaller than in its paper.

    Fully connected layers of 1024 features, as the SegNet paper and DeepLab have them, are not.
    """
    options = row["model_options"]
    return not {"width", "growth"}.isdisjoint(options) or options.get("fc_width", 1024) < 1024


def _published_columns(summaries: Sequence[Summary]) -> list[Column]:
    """Return the published mIoU and ours minus it, or no column if nothing is published."""
    records = [_published(summary) for summary in summaries]
    if not any(records):
        return []
    ours = [percent(summary.scores["mean_iou"]) for summary in summaries]
    theirs = [percent(record.scores["mean_iou"]) if record else None for record in records]
    differences = [
        None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)
    ]
    return [
        Column(
            "published",
            list(map(Cell, map(_published_text, records, summaries))),
            ranks=theirs,
            keys=("published_mean_iou",),
        ),
        Column(
            "difference",
            [Cell("-" if value is None else f"{value:+.1f}") for value in differences],
            ranks=differences,
        ),
    ]


def _published_text(record: Record | None, summary: Summary) -> str:
    """Return the published mIoU, and what of its protocol differs from ours."""
    if record is None:
        return "-"
    protocol = published.shipped().protocol
    apart = []
    if record.training_images not in (None, protocol.training_images):
        apart.append(f"{record.training_images} images")
    if record.resolution and tuple(record.resolution) != protocol.resolution:
        apart.append("x".join(map(str, record.resolution)))
    if record.protocol == "unknown":
        apart.append("protocol unknown")
    # Older rows tell it by their overrides alone.
    started = summary.row["overrides"].get("model.pretrained")
    if record.pretrained and not summary.row.get("pretrained", started):
        apart.append("from pretrained weights")
    return f"{record.scores['mean_iou']}" + (f" ({', '.join(apart)})" if apart else "")


def _numbers(cells: Sequence[str]) -> list[float | None] | None:
    """Return the values of cells, None for empty ones; None if one is not a number."""
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return None


def _scores(
    heading: str,
    key: str,
    estimates: Sequence[Estimate | None],
    interval: bool,
    *,
    rotated: bool = False,
    printed: bool = True,
    least: bool = False,
) -> Column:
    """Return a column of scores; if there are several lines, the best printed mean is bold.

    The best is the greatest, or with `least` the smallest.
    """
    means = [None if e is None else round(100 * e.mean, 1) for e in estimates]
    best = (min if least else max)((mean for mean in means if mean is not None), default=None)
    cells = [
        Cell("-")
        if estimate is None
        else Cell(estimate.percent(interval), bold=mean == best and len(estimates) > 1)
        for estimate, mean in zip(estimates, means, strict=True)
    ]
    ends = ("mean", "sd", *(("low", "high") if interval else ()))
    return Column(
        heading,
        cells,
        ranks=[None if e is None else e.mean for e in estimates],
        keys=tuple(f"{key}_{end}" for end in ends),
        rotated=rotated,
        printed=printed,
    )


def _record(s: Summary, summaries: Sequence[Summary], per_class: str, interval: bool) -> Row:
    keys = dict.fromkeys(name for summary in summaries for name in summary.overrides)
    record: dict[str, Any] = {"experiment": s.row["experiment"]}
    record |= {key: s.overrides.get(key) for key in keys}
    record |= {name: s.row[name] for name in ("model", "parameters", "config_digest")}
    record |= {name: s.row[name] for name in ("dataset", "split", "num_images")}
    record |= {"resolution": _size(s), "batch_norm": s.row["batch_norm"]}
    record |= {"inference": s.row.get("inference")}
    record |= {"steps": s.row["steps"], "n": max(1, len(s.seeds)), "seeds": s.seeds}
    theirs = _published(s)
    percentage = theirs.scores["mean_iou"] if theirs else None
    record |= {"published_mean_iou": None if percentage is None else float(percentage / 100)}
    classes = zip(s.row["class_names"], s.per_class[per_class], strict=True)
    estimates = s.scores | {f"{per_class}_{name}": estimate for name, estimate in classes}
    for name, estimate in estimates.items():
        record[f"{name}_mean"] = estimate.mean if estimate else None
        record[f"{name}_sd"] = estimate.sd if estimate else None
        if interval:
            ends = estimate.interval() if estimate else None
            record[f"{name}_low"], record[f"{name}_high"] = ends or (None, None)
    return record
