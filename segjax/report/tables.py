"""Result rows grouped over seeds, and the table of them."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segjax import results
from segjax.errors import UserError
from segjax.report.table import Cell, Column, Table, draw
from segjax.results.schema import Row

SCORES = {
    "global_accuracy": "G",
    "class_accuracy": "C",
    "mean_iou": "mIoU",
    "boundary_f": "BF",
}
PER_CLASS = {"iou": "IoU", "accuracy": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score over the runs of a group: mean fraction and sample standard deviation (ddof 1)."""

    mean: float
    sd: float | None  # None for a single run
    runs: int = 1

    def interval(self) -> tuple[float, float] | None:
        """Ends of the 95% interval of the mean over seeds, Student's t; None for a single run."""
        if self.sd is None:
            return None
        from scipy import stats  # of some weight, and seldom asked for

        reach = float(stats.t.ppf(0.975, self.runs - 1)) * self.sd / math.sqrt(self.runs)
        return self.mean - reach, self.mean + reach

    def percent(self, interval: bool = False) -> str:
        """As printed: the mean with the deviation or the interval, where there are several runs."""
        text = f"{100 * self.mean:.1f}"
        ends = self.interval() if interval else None
        if ends:
            return f"{text} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        return text if self.sd is None else f"{text} ± {100 * self.sd:.1f}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The runs of one config on one split."""

    row: Row  # the first of them: what they have in common is read from it
    overrides: Row  # without the seed
    seeds: tuple[int, ...]  # ascending; empty for a rule that has no seed, such as "all Road"
    scores: dict[str, Estimate | None]  # by the names of SCORES; None: not measured in all runs
    per_class: dict[str, tuple[Estimate | None, ...]]  # by PER_CLASS, K each; None: absent class


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), sd, len(known))


def _summary(rows: Sequence[Row]) -> Summary:
    return Summary(
        row=rows[0],
        overrides=results.overrides(rows[0]),
        seeds=tuple(sorted(row["seed"] for row in rows if row["seed"] is not None)),
        scores={name: _estimate([row[name] for row in rows]) for name in SCORES},
        per_class={
            kind: tuple(
                _estimate([row[f"per_class_{kind}"][k] if present else None for row in rows])
                for k, present in enumerate(rows[0]["present"])
            )
            for kind in PER_CLASS
        },
    )


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Groups rows over seeds; highest mean mIoU first.

    A group has one experiment, overrides but for the seed, model, config digest and evaluation
    (data set, split, number of images, resolution, classes, BatchNorm, inference). Rows that
    differ in their digest alone are groups of their own, which `render` tells apart by it. A run
    that is there twice with the same counts is counted once.

    Raises:
      UserError: two different results of one seed in a group, or runs of one group that were scored
        on different labels.
    """
    groups: dict[str, dict[int | None, Row]] = {}
    for row in rows:
        group = groups.setdefault(results.group_key(row), {})
        twin = group.setdefault(row["seed"], row)
        if twin["confusion"] != row["confusion"]:
            raise UserError(
                f"{results.title(row)}: two different results (finished {twin['finished']} and "
                f"{row['finished']}), expected one for each seed"
            )
        first = next(iter(group.values()))
        if list(map(sum, first["confusion"])) != list(map(sum, row["confusion"])):
            raise UserError(
                f"{results.title(row)}: scored on other labels than {results.title(first)}"
            )
    summaries = [_summary(list(group.values())) for group in groups.values()]

    def mean_iou(summary: Summary) -> float:
        estimate = summary.scores["mean_iou"]
        return estimate.mean if estimate else 0.0

    return sorted(summaries, key=mean_iou, reverse=True)


def render(summaries: Sequence[Summary], format: str = "markdown", per_class: str = "iou") -> str:
    """`table` as text, in one of `typesetting.FORMATS`."""
    return draw(table(summaries, per_class), format)


def table(summaries: Sequence[Summary], per_class: str = "iou", *, interval: bool = False) -> Table:
    """One table: a line for each summary, in the order given.

    Printed, in percent with one decimal, what tells the lines apart has columns (overrides;
    experiment, evaluation or config digest where they differ), what they share is stated above, and
    the best mean of a column is bold. As data it has everything, in fractions at full precision.

    Args:
      summaries: from `summarise`; one set of class names.
      per_class: "iou" or "accuracy", the per-class columns.
      interval: the 95% interval over the seeds in place of the deviation.
    """
    if per_class not in PER_CLASS:
        raise UserError(f"per-class columns {per_class!r}, expected {' or '.join(PER_CLASS)}")
    if not summaries:
        raise UserError("no results to show, expected at least one")
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
    """What `Estimate.percent` prints."""
    if interval:
        return "mean [95% interval of the mean, Student's t]"
    return "mean ± sample standard deviation"


def text(value: Any) -> str:
    """The value of an override as it is printed."""
    return value if isinstance(value, str) else json.dumps(value)


def _size(summary: Summary) -> str:
    return "x".join(map(str, summary.row["resolution"]))


# Heading -> value: a column where the lines differ in it, else stated above the table.
_SETTINGS: dict[str, Callable[[Summary], str]] = {
    "experiment": lambda summary: summary.row["experiment"],
    "dataset": lambda summary: summary.row["dataset"],
    "split": lambda summary: summary.row["split"],
    "images": lambda summary: str(summary.row["num_images"]),
    "resolution": _size,
    "batch norm": lambda summary: summary.row["batch_norm"] or "",
    "inference": lambda summary: summary.row.get("inference", "-"),
}


def differing(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Heading -> cells of the columns that tell the lines apart, but for the model's name."""
    keys = dict.fromkeys(name for summary in summaries for name in summary.overrides)
    keys.pop("model.name", None)
    columns = {}
    for key in keys:
        cells = [text(s.overrides[key]) if key in s.overrides else "" for s in summaries]
        # A rule without a seed has no config that could differ from the others'.
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
        Column(heading, list(map(Cell, cells)), names=True, ranks=_numbers(summaries, heading))
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
    for k, name in enumerate(summaries[0].row["class_names"]):
        estimates = [s.per_class[per_class][k] for s in summaries]
        columns.append(_scores(name, f"{per_class}_{name}", estimates, interval, turned=True))
    return columns


def _numbers(summaries: Sequence[Summary], key: str) -> list[float | None] | None:
    """The values of an override where all are numbers."""
    values = [summary.overrides.get(key) for summary in summaries]
    return values if all(v is None or type(v) in (int, float) for v in values) else None


def _scores(
    heading: str,
    key: str,
    estimates: Sequence[Estimate | None],
    interval: bool,
    *,
    turned: bool = False,
    printed: bool = True,
) -> Column:
    """A column; the best mean, as printed, in bold if there is one to beat."""
    means = [None if e is None else round(100 * e.mean, 1) for e in estimates]
    best = max((mean for mean in means if mean is not None), default=None)
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
        turned=turned,
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
    record |= {"n": max(1, len(s.seeds)), "seeds": s.seeds}
    classes = zip(s.row["class_names"], s.per_class[per_class], strict=True)
    estimates = s.scores | {f"{per_class}_{name}": estimate for name, estimate in classes}
    for name, estimate in estimates.items():
        record[f"{name}_mean"] = estimate.mean if estimate else None
        record[f"{name}_sd"] = estimate.sd if estimate else None
        if interval:
            ends = estimate.interval() if estimate else None
            record[f"{name}_low"], record[f"{name}_high"] = ends or (None, None)
    return record
