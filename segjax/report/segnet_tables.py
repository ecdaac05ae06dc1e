"""Tables 1 and 3 of the SegNet paper (arXiv 1511.00561v3) beside ours, in percent."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from segjax import results
from segjax.errors import UserError, listing, warn
from segjax.report import tables
from segjax.report.camvid_table import check_classes, notes_of, size_text, source_notes
from segjax.report.columns import Score, TableBuilder, percent
from segjax.report.table import Footnotes, Table
from segjax.results import published
from segjax.results.published import Record
from segjax.results.summary import SCORES, Summary

# loss.class_weights -> its name in Table 1.
_WEIGHTS = {
    "none": "natural",
    "segnet": "median frequency",
    "median_frequency": "median frequency",
}
_WEIGHTED = {"median frequency": "Median-frequency balancing", "natural": "Natural frequencies"}
_LEAST_RANKED = 3  # least number of lines for a rank correlation


def table1(
    summaries: Sequence[Summary] = (), *, split: str = "test", interval: bool = False
) -> Table:
    """Return the decoder variants of the SegNet paper's Table 1, with both class weightings.

    Our runs beside them have the same network and `loss.class_weights` none (natural frequencies),
    segnet or median_frequency.

    Raises:
      UserError: the paper has no such split, no summary fits a line, or two fit one line.
    """

    def fits(record: Record, summary: Summary) -> bool:
        weights = str(summary.overrides.get("loss.class_weights"))
        return (
            summary.row["model"] == record.model
            and _WEIGHTS.get(weights) == record.class_weights
            and "inference" not in summary.row
            and _whole(summary)
        )

    records = _records("table1", split)
    ours = _matched(records, summaries, fits)
    builder = TableBuilder(len(records), interval)
    builder.texts("variant", [record.method for record in records])
    builder.data("class_weights", [record.class_weights for record in records])
    builder.scores(
        "params M", "paper_parameters_m", [r.parameters_m for r in records], over="paper"
    )
    _side_by_side(builder, records, ours)
    correlations = [
        fact
        for weights in _WEIGHTED
        for name in ("mean_iou", "boundary_f")
        for fact in _rank_correlation(records, ours, weights, name)
    ]
    notes = [
        f"Rank correlation of {SCORES[fact['score']]} between the paper and ours over "
        f"{fact['variants']} variants, {fact['class_weights']} weights: "
        f"Spearman {fact['spearman']:.2f}, Kendall {fact['kendall']:.2f}."
        for fact in correlations
    ]
    weightings: list[str | None] = [record.class_weights for record in records]
    return builder.table(
        f"Decoder variants, CamVid {split}; {_stated(records, ours, interval)}.",
        groups=[(title, weightings.count(weights)) for weights, title in _WEIGHTED.items()],
        notes=[("", note) for note in notes] + source_notes(records),
        facts={"rank_correlation": correlations},
    )


def table3(
    summaries: Sequence[Summary] = (), *, split: str = "test", interval: bool = False
) -> Table:
    """Return the controlled benchmark of the SegNet paper's Table 3, ours beside its last column.

    Raises:
      UserError: as `table1`.
    """

    def fits(record: Record, summary: Summary) -> bool:
        refined = summary.row.get("inference", "").startswith("crf")
        return (
            record.iterations not in ("40K", "80K")
            and summary.row["model"] == record.model
            and refined == record.crf
            and ("inference" not in summary.row or refined)
            and _whole(summary)
            and all(_option(summary, name) == v for name, v in record.model_options.items())
        )

    records = _records("table3", split)
    ours = _matched(records, summaries, fits)
    footnotes = Footnotes()
    builder = TableBuilder(len(records), interval)
    marks = [footnotes.marks(notes_of(record)) for record in records]
    builder.texts("network", [record.method for record in records], marks=marks)
    builder.texts("iterations", [record.iterations for record in records])
    _side_by_side(builder, records, ours)
    builder.data("notes", [" ".join(notes_of(record)) for record in records])
    return builder.table(
        f"Controlled benchmark, CamVid {split}; {_stated(records, ours, interval)}.",
        notes=footnotes.listed() + source_notes(records),
    )


def _records(group: str, split: str) -> list[Record]:
    found = published.records(group, split)
    if not found:
        known = {record.split for record in published.shipped().records if record.group == group}
        splits = " or ".join(sorted(filter(None, known)))
        raise UserError(f"{group} has no split {split!r}, expected {splits}")
    return found


def _matched(
    records: Sequence[Record],
    summaries: Sequence[Summary],
    fits: Callable[[Record, Summary], bool],
) -> list[Summary | None]:
    """Return for each record the summary that fits it, or None."""
    check_classes(summaries)
    matched: list[Summary | None] = []
    for record in records:
        found = [summary for summary in summaries if fits(record, summary)]
        if len(found) > 1:
            raise UserError(
                f"two configs fit {record.method}: {_title(found[0])} and {_title(found[1])}; "
                "give the results of one"
            )
        matched.append(found[0] if found else None)
    if summaries and not any(matched):
        models = dict.fromkeys(str(record.model) for record in records)
        raise UserError(f"none of the results fits a line, expected rows of {', '.join(models)}")
    if unplaced := [_title(summary) for summary in summaries if summary not in matched]:
        warn(f"not in the table, as no line fits: {listing(unplaced)}")
    return matched


def _title(summary: Summary) -> str:
    return f"{results.title(summary.row)} at {size_text(summary.row['resolution'])}"


def _whole(summary: Summary) -> bool:
    """Return whether a row is scored on all images of its split."""
    images = published.shipped().protocol.test_images
    return summary.row["split"] != "test" or summary.row["num_images"] == images


def _option(summary: Summary, name: str) -> Any:
    """Return a model option of a row, or the default of the model."""
    from segjax import models  # slow to import

    model = models.MODELS[summary.row["model"]]
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    return summary.row["model_options"].get(name, defaults[name])


def _side_by_side(
    builder: TableBuilder, records: Sequence[Record], ours: Sequence[Summary | None]
) -> None:
    """Add columns of the paper's scores, ours, and their differences."""
    theirs: dict[str, list[Score]] = {
        name: [record.scores[name] for record in records] for name in SCORES
    }
    mine: dict[str, list[Score]] = {
        name: [summary.scores[name] if summary else None for summary in ours] for name in SCORES
    }
    printed = [name for name in SCORES if any(score is not None for score in theirs[name])]
    for name in printed:
        builder.scores(SCORES[name], f"paper_{name}", theirs[name], over="paper")
    if not any(ours):
        return
    builder.counts("seeds", [len(s.seeds) if s else None for s in ours], over="ours", absent="")
    measured = [name for name in printed if any(mine[name])]
    for name in measured:
        builder.scores(SCORES[name], f"ours_{name}", mine[name], over="ours", absent="")
    for name in measured:
        builder.differences(SCORES[name], f"difference_{name}", mine[name], theirs[name])


