"""Tables drawn from result rows: grouped over seeds, as Markdown or CSV."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segjax import results
from segjax.errors import UserError
from segjax.results import Row

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
    return Estimate(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


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
    """Renders one table: a line for each summary, in the order given.

    In Markdown, what tells the lines apart has columns (overrides; experiment, evaluation or config
    digest where they differ) and what they share is stated above; CSV has a column for everything.

    Args:
      summaries: from `summarise`; one set of class names.
      format: "markdown" (percent with one decimal, mean ± sd, the best mean of a column bold) or
        "csv" (fractions in full precision; empty where there is no value).
      per_class: "iou" or "accuracy", the per-class columns.
    """
    if format not in ("markdown", "csv"):
        raise UserError(f"table format {format!r}, expected markdown or csv")
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
    return (_markdown if format == "markdown" else _csv)(summaries, per_class)


def _text(value: Any) -> str:
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


def _differing(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Heading -> cells of the columns that tell the lines apart, but for the model's name."""
    keys = dict.fromkeys(name for summary in summaries for name in summary.overrides)
    columns = {}
    for key in keys:
        cells = [_text(s.overrides[key]) if key in s.overrides else "" for s in summaries]
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


def _markdown(summaries: Sequence[Summary], per_class: str) -> str:
    columns = _differing(summaries)
    alike = {
        heading: next(filter(None, map(cell, summaries)), "")
        for heading, cell in _SETTINGS.items()
        if heading not in columns
    }
    left = [*columns.items(), ("model", [s.row["model"] for s in summaries])]
    right = [
        ("params M", [f"{s.row['parameters'] / 1e6:.2f}" for s in summaries]),
        ("seeds", [str(len(s.seeds)) if s.seeds else "-" for s in summaries]),
    ]
    for name, heading in SCORES.items():
        if any(s.scores[name] for s in summaries):
            right.append((heading, _percents([s.scores[name] for s in summaries])))
    for k, name in enumerate(summaries[0].row["class_names"]):
        right.append((name, _percents([s.per_class[per_class][k] for s in summaries])))

    drawn = [_column(*column, str.ljust) for column in left]
    drawn += [_column(*column, str.rjust) for column in right]
    lines = ["| " + " | ".join(cells) + " |" for cells in zip(*drawn, strict=True)]
    stated = [f"{name} {value}" for name, value in alike.items() if value not in ("", "-")]
    stated += ["percent, mean ± sample standard deviation over the seeds"]
    stated += [f"per class: {PER_CLASS[per_class]}"]
    return "; ".join(stated) + ".\n\n" + "\n".join(lines) + "\n"


def _column(heading: str, cells: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    """The heading, the rule below it and the cells of a Markdown column, all of one width."""
    texts = [text.replace("|", r"\|") for text in (heading, *cells)]
    width = max(3, *map(len, texts))
    rule = "-" * width if justify is str.ljust else "-" * (width - 1) + ":"
    first, *rest = [justify(text, width) for text in texts]
    return [first, rule, *rest]


def _percents(estimates: Sequence[Estimate | None]) -> list[str]:
    """The cells of one column; the best mean, as printed, in bold if there is one to beat."""
    means = [None if e is None else round(100 * e.mean, 1) for e in estimates]
    best = max((mean for mean in means if mean is not None), default=None)
    cells = []
    for estimate, mean in zip(estimates, means, strict=True):
        if estimate is None:
            cells.append("-")
            continue
        cell = f"{mean:.1f}" + ("" if estimate.sd is None else f" ± {100 * estimate.sd:.1f}")
        cells.append(f"**{cell}**" if mean == best and len(estimates) > 1 else cell)
    return cells


def _csv(summaries: Sequence[Summary], per_class: str) -> str:
    keys = dict.fromkeys(name for summary in summaries for name in summary.overrides)
    lines: list[dict[str, Any]] = []
    for s in summaries:
        line = {"experiment": s.row["experiment"]}
        line |= {key: _text(s.overrides[key]) if key in s.overrides else "" for key in keys}
        line |= {name: s.row[name] for name in ("model", "parameters", "config_digest")}
        line |= {name: s.row[name] for name in ("dataset", "split", "num_images")}
        line |= {"resolution": _size(s), "batch_norm": s.row["batch_norm"]}
        line |= {"inference": s.row.get("inference")}
        line |= {"n": max(1, len(s.seeds)), "seeds": " ".join(map(str, s.seeds))}
        classes = zip(s.row["class_names"], s.per_class[per_class], strict=True)
        estimates = s.scores | {f"{per_class}_{name}": estimate for name, estimate in classes}
        for name, estimate in estimates.items():
            line[f"{name}_mean"] = estimate.mean if estimate else None
            line[f"{name}_sd"] = estimate.sd if estimate else None
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
