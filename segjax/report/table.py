"""Draw tables of any content as Markdown, LaTeX (booktabs), CSV and JSON."""

import csv
import dataclasses
import io
import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segjax.errors import UserError

FORMATS = ("markdown", "latex", "csv", "json")
_WIDE = 12  # columns; a LaTeX table with more has less space between them


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table, as printed."""

    text: str
    bold: bool = False
    marks: tuple[str, ...] = ()  # of footnotes


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """A column, as printed and as data."""

    heading: str
    cells: Sequence[Cell]
    names: bool = False  # names the lines, and is never left out
    words: bool = False  # text, left-aligned as names are
    over: str = ""  # heading above adjacent columns that share it
    rotated: bool = False  # the heading is rotated in LaTeX, being longer than the cells
    # Values to sort the lines by, from high to low; None: sort by the text.
    ranks: Sequence[float | None] | None = None
    keys: tuple[str, ...] = ()  # keys of the records that are left out with the column
    printed: bool = True  # False: in the records only

    @property
    def left(self) -> bool:
        return self.names or self.words

    @property
    def label(self) -> str:
        return f"{self.over} {self.heading}".strip()


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns to print and records to compute with, with one entry per line in both."""

    title: str
    columns: Sequence[Column]
    records: Sequence[Mapping[str, Any]]
    groups: Sequence[tuple[str, int]] = ()  # heading and number of lines, from the top
    notes: Sequence[tuple[str, str]] = ()  # mark or "", and text
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the JSON


class Footnotes:
    """Marks of footnotes, assigned in the order of first use."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def marks(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return a letter for each text; equal texts share one."""
        for text in texts:
            turn, place = divmod(len(self._marks), 26)
            self._marks.setdefault(text, string.ascii_lowercase[place] * (turn + 1))
        return tuple(self._marks[text] for text in texts)

    def listed(self) -> list[tuple[str, str]]:
        return [(mark, text) for text, mark in self._marks.items()]


