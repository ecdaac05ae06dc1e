"""The CamVid table: published methods, then our runs, in percent."""

from collections.abc import Iterable, Sequence

from segjax import results
from segjax.errors import UserError
from segjax.report import tables
from segjax.report.columns import Score, TableBuilder
from segjax.report.table import Footnotes, Table
from segjax.results import published
from segjax.results.published import Record
from segjax.results.summary import PER_CLASS, SCORES, Summary

# Per-class score -> groups of methods whose papers print it.
_GROUPS = {
    "accuracy": ("unary", "network", "crf"),
    "iou": ("network", "tiramisu", "reimplementation"),
}
GROUPS = tuple(dict.fromkeys(group for groups in _GROUPS.values() for group in groups))
# In the order of the papers.
_SCORES = ("class_accuracy", "global_accuracy", "mean_iou", "boundary_f")
# Settings that are columns already.
_SHOWN = ("resolution", "images", "inference")
_SECOND_HAND = "Read in a quotation, not in the source itself."
_SIC = "(sic): printed like this in the source, but suspect."


def camvid(
    summaries: Sequence[Summary] = (),
    *,
    per_class: str = "accuracy",
    groups: Sequence[str] | None = None,
    split: str = "test",
    interval: bool = False,
) -> Table:
    """Return the table of the methods published on CamVid, followed by our runs.

    Args:
      summaries: our runs.
      per_class: "accuracy" or "iou", the per-class columns.
      groups: groups of published methods, from GROUPS; None: those whose papers print `per_class`.
      split: split of the published scores.
      interval: print the 95% interval over the seeds, not the deviation.

    Raises:
      UserError: a group is unknown, it has no published results on the split, or the classes of a
        row are not CamVid's.
    """
    for group in groups or ():
        if group not in GROUPS:
            raise UserError(f"unknown group of methods {group!r}, expected {', '.join(GROUPS)}")
    chosen = dict.fromkeys(groups or _GROUPS[per_class])
    members = {group: published.records(group, split) for group in chosen}
    records = [record for group in members.values() for record in group]
    if not records and not summaries:
        raise UserError(f"no published results on split {split!r} in {', '.join(chosen)}")
    check_classes(summaries)
    labels = _labels(summaries)

    footnotes = Footnotes()
    notes = [notes_of(record) for record in records] + [_our_notes(s) for s in summaries]
    trained = [r.training_images for r in records] + [_training_images(s) for s in summaries]
    sizes = [size_text(r.resolution) for r in records] + [
        size_text(s.row["resolution"]) for s in summaries
    ]
    ours = [None] * len(records)
    builder = TableBuilder(len(records) + len(summaries), interval)
    builder.texts(
        "method",
        [record.method for record in records] + labels,
        marks=[footnotes.marks(texts) for texts in notes],
    )
    builder.data("group", [record.group for record in records] + ["ours"] * len(summaries))
    builder.texts("source", [r.source for r in records] + ["ours"] * len(summaries), names=False)
    builder.data("verified", [r.verified for r in records] + [None] * len(summaries))
    builder.data("protocol", [r.protocol for r in records] + [_protocol(s) for s in summaries])
    builder.counts("training images", trained, rotated=True)
    builder.texts("resolution", sizes, names=False)
    if summaries:
        builder.counts("seeds", [*ours, *(len(s.seeds) or None for s in summaries)], absent="")
    for place, name in enumerate(published.CLASSES):
        theirs = [getattr(record, f"per_class_{per_class}").get(name) for record in records]
        builder.scores(
            name,
            f"{per_class}_{name}",
            theirs + [_per_class(summary, per_class)[place] for summary in summaries],
            rotated=True,
            sic=[name in record.sic for record in records] + [False] * len(summaries),
        )
    for name in _SCORES:
        builder.scores(
            SCORES[name],
            name,
            [r.scores[name] for r in records] + [s.scores[name] for s in summaries],
            sic=[name in record.sic for record in records] + [False] * len(summaries),
        )
    builder.data("notes", [" ".join(texts) for texts in notes])
    counts = [(published.GROUPS[group], len(found)) for group, found in members.items() if found]
    spread = f"; ours: {tables.spread(interval)} over the seeds" if summaries else ""
    return builder.table(
        f"CamVid, {split}; percent; per class: {PER_CLASS[per_class]}; n/a: not known{spread}.",
        groups=counts + ([("Ours", len(summaries))] if summaries else []),
        notes=footnotes.listed() + source_notes(records),
    )


def notes_of(record: Record) -> list[str]:
    """Return the footnotes of a published record."""
    return [*record.notes, *([_SECOND_HAND] if record.verified == "V2" else [])]


def source_notes(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return the notes after the footnotes: the sources, and what (sic) means if it is used."""
    cited = published.shipped().sources
    said = [f"{source}: {cited[source]}." for source in dict.fromkeys(r.source for r in records)]
    suspect = [_SIC] if any(record.sic for record in records) else []
    return [("", text) for text in suspect + said]


def size_text(resolution: Sequence[int] | None) -> str | None:
    """Return a resolution as "HEIGHTxWIDTH", or None."""
    return "x".join(map(str, resolution)) if resolution else None


def _our_notes(summary: Summary) -> list[str]:
    row, protocol = summary.row, published.shipped().protocol
    notes = []
    if tuple(row["resolution"]) != protocol.resolution and not results.is_native(row):
        notes.append(
            f"Scored at {size_text(row['resolution'])}, not at {size_text(protocol.resolution)}."
        )
    if row["split"] == "test" and row["num_images"] != protocol.test_images:
        notes.append(f"Scored on {row['num_images']} of the {protocol.test_images} test images.")
    return notes


def _protocol(summary: Summary) -> str:
    return "differs" if _our_notes(summary) else "ours"


def _training_images(summary: Summary) -> int | None:
    """Return the size of the training split, or None for a baseline that is not trained."""
    trained = summary.row["steps"] is not None
    return published.shipped().protocol.training_images if trained else None


def _per_class(summary: Summary, per_class: str) -> list[Score]:
    """Return the per-class scores in the order of the papers."""
    names = summary.row["class_names"]
    return [summary.per_class[per_class][names.index(name)] for name in published.CLASSES]


def check_classes(summaries: Iterable[Summary]) -> None:
    """Raise a UserError if a row is of another dataset, or its classes are not CamVid's."""
    for row in (summary.row for summary in summaries):
        if row["dataset"] != "camvid" or set(row["class_names"]) != set(published.CLASSES):
            raise UserError(
                f"{results.title(row)}: scored on {len(row['class_names'])} classes of "
                f"{row['dataset']}, expected CamVid's {len(published.CLASSES)}"
            )


def _labels(summaries: Sequence[Summary]) -> list[str]:
    """Return the model of each summary, with the settings that distinguish it from the others."""
    apart = tables.differing(summaries)
    labels = []
    for line, summary in enumerate(summaries):
        said = [
            f"{heading.rpartition('.')[-1]} {cells[line]}"
            for heading, cells in apart.items()
            if cells[line] and heading not in _SHOWN
        ]
        if "inference" in summary.row:
            said.append(summary.row["inference"])
        labels.append(", ".join([summary.row["model"], *said]))
    return labels
