"""Summarize result rows over seeds: mean and spread of each score."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from segjax import metrics, results
from segjax.errors import UserError, warn
from segjax.results.schema import Row

SCORES = {
    "global_accuracy": "G",
    "class_accuracy": "C",
    "mean_iou": "mIoU",
    "boundary_f": "BF",
}
# From the confusion matrix that rows keep (`metrics.mean_scores`).
MEAN_SCORES = {
    "dice": "Dice",
    "precision": "precision",
    "frequency_weighted_iou": "fwIoU",
    "mean_iou_present": "mIoU present",
}
# Of rows that have them; older ones do not.
MEASURED = {
    "per_image_mean_iou": "mIoU per image",
    "boundary_iou": "boundary IoU",
    "expected_calibration_error": "calibration error",
}
PER_CLASS = {"iou": "IoU", "accuracy": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score over runs, as a fraction: mean and sample standard deviation (ddof 1)."""

    mean: float
    sd: float | None  # None for a single run
    runs: int = 1

    def interval(self) -> tuple[float, float] | None:
        """Return the 95% confidence interval of the mean, Student's t; None for a single run."""
        if self.sd is None:
            return None
        from scipy import stats  # slow to import

        reach = float(stats.t.ppf(0.975, self.runs - 1)) * self.sd / math.sqrt(self.runs)
        return self.mean - reach, self.mean + reach

    def percent(self, interval: bool = False) -> str:
        """Format the mean in percent, with the deviation or interval if there are several runs."""
        text = f"{100 * self.mean:.1f}"
        ends = self.interval() if interval else None
        if ends:
            return f"{text} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        return text if self.sd is None else f"{text} ± {100 * self.sd:.1f}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The runs of one config on one split."""

    rows: tuple[Row, ...]  # one per seed, ascending
    overrides: Row  # without the seed
    seeds: tuple[int, ...]  # ascending; empty for a baseline, such as "all Road"
    scores: dict[str, Estimate | None]  # of SCORES, MEAN_SCORES, MEASURED; None: not in all
    # By PER_CLASS, K estimates each; None for an absent class.
    per_class: dict[str, tuple[Estimate | None, ...]]

    @property
    def row(self) -> Row:
        """Return the first run's row, for the fields that all runs share."""
        return self.rows[0]


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), sd, len(known))


def _summary(rows: Sequence[Row]) -> Summary:
    more = [metrics.mean_scores(np.array(row["confusion"])) for row in rows]
    return Summary(
        rows=tuple(sorted(rows, key=lambda row: row["seed"] or 0)),
        overrides=results.overrides(rows[0]),
        seeds=tuple(sorted(row["seed"] for row in rows if row["seed"] is not None)),
        scores={name: _estimate([row.get(name) for row in rows]) for name in (*SCORES, *MEASURED)}
        | {name: _estimate([each[name] for each in more]) for name in MEAN_SCORES},
        per_class={
            kind: tuple(
                _estimate([row[f"per_class_{kind}"][k] if present else None for row in rows])
                for k, present in enumerate(rows[0]["present"])
            )
            for kind in PER_CLASS
        },
    )


def _data(row: Row) -> tuple[list[int], str]:
    """Return what a row knows of its data: the pixels of each class, and the digest or ""."""
    return list(map(sum, row["confusion"])), row.get("data_digest", "")


def _same_data(a: Row, b: Row) -> bool:
    (truth, digest), (other_truth, other_digest) = _data(a), _data(b)
    return truth == other_truth and (digest == other_digest or "" in (digest, other_digest))


def _warn_of_other_data(rows: Iterable[Row]) -> None:
    seen: dict[str, list[Row]] = {}
    for row in rows:
        names = ("dataset", "split", "num_images", "class_names")
        size = "native" if results.is_native(row) else row["resolution"]
        others = seen.setdefault(json.dumps([*(row[name] for name in names), size]), [])
        if other := next((each for each in others if not _same_data(each, row)), None):
            warn(
                f"{results.title(row)} was scored on different labels or images than "
                f"{results.title(other)}: their scores cannot be compared"
            )
        if not any(_data(each) == _data(row) for each in others):
            others.append(row)


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Group rows over seeds and summarize each group; highest mean mIoU first.

    The rows of a group share experiment, overrides except the seed, model, config digest and
    evaluation (dataset, split, number of images, resolution, classes, batch normalization,
    inference). Duplicates of a row count once. A warning names groups that were scored on other
    labels than the rest of their dataset and split.

    Raises:
      UserError: a group has two different results of one seed, or was scored on different data.
    """
    groups: dict[str, dict[int | None, Row]] = {}
    for row in rows:
        group = groups.setdefault(results.group_key(row), {})
        twin = group.setdefault(row["seed"], row)
        if twin["confusion"] != row["confusion"]:
            raise UserError(
                f"{results.title(row)}: two different results (finished {twin['finished']} and "
                f"{row['finished']}), expected one per seed"
            )
        # One of them may have more scores.
        group[row["seed"]] = row | {name: x for name, x in twin.items() if x is not None}
        for other in group.values():
            if not _same_data(other, row):
                raise UserError(
                    f"{results.title(row)}: scored on different data than {results.title(other)}"
                )
    summaries = [_summary(list(group.values())) for group in groups.values()]
    _warn_of_other_data([summary.row for summary in summaries])

    def mean_iou(summary: Summary) -> float:
        estimate = summary.scores["mean_iou"]
        return estimate.mean if estimate else 0.0

    return sorted(summaries, key=mean_iou, reverse=True)