def arrange(table: Table, sort: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Sort a table by a column and select columns; return a new table.

    Args:
      table: the table, which is not modified.
      sort: heading of a column. Within each group, numbers are sorted from high to low, texts
        alphabetically; lines without a value come last.
      columns: headings to keep, in this order, after the columns that name the lines: of these all,
        or only the given ones if their cells differ in all lines.

    Raises:
      UserError: the table has no such heading.
    """
    if sort is not None:
        table = _sorted(table, _found(table, sort)[0])
    if columns is None:
        return table
    overs = [column.over for column in table.columns]
    found = dict.fromkeys(column for heading in columns for column in _found(table, heading))
    # Columns under one heading stay together.
    chosen = sorted((c for c in found if not c.names), key=lambda column: overs.index(column.over))
    chosen = [dataclasses.replace(column, printed=True) for column in chosen]
    naming = [column for column in table.columns if column.names]
    given = [column for column in naming if column in found]
    lines = {*zip(*([cell.text for cell in column.cells] for column in given), strict=True)}
    kept = (given if len(lines) == len(table.records) else naming) + chosen
    gone = {key for column in table.columns for key in column.keys}
    gone -= {key for column in kept for key in column.keys}
    records = [
        {key: value for key, value in record.items() if key not in gone} for record in table.records
    ]
    return dataclasses.replace(table, columns=kept, records=records)


def _found(table: Table, heading: str) -> list[Column]:
    exact = [column for column in table.columns if column.label == heading]
    found = exact or [column for column in table.columns if column.heading == heading]
    if not found:
        known = dict.fromkeys(column.label for column in table.columns)
        raise UserError(f"no column {heading!r} in this table; it has {', '.join(known)}")
    return found


def _sorted(table: Table, column: Column) -> Table:
    def key(line: int) -> tuple[bool, float, str]:
        if column.ranks is None:
            text = column.cells[line].text
            return text in ("", "-", "n/a"), 0.0, text
        rank = column.ranks[line]
        return rank is None, 0.0 if rank is None else -rank, ""

    order, start = [], 0
    for _, count in table.groups or [("", len(table.records))]:
        order += sorted(range(start, start + count), key=key)
        start += count

    def permuted(column: Column) -> Column:
        ranks = None if column.ranks is None else [column.ranks[line] for line in order]
        cells = [column.cells[line] for line in order]
        return dataclasses.replace(column, cells=cells, ranks=ranks)

    return dataclasses.replace(
        table,
        columns=[permuted(column) for column in table.columns],
        records=[table.records[line] for line in order],
    )


def draw(table: Table, format: str = "markdown") -> str:
    """Return the table as text.

    Markdown and LaTeX print the columns; CSV and JSON give the records, JSON also the title and the
    notes. The LaTeX needs the packages booktabs and graphicx.

    Args:
      table: the table.
      format: one of FORMATS.
    """
    drawn = {"markdown": _markdown, "latex": _latex, "csv": _csv, "json": _json}
    return drawn[format](table)


def _lines(table: Table) -> Iterator[tuple[str | None, int]]:
    """Yield (heading, -1) for each group and (None, number) for each line."""
    start = 0
    for heading, count in table.groups or [("", len(table.records))]:
        if heading:
            yield heading, -1
        for line in range(start, start + count):
            yield None, line
        start += count


def _markdown(table: Table) -> str:
    drawn = []
    for place, column in enumerate(column for column in table.columns if column.printed):
        texts = [column.label]
        for heading, line in _lines(table):
            if heading is not None:
                texts.append(f"*{heading}*" if place == 0 else "")
                continue
            cell = column.cells[line]
            text = f"**{cell.text}**" if cell.bold else cell.text
            texts.append(text + (f" [{','.join(cell.marks)}]" if cell.marks else ""))
        drawn.append(_justified(texts, str.ljust if column.left else str.rjust))
    lines = ["| " + " | ".join(cells) + " |" for cells in zip(*drawn, strict=True)]
    notes = [f"- [{mark}] {text}" if mark else f"- {text}" for mark, text in table.notes]
    below = "\n" + "\n".join(notes) + "\n" if notes else ""
    return table.title + "\n\n" + "\n".join(lines) + "\n" + below


def _justified(texts: Sequence[str], justify: Any) -> list[str]:
    """Return heading, rule and cells of a Markdown column, padded to one width."""
    texts = [text.replace("|", r"\|") for text in texts]
    width = max(3, *map(len, texts))
    rule = "-" * width if justify is str.ljust else "-" * (width - 1) + ":"
    first, *rest = [justify(text, width) for text in texts]
    return [first, rule, *rest]


def _latex(table: Table) -> str:
    columns = [column for column in table.columns if column.printed]
    head = [_heading(column) for column in columns]
    lines = [rf"\begin{{tabular}}{{{''.join('l' if c.left else 'r' for c in columns)}}}"]
    lines += [r"\toprule", *_heads_over(columns), " & ".join(head) + r" \\"]
    for heading, line in _lines(table):
        if heading is not None:
            lines += [
                r"\midrule",
                rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{escape(heading)}}}}} \\",
            ]
            continue
        if line == 0 and not table.groups:
            lines.append(r"\midrule")
        lines.append(" & ".join(_latex_cell(column.cells[line]) for column in columns) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}%"]
    notes = [
        (rf"\textsuperscript{{{mark}}}~" if mark else "") + escape(text) + r"\par"
        for mark, text in table.notes
    ]
    below = [r"\par\smallskip", r"\begin{minipage}{\textwidth}\footnotesize", *notes]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}}}\smallskip",
            *([r"\setlength{\tabcolsep}{3pt}"] if len(columns) > _WIDE else []),
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            *lines,
            "}",
            *([*below, r"\end{minipage}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def _heading(column: Column) -> str:
    text = escape(column.heading)
    return rf"\rotatebox{{90}}{{{text}}}" if column.rotated else text


def _heads_over(columns: Sequence[Column]) -> list[str]:
    """Return the line of headings above several columns, and the rules below them."""
    if not any(column.over for column in columns):
        return []
    cells, rules, start = [], [], 1
    for over, run in itertools.groupby(columns, lambda column: column.over):
        count = len(list(run))
        if over:
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(over)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        else:
            cells += [""] * count
        start += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _latex_cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    return text + (rf"\textsuperscript{{{','.join(cell.marks)}}}" if cell.marks else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    **{character: "\\" + character for character in "&%$#_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # At the start of a line, LaTeX takes these as arguments of the \\ before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    "±": r"\ensuremath{\pm}",
    '"': "''",
}


def escape(text: str) -> str:
    """Escape plain text for LaTeX; a hyphen before a number becomes a minus sign."""
    plain = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<![\w.-])-(?=\d)", r"\\ensuremath{-}", plain)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({key: _flat(value) for key, value in record.items()})
    return text.getvalue()


def _flat(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | dict | bool) else value


def _json(table: Table) -> str:
    notes = [text for _, text in table.notes]
    whole = {"title": table.title, "rows": table.records, **table.facts, "notes": notes}
    return json.dumps(whole, indent=1, ensure_ascii=False, default=float) + "\n"
