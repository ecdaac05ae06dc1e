"""The CamVid table: published methods and ours."""

import csv
import io
import json

import pytest

from segjax import results
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.report import camvid_table
from segjax.report.table import FORMATS, draw
from segjax.results import published
from segjax.results.summary import summarize
from support.errors import command_refusal
from support.rows import make_camvid_row, make_row

SEED_TABLE = [
    *("SfM+Appearance", "Boosting", "Dense Depth Maps", "Structured Random Forests"),
    *("Neural Decision Forests", "Local Label Descriptors", "Super Parsing", "SegNet"),
    *("SegNet-Basic", "SegNet, VGG-16 weights"),
    *("Boosting + pairwise CRF", "Boosting + Higher order", "Boosting + Detectors + CRF"),
]
FULL = {"resolution": [360, 480]}


def some_rows():
    return [
        make_camvid_row(700, **FULL),
        make_camvid_row(720, seed=1, **FULL),
        make_camvid_row(500, "fcn_basic", boundary_f=0.25),
        make_camvid_row(600, "segnet", num_images=20, inference="crf v2", **FULL),
    ]


def lines_of(table):
    return {record["method"]: record for record in table.records}


def test_the_table_has_its_methods_in_order():
    table = camvid_table.camvid()
    assert [record["method"] for record in table.records] == SEED_TABLE
    headings = [column.heading for column in table.columns]
    assert headings == [
        *("method", "source", "training images", "resolution"),
        *published.CLASSES,
        *("C", "G", "mIoU", "BF"),
    ]
    assert [count for _, count in table.groups] == [7, 3, 3]


def test_every_published_number_is_printed_as_its_source_does():
    text = draw(camvid_table.camvid())
    (line,) = [line for line in text.splitlines() if line.startswith("| SegNet [")]
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells[1:4] == ["SegNet paper, Table 2", "3433", "360x480"]
    assert " ".join(cells[4:]) == (
        "89.6 83.4 96.1 87.7 52.7 96.4 62.2 53.45 32.1 93.3 36.5 71.20 90.40 60.10 46.84"
    )
    (line,) = [line for line in text.splitlines() if line.startswith("| Local Label")]
    assert " 1.09 " in line
    assert line.count(" n/a ") == 5  # training, resolution, signs, mIoU, BF


def test_another_protocol_is_marked_and_explained():
    table = camvid_table.camvid(summarize(some_rows()))
    notes = dict(table.notes)
    method, *_ = table.columns
    for cell, record in zip(method.cells, table.records, strict=True):
        if record["protocol"] != "ours":
            assert cell.marks, record["method"]
        said = [notes[mark] for mark in cell.marks]
        assert " ".join(said) == record["notes"]
    assert "3433" in lines_of(table)["SegNet"]["notes"]
    cited = [text for mark, text in table.notes if not mark]
    for record in table.records:
        if record["source"] != "ours":
            assert any(text.startswith(f"{record['source']}: ") for text in cited)


def test_labels_at_their_own_size_are_scored_at_360x480():
    (row,) = camvid_table.camvid(
        summarize([make_camvid_row(500, resolution=[180, 240], inference="native")])
    ).records[-1:]
    assert (row["protocol"], row["notes"]) == ("ours", "")


def test_ours_come_last_as_mean_and_spread():
    table = camvid_table.camvid(summarize(some_rows()))
    assert table.groups[-1] == ("Ours", 3)
    ours = table.records[-3:]
    assert [record["resolution"] for record in ours] == ["360x480", "360x480", "96x128"]
    best = ours[0]
    assert best["method"] == "segnet_basic"
    assert (best["protocol"], best["notes"], best["seeds"]) == ("ours", "", 2)
    assert best["training_images"] == 367
    assert best["class_accuracy"] == pytest.approx(71)
    assert best["accuracy_Pole"] == pytest.approx(71)
    assert best["class_accuracy_sd"] == pytest.approx(2**0.5)
    assert "| 71.0 ± 1.4" in draw(table)
    assert ours[1]["method"].endswith("crf v2")
    assert ours[1]["notes"] == "Scored on 20 of the 233 test images."
    assert ours[2]["notes"] == "Scored at 96x128, not at 360x480."
    assert ours[2]["boundary_f"] == 25
    assert all(record["accuracy_Sky_sd"] is None for record in table.records[:-3])


def test_the_interval_replaces_the_deviation():
    # Student's t with one degree of freedom: 12.7062 standard errors.
    table = camvid_table.camvid(summarize(some_rows()), interval=True)
    best = table.records[-3]
    assert best["mean_iou_low"] == pytest.approx(
        best["mean_iou"] - 12.7062 * abs(700 / 13 - 720 / 12.8) / 2, abs=1e-3
    )
    assert "| 71.0 [58.3, 83.7]" in draw(table)
    assert "mean_iou_sd" not in best


