"""Build a table that sets published scores and ours side by side, in percent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from segjax.report.table import Cell, Column, Table
from segjax.results.summary import Estimate

Score = Estimate | Decimal | int | None
"""Our score over the seeds, as a fraction; or a published number as printed; None: not known."""


def percent(score: Score) -> float | None:
    """Return our score or a published one in percent, as a float."""
    if score is None:
        return None
    return 100 * score.mean if isinstance(score, Estimate) else float(score)


def _digits(value: Decimal | float | int) -> str:
    """Format with three significant digits, but no digit rounded before the decimal point."""
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    if isinstance(value, float) and value:
        decimals = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:,}"


class TableBuilder:
    """A table under construction; each column adds a cell and values to every line's record."""

    def __init__(self, lines: int, interval: bool = False) -> None:
        self._interval = interval
        self._columns: list[Column] = []
        self._records: list[dict[str, Any]] = [{} for _ in range(lines)]

    def data(self, key: str, values: Iterable[Any]) -> None:
        """Add values to the records, without a column."""
        for record, value in zip(self._records, values, strict=True):
            record[key] = value

    def texts(
        self,
        heading: str,
        values: Sequence[str | None],
        *,
        marks: Sequence[tuple[str, ...]] | None = None,
        names: bool = True,
        absent: str = "n/a",
    ) -> None:
        """Add a column of text; its key is the heading in snake case."""
        cells = [
            Cell(absent if value is None else value, marks=mark)
            for value, mark in zip(values, marks or [()] * len(values), strict=True)
        ]
        key = heading.replace(" ", "_")
        keys = () if names else (key,)
        self._columns.append(Column(heading, cells, names=names, words=True, keys=keys))
        self.data(key, values)

    def counts(
        self,
        heading: str,
        values: Sequence[int | None],
        *,
        over: str = "",
        rotated: bool = False,
        absent: str = "n/a",
    ) -> None:
        """Add a column of integers; its key is `over` and the heading, in snake case."""
        texts = [absent if value is None else str(value) for value in values]
        key = f"{over} {heading}".strip().replace(" ", "_")
        self._ranked(heading, texts, {key: values}, over=over, rotated=rotated)

    def numbers(
        self,
        heading: str,
        key: str,
        values: Sequence[Decimal | float | int | None],
        *,
        over: str = "",
    ) -> None:
        """Add a column of numbers: published ones as printed, ours with three digits."""
        plain = [None if value is None else float(value) for value in values]
        texts = ["" if value is None else _digits(value) for value in values]
        self._ranked(heading, texts, {key: plain}, over=over)

    def scores(
        self,
        heading: str,
        key: str,
        scores: Sequence[Score],
        *,
        over: str = "",
        rotated: bool = False,
        sic: Sequence[bool] | None = None,
        absent: str = "n/a",
    ) -> None:
        """Add a column of scores: published ones as printed, ours with one decimal.

        Records get percentages: `key` and, for ours, `key`_sd or `key`_low and `key`_high.
        """
        texts = []
        for score, suspect in zip(scores, sic or [False] * len(scores), strict=True):
            if score is None:
                texts.append(absent)
            elif isinstance(score, Estimate):
                texts.append(score.percent(self._interval))
            else:
                texts.append(f"{score} (sic)" if suspect else str(score))
        values: dict[str, list[float | None]] = {key: list(map(percent, scores))}
        if any(isinstance(score, Estimate) for score in scores):
            values |= self._spread(key, scores)
        self._ranked(heading, texts, values, over=over, rotated=rotated)

    def _spread(self, key: str, scores: Sequence[Score]) -> dict[str, list[float | None]]:
        estimates = [score if isinstance(score, Estimate) else None for score in scores]
        if not self._interval:
            sds = [e.sd if e else None for e in estimates]
            return {f"{key}_sd": [None if sd is None else 100 * sd for sd in sds]}
        ends = [e.interval() if e else None for e in estimates]
        return {
            f"{key}_{side}": [100 * pair[end] if pair else None for pair in ends]
            for end, side in enumerate(("low", "high"))
        }

    def differences(
        self, heading: str, key: str, ours: Sequence[Score], theirs: Sequence[Score]
    ) -> None:
        """Add a column of differences, ours minus theirs, empty where either is unknown."""
        values = [
            None if a is None or b is None else a - b
            for a, b in zip(map(percent, ours), map(percent, theirs), strict=True)
        ]
        texts = ["" if value is None else f"{value:+.1f}" for value in values]
        self._ranked(heading, texts, {key: values}, over="difference")

    def _ranked(
        self,
        heading: str,
        texts: Sequence[str],
        values: Mapping[str, Sequence[float | None]],
        *,
        over: str,
        rotated: bool = False,
    ) -> None:
        """Add a column sorted by the first of these values, and all values by their keys."""
        for key, column in values.items():
            self.data(key, column)
        ranks, *_ = values.values()
        cells = list(map(Cell, texts))
        self._columns.append(
            Column(heading, cells, over=over, rotated=rotated, ranks=ranks, keys=tuple(values))
        )

    def table(
        self,
        title: str,
        *,
        groups: Sequence[tuple[str, int]] = (),
        notes: Sequence[tuple[str, str]] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Table:
        """Return the finished table."""
        return Table(title, self._columns, self._records, groups, notes, facts or {})
