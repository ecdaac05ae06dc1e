"""A table in the making that sets published figures and ours side by side, in percent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from segjax.report.table import Cell, Column, Table
from segjax.results.summary import Estimate

Figure = Estimate | Decimal | int | None
"""Ours as a fraction over seeds; a published number as printed; not published."""


def percent(figure: Figure) -> float | None:
    """A score of ours or of others, to compute with."""
    if figure is None:
        return None
    return 100 * figure.mean if isinstance(figure, Estimate) else float(figure)


def _digits(value: Decimal | float | int) -> str:
    """Three significant digits, more where they are before the point; all of a printed number."""
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    if isinstance(value, float) and value:
        decimals = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:,}"


class Sheet:
    """Columns of cells and, with the same lines, records; every column adds to each record."""

    def __init__(self, lines: int, interval: bool = False) -> None:
        self._interval = interval
        self._columns: list[Column] = []
        self._records: list[dict[str, Any]] = [{} for _ in range(lines)]

    def data(self, key: str, values: Iterable[Any]) -> None:
        """Adds to the records alone."""
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
        """Adds a column of words; its key is the heading in snake case."""
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
        turned: bool = False,
        absent: str = "n/a",
    ) -> None:
        """Adds a column of whole numbers; its key is what stands over them, in snake case."""
        cells = [Cell(absent if value is None else str(value)) for value in values]
        key = f"{over} {heading}".strip().replace(" ", "_")
        self._columns.append(
            Column(heading, cells, over=over, turned=turned, ranks=values, keys=(key,))
        )
        self.data(key, values)

    def numbers(
        self,
        heading: str,
        key: str,
        values: Sequence[Decimal | float | int | None],
        *,
        over: str = "",
        turned: bool = False,
        absent: str = "",
    ) -> None:
        """Adds a column of numbers of any size: published ones as printed, ours to three digits."""
        plain = [None if value is None else float(value) for value in values]
        cells = [Cell(absent if value is None else _digits(value)) for value in values]
        self._columns.append(
            Column(heading, cells, over=over, turned=turned, ranks=plain, keys=(key,))
        )
        self.data(key, plain)

    def figures(
        self,
        heading: str,
        key: str,
        figures: Sequence[Figure],
        *,
        over: str = "",
        turned: bool = False,
        sic: Sequence[bool] | None = None,
        absent: str = "n/a",
    ) -> None:
        """Adds a column of scores: published ones as printed, ours with one decimal.

        The keys of the records are those of percentages, `key` and, for ours, `key`_sd or the ends
        of the interval.
        """
        cells = []
        for figure, suspect in zip(figures, sic or [False] * len(figures), strict=True):
            if figure is None:
                text = absent
            elif isinstance(figure, Estimate):
                text = figure.percent(self._interval)
            else:
                text = str(figure) + (" (sic)" if suspect else "")
            cells.append(Cell(text))
        values: dict[str, list[float | None]] = {key: list(map(percent, figures))}
        if any(isinstance(figure, Estimate) for figure in figures):
            values |= self._spread(key, figures)
        for name, column in values.items():
            self.data(name, column)
        self._columns.append(
            Column(heading, cells, over=over, turned=turned, ranks=values[key], keys=tuple(values))
        )

    def _spread(self, key: str, figures: Sequence[Figure]) -> dict[str, list[float | None]]:
        estimates = [figure if isinstance(figure, Estimate) else None for figure in figures]
        if not self._interval:
            sds = [e.sd if e else None for e in estimates]
            return {f"{key}_sd": [None if sd is None else 100 * sd for sd in sds]}
        ends = [e.interval() if e else None for e in estimates]
        return {
            f"{key}_{side}": [100 * pair[end] if pair else None for pair in ends]
            for end, side in enumerate(("low", "high"))
        }

    def differences(
        self, heading: str, key: str, ours: Sequence[Figure], theirs: Sequence[Figure]
    ) -> None:
        """Adds a column of ours minus theirs, where there are both."""
        values = [
            None if a is None or b is None else a - b
            for a, b in zip(map(percent, ours), map(percent, theirs), strict=True)
        ]
        cells = [Cell("" if value is None else f"{value:+.1f}") for value in values]
        over = "difference"
        self._columns.append(Column(heading, cells, over=over, ranks=values, keys=(key,)))
        self.data(key, values)

    def table(
        self,
        title: str,
        *,
        groups: Sequence[tuple[str, int]] = (),
        notes: Sequence[tuple[str, str]] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Table:
        """The finished table."""
        return Table(title, self._columns, self._records, groups, notes, facts or {})
