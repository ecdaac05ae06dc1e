"""Tables of any content in four formats."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess

import pytest

from segjax.errors import UserError
from segjax.report import camvid_table
from segjax.report.table import Cell, Column, Footnotes, Table, arrange, draw, escape

HOSTILE = r"50% of a_b & {c} #1 $x$ ~ ^ \ [z] * <|> ± \"q\""


def small():
    return Table(
        title="A title, 100 %",
        columns=[
            Column("name", [Cell("b"), Cell("a", marks=("a", "b")), Cell("c|d")], names=True),
            Column(
                "G",
                [Cell("50.0"), Cell("n/a"), Cell("60.0", bold=True)],
                over="paper",
                ranks=[50, None, 60],
                keys=("paper_G",),
            ),
            Column(
                "C",
                [Cell("1.0"), Cell("2.0"), Cell("3.0")],
                over="paper",
                ranks=[1, 2, 3],
                keys=("paper_C",),
            ),
            Column(
                "G",
                [Cell("1.0"), Cell("-2.0"), Cell("")],
                over="difference",
                ranks=[1, -2, None],
                keys=("difference_G",),
            ),
        ],
        records=[
            {"name": "b", "paper_G": 50, "paper_C": 1, "difference_G": 1.0, "seeds": (0, 1)},
            {"name": "a", "paper_G": None, "paper_C": 2, "difference_G": -2.0, "seeds": ()},
            {"name": "c|d", "paper_G": 60, "paper_C": 3, "difference_G": None, "seeds": (2,)},
        ],
        groups=[("First", 2), ("Second", 1)],
        notes=[("a", "one"), ("b", "two"), ("", "a source")],
        facts={"rank": 1},
    )


def names(table):
    return [record["name"] for record in table.records]


def test_markdown_is_one_table_of_equal_lines_with_notes_below():
    text = draw(small())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "| name     |  paper G | paper C | difference G |" in text
    assert "| *Second* |" in text
    assert r"| c\|d     | **60.0** |" in text
    assert "| a [a,b]" in text
    assert text.endswith("\n\n- [a] one\n- [b] two\n- a source\n")


def test_csv_and_json_hold_the_records():
    rows = list(csv.DictReader(io.StringIO(draw(small(), "csv"))))
    assert [row["name"] for row in rows] == ["b", "a", "c|d"]
    assert [row["paper_G"] for row in rows] == ["50", "", "60"]
    assert [row["seeds"] for row in rows] == ["0 1", "", "2"]
    whole = json.loads(draw(small(), "json"))
    assert whole["rows"][0] == {**small().records[0], "seeds": [0, 1]}
    assert whole["rank"] == 1
    assert whole["title"] == "A title, 100 %"
    assert whole["notes"] == ["one", "two", "a source"]


def test_sorting_keeps_the_groups_and_moves_records_with_cells():
    by_g = arrange(small(), sort="paper G")
    assert names(by_g) == ["b", "a", "c|d"]  # within their groups; no value last
    by_c = arrange(small(), sort="C")
    assert names(by_c) == ["a", "b", "c|d"]
    assert [cell.text for cell in by_c.columns[1].cells] == ["n/a", "50.0", "60.0"]
    assert by_c.columns[1].ranks == [None, 50, 60]
    assert names(arrange(small(), sort="name")) == ["a", "b", "c|d"]
    assert names(small()) == ["b", "a", "c|d"]


def test_columns_are_chosen_by_heading_and_by_label():
    chosen = arrange(small(), columns=["C", "G"])
    assert [c.label for c in chosen.columns] == ["name", "paper C", "paper G", "difference G"]
    chosen = arrange(small(), columns=["difference G", "name"])
    assert [c.label for c in chosen.columns] == ["name", "difference G"]
    assert list(chosen.records[0]) == ["name", "difference_G", "seeds"]


def test_of_the_columns_that_name_a_line_the_given_ones_suffice():
    a, b = Column("rate", [Cell("1"), Cell("1")], names=True), Column("model", [], names=True)
    scores = Column("C", [Cell("5"), Cell("6")])

    def labels(*models):
        named = dataclasses.replace(b, cells=[Cell(model) for model in models])
        table = dataclasses.replace(small(), columns=[a, named, scores], records=[{}, {}])
        return [c.label for c in arrange(table, columns=["model", "C"]).columns]

    assert labels("unet", "segnet") == ["model", "C"]
    assert labels("unet", "unet") == ["rate", "model", "C"]


@pytest.mark.parametrize("options", [{"sort": "X"}, {"columns": ["G", "X"]}])
def test_unknown_headings_are_named(options):
    with pytest.raises(UserError, match="no column 'X' in this table; it has name, paper G, paper"):
        arrange(small(), **options)


def test_latex_is_a_booktabs_table_of_even_lines():
    text = draw(small(), "latex")
    assert text.count(r"\begin{") == text.count(r"\end{")
    for rule in (r"\toprule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.count(r"\midrule") == 2  # above each group
    assert r"\begin{tabular}{lrrr}" in text
    assert r" & \multicolumn{2}{c}{paper} & \multicolumn{1}{c}{difference} \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"a\textsuperscript{a,b} & n/a & 2.0 & \ensuremath{-}2.0 \\" in text
    assert r"\textbf{60.0}" in text
    assert r"\caption{A title, 100 \%}" in text
    assert r"\textsuperscript{b}~two\par" in text
    assert "|" not in text.replace(r"\ensuremath{|}", "")
    plain = Table("t", [Column("x", [Cell("1")])], [{"x": 1}])
    assert draw(plain, "latex").count(r"\midrule") == 1


def test_every_special_character_is_escaped():
    text = escape(HOSTILE)
    bare = re.sub(r"\\[&%$#_{}]|\\[a-z]+(\{\})?", "", text.replace(r"\ensuremath{", "{"))
    assert not set(bare) & set('&%$#_~^\\"±')
    assert bare.count("{") == bare.count("}")
    assert escape("two\nlines") == "two lines"
    assert escape("-") == "-"
    assert escape("VGG-16, [-2") == r"VGG-16, {[}\ensuremath{-}2"
    assert escape("-1.5") == r"\ensuremath{-}1.5"


def test_marks_are_letters_in_the_order_of_first_use():
    footnotes = Footnotes()
    assert footnotes.marks(["x", "y"]) == ("a", "b")
    assert footnotes.marks(["y", "z"]) == ("b", "c")
    assert footnotes.marks([]) == ()
    assert footnotes.listed() == [("a", "x"), ("b", "y"), ("c", "z")]
    assert footnotes.marks([str(n) for n in range(24)])[-2:] == ("z", "aa")


@pytest.mark.skipif(not shutil.which("kpsewhich"), reason="LaTeX is not installed")
def test_latex_compiles(tmp_path):
    found = subprocess.run(["kpsewhich", "booktabs.sty", "graphicx.sty"], capture_output=True)
    if len(found.stdout.splitlines()) < 2:
        pytest.skip("LaTeX is installed without booktabs or graphicx")
    hostile = Table(HOSTILE, [Column(HOSTILE, [Cell(HOSTILE), Cell("[1]")])], [{}, {}])
    pieces = [draw(table, "latex") for table in (small(), hostile, camvid_table.camvid())]
    head = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    (tmp_path / "t.tex").write_text(head + "\n".join(pieces) + "\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