def test_an_ensemble_has_training_images_a_baseline_none():
    row = make_camvid_row(300, "unet + segnet", seed=None, overrides={})
    (line,) = camvid_table.camvid(summarize([row])).records[-1:]
    assert (line["training_images"], line["seeds"]) == (367, None)
    row = make_camvid_row(300, "all Road", seed=None, steps=None, overrides={}, config_digest=None)
    (line,) = camvid_table.camvid(summarize([row])).records[-1:]
    assert (line["training_images"], line["seeds"]) == (None, None)


def test_figures_per_class_choose_the_methods():
    table = camvid_table.camvid(per_class="iou")
    assert "Boosting" not in lines_of(table)
    (best,) = [
        record
        for record in table.records
        if (record["method"], record["group"]) == ("FC-DenseNet103", "tiramisu")
    ]
    assert best["iou_Pavement"] == 82.2
    text = draw(table)
    assert "62.5 (sic)" in text
    assert "89.0 (sic)" in text
    assert "- (sic): printed like this in the source" in text
    assert "(sic)" not in draw(camvid_table.camvid())
    chosen = camvid_table.camvid(groups=["crf"])
    assert [record["method"] for record in chosen.records] == SEED_TABLE[-3:]
    (val,) = camvid_table.camvid(per_class="iou", split="val").records
    assert val["source"] == "OpenVINO"


def test_incomparable_rows_are_refused():
    scenes = make_camvid_row(500, dataset="streetscenes")
    with pytest.raises(UserError, match="scored on 11 classes of streetscenes, expected CamVid's"):
        camvid_table.camvid(summarize([scenes]))
    with pytest.raises(UserError, match="no published results on split 'val' in unary"):
        camvid_table.camvid(split="val")


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_prints_every_format(tmp_path, capsys, format):
    for row in some_rows():
        results.append(tmp_path / "rows.jsonl", row)
    arguments = ["table", "camvid", "--results", str(tmp_path / "rows.jsonl"), "--sort", "mIoU"]
    assert main([*arguments, "--columns", "C", "mIoU", "Car", "--format", format]) == 0
    text = capsys.readouterr().out
    if format == "csv":
        lines = list(csv.DictReader(io.StringIO(text.strip())))
        methods = [line["method"] for line in lines]
        assert lines[methods.index("SegNet")]["accuracy_Car"] == "87.7"
        assert "accuracy_Tree" not in lines[0]
    elif format == "json":
        whole = json.loads(text)
        methods = [line["method"] for line in whole["rows"]]
        assert whole["rows"][methods.index("SegNet")]["mean_iou"] == 60.1
        assert whole["rows"][0]["mean_iou"] is None  # the first group has no mIoU
    for name in ("SfM+Appearance", "Boosting + Higher order", "SegNet", "crf v2"):
        assert name in text
    if format == "markdown":
        assert text.index("| SegNet [") < text.index("| SegNet, VGG") < text.index("| SegNet-Basic")


def test_rows_of_other_splits_are_counted(tmp_path, capsys):
    for split in ("test", "val"):
        results.append(tmp_path / "rows.jsonl", make_camvid_row(500, split=split))
    command = ["table", "camvid", "--results", str(tmp_path / "rows.jsonl")]
    assert main(command) == 0
    assert capsys.readouterr().err == "segjax: warning: not in the table: 1 row of other splits\n"
    assert main([*command, "--split", "test"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs --results, or the name of a published table"),
        (["table9"], "invalid choice: 'table9'"),
        (["camvid", "--sort", "X"], "no column 'X' in this table; it has method, "),
        (
            ["camvid", "--groups", "dogs"],
            "unknown group of methods 'dogs', expected unary, network",
        ),
        (["table1", "--groups", "crf"], "--groups does nothing for table table1"),
        (["table3", "--per-class", "iou"], "--per-class does nothing for table table3"),
        (["cost", "--results", "x"], "x: no such file, expected rows of segjax benchmark"),
        (["--results", "{rows}", "--groups", "crf"], "--groups does nothing for results alone"),
        (["--results", "{rows}", "--sort", "X"], "no column 'X'"),
        (["camvid", "--results", "{rows}"], "scored on 3 classes of camvid"),
        (["table1", "--results", "{rows}"], "scored on 3 classes of camvid"),
        (["table1", "--split", "val"], "table1 has no split 'val', expected test or train"),
        (["camvid", "--results", "{rows}", "--split", "val"], "no rows of split 'val'"),
    ],
)
def test_an_error_is_one_line_and_status_2(tmp_path, capsys, arguments, said):
    results.append(tmp_path / "rows.jsonl", make_row())
    words = [word.replace("{rows}", str(tmp_path / "rows.jsonl")) for word in arguments]
    assert said in command_refusal(capsys, ["table", *words])