def _stated(records: Sequence[Record], ours: Sequence[Summary | None], interval: bool) -> str:
    first = records[0]
    said = f"percent; paper: {first.training_images} training images, {size_text(first.resolution)}"
    sizes = dict.fromkeys(size_text(summary.row["resolution"]) for summary in ours if summary)
    if not sizes:
        return said
    found = ", ".join(map(str, sizes))
    widths = {_option(summary, "width") for summary in ours if summary}
    if any("width" in summary.row["model_options"] for summary in ours if summary):
        found += f", networks of width {', '.join(map(str, sorted(widths)))}"
    trained = published.shipped().protocol.training_images
    spread = tables.spread(interval)
    return f"{said}; ours: {trained} training images, {found}, {spread} over the seeds"


def _rank_correlation(
    records: Sequence[Record], ours: Sequence[Summary | None], weights: str, name: str
) -> list[dict[str, Any]]:
    """Return the rank correlation of our scores with the paper's; [] for too few variants."""
    from scipy import stats  # slow to import

    pairs = [
        (percent(record.scores[name]), percent(summary.scores[name]))
        for record, summary in zip(records, ours, strict=True)
        if summary and record.class_weights == weights
    ]
    known = [pair for pair in pairs if None not in pair]
    if len(known) < _LEAST_RANKED or any(len(set(side)) == 1 for side in zip(*known, strict=True)):
        return []
    theirs, mine = zip(*known, strict=True)
    return [
        {
            "score": name,
            "class_weights": weights,
            "variants": len(known),
            "spearman": float(stats.spearmanr(theirs, mine).statistic),
            "kendall": float(stats.kendalltau(theirs, mine).statistic),
        }
    ]
