import csv
import io
import itertools
import json
import statistics

import pytest

from segjax.errors import UserError
from segjax.report import tables
from segjax.report.table import arrange, draw
from segjax.results.summary import Estimate, summarize
from support.rows import CLASS_NAMES, make_baseline, make_camvid_row, make_row

BETTER = ((85, 10, 5), (10, 185, 5), (4, 6, 10))
BEST = ((90, 5, 5), (10, 185, 5), (3, 6, 11))


def some_rows():
    return [
        make_row(0),
        make_row(1, confusion=BETTER),
        make_row(0, weights="segnet", confusion=BETTER),
        make_row(1, weights="segnet", confusion=BEST),
        make_row(2, weights="segnet", confusion=BEST),
        make_baseline(),
    ]


def drawn(rows, format="markdown", per_class="iou"):
    return draw(tables.table(summarize(rows), per_class), format)


def cells_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_groups_over_seeds_with_mean_and_sample_deviation():
    rows = some_rows()
    weighted, plain, baseline = summarize(rows)
    assert (weighted.seeds, plain.seeds, baseline.seeds) == ((0, 1, 2), (0, 1), ())
    assert plain.overrides == {"loss.class_weights": "none", "model.width": 32}
    for name in ("global_accuracy", "class_accuracy", "mean_iou"):
        values = [row[name] for row in rows[2:5]]
        assert weighted.scores[name].mean == pytest.approx(statistics.mean(values), abs=1e-12)
        assert weighted.scores[name].sd == pytest.approx(statistics.stdev(values), abs=1e-12)
    for kind, k in itertools.product(("iou", "accuracy"), range(3)):
        values = [row[f"per_class_{kind}"][k] for row in rows[:2]]
        assert plain.per_class[kind][k].mean == pytest.approx(statistics.mean(values), abs=1e-12)
        assert plain.per_class[kind][k].sd == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert baseline.scores["mean_iou"] == Estimate(make_baseline()["mean_iou"], None)
    assert baseline.scores["boundary_f"] is None


def test_measured_scores_are_columns_on_request_and_the_least_error_is_bold():
    rows = [
        make_row(boundary_iou=0.5, expected_calibration_error=0.1, per_image_mean_iou=0.6),
        make_row(weights="segnet", confusion=BETTER, boundary_iou=0.4, per_image_mean_iou=None),
        make_row(weights="enet", boundary_iou=0.6, expected_calibration_error=0.2),
    ]
    headings = ["boundary IoU", "mIoU per image", "calibration error"]
    table = tables.table(summarize(rows))
    cells = cells_of(draw(arrange(table, columns=headings), "markdown"))
    made = {line[0]: line[-3:] for line in cells if line[0] in ("none", "segnet", "enet")}
    assert cells[0][-3:] == headings
    assert made == {
        "none": ["50.0", "**60.0**", "**10.0**"],
        "segnet": ["40.0", "-", "-"],
        "enet": ["**60.0**", "-", "20.0"],
    }
    assert "boundary IoU" not in draw(table, "markdown")


def test_the_interval_is_students_over_the_seeds():
    # The 97.5th percentiles of Student's t with 1 and 2 degrees of freedom, from printed tables.
    weighted, plain, baseline = summarize(some_rows())
    for summary, seeds, t in ((weighted, 3, 4.303), (plain, 2, 12.706)):
        estimate = summary.scores["mean_iou"]
        low, high = estimate.interval()
        assert (low + high) / 2 == pytest.approx(estimate.mean, abs=1e-12)
        assert (high - low) / 2 == pytest.approx(t * estimate.sd / seeds**0.5, rel=1e-4)
    assert baseline.scores["mean_iou"].interval() is None
    assert Estimate(0.5, 0.01, 3).percent(interval=True) == "50.0 [47.5, 52.5]"
    assert Estimate(0.5, None).percent(interval=True) == "50.0"


def test_the_interval_replaces_the_deviation():
    summaries = summarize(some_rows())
    table = tables.table(summaries, interval=True)
    text = draw(table)
    assert "percent, mean [95% interval of the mean, Student's t] over the seeds" in text
    assert "±" not in text
    estimate = summaries[0].scores["mean_iou"]
    line, _, last = table.records
    assert (line["mean_iou_low"], line["mean_iou_high"]) == estimate.interval()
    assert (last["mean_iou_low"], last["mean_iou_sd"]) == (None, None)


def test_json_has_the_numbers_at_full_precision():
    summaries = summarize(some_rows())
    whole = json.loads(drawn(some_rows(), "json", "accuracy"))
    assert "dataset camvid; split test" in whole["title"]
    assert [line["seeds"] for line in whole["rows"]] == [[0, 1, 2], [0, 1], []]
    assert whole["rows"][0]["model.width"] == 32
    for line, summary in zip(whole["rows"], summaries, strict=True):
        assert line["accuracy_Pole_mean"] == summary.per_class["accuracy"][2].mean
        assert line["boundary_f_mean"] is None


def test_lines_are_sorted_by_any_column():
    table = tables.table(summarize(some_rows()))
    assert [r["n"] for r in arrange(table, sort="seeds").records] == [3, 2, 1]
    by_weights = arrange(table, sort="loss.class_weights")
    assert [r["loss.class_weights"] for r in by_weights.records] == ["none", "segnet", None]
    by_road = arrange(table, sort="Pole").records
    scores = [record["iou_Pole_mean"] for record in by_road]
    assert scores == sorted(scores, reverse=True)


def test_overrides_that_are_numbers_are_sorted_as_numbers():
    rates = {0: 0.5, 1: 10.0, 2: 9.0}
    rows = [make_row(s, overrides={"rate": r, "seed": s}) for s, r in rates.items()]
    table = arrange(tables.table(summarize(rows)), sort="rate")
    assert [record["rate"] for record in table.records] == [10.0, 9.0, 0.5]


def test_settings_are_sorted_as_numbers_or_texts():
    rows = [make_row(experiment=e, steps=s) for e, s in (("b", 90), ("c", 1200), ("a", 400))]
    table = tables.table(summarize(rows))
    found = {
        heading: [record["experiment"] for record in arrange(table, sort=heading).records]
        for heading in ("experiment", "steps")
    }
    assert found == {"experiment": ["a", "b", "c"], "steps": ["c", "a", "b"]}


def test_order_of_rows_does_not_matter():
    rows = some_rows()[:4]
    assert len({drawn(order, "csv") for order in itertools.permutations(rows)}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"split": "val"},
        {"dataset": "streetscenes"},
        {"resolution": [360, 480]},
        {"num_images": 5},
        {"experiment": "large"},
        {"batch_norm": "running"},
        {"config_digest": "f" * 16},
    ],
)
def test_different_settings_are_separate_lines_with_a_column(change):
    summaries = summarize([make_row(0), make_row(1, **change)])
    assert [summary.seeds for summary in summaries] in ([(0,), (1,)], [(1,), (0,)])
    header, _, *lines = cells_of(tables.render(summaries))
    assert header[1] == "model"  # so the first column is the one thing that differs
    shown = {line[0] for line in lines}
    value = next(iter(change.values()))
    assert (str(value) if not isinstance(value, list) else "360x480") in shown
    assert len(shown) == 2


def test_lines_trained_for_different_steps_say_so():
    short = make_row(steps=400, config_digest="f" * 16)
    header, _, *lines = cells_of(drawn([make_row(steps=1200), short]))
    assert header[:2] == ["steps", "model"]
    assert {line[0] for line in lines} == {"400", "1200"}
    assert "; steps 400; " in drawn([short])


def test_the_same_run_twice_counts_once():
    (summary,) = summarize([make_row(0), make_row(1), make_row(0, finished="later")])
    assert summary.seeds == (0, 1)


def test_the_same_run_twice_keeps_what_only_one_row_has():
    rows = [make_row(0), make_row(0, expected_calibration_error=0.1)]
    for order in (rows, rows[::-1]):
        (summary,) = summarize(order)
        assert summary.scores["expected_calibration_error"].mean == 0.1


def test_a_score_of_one_row_is_not_lost_to_the_null_of_the_other():
    rows = [make_row(0, boundary_f=None), make_row(0, boundary_f=0.5)]
    for order in (rows, rows[::-1]):
        (summary,) = summarize(order)
        assert summary.scores["boundary_f"].mean == 0.5


def test_two_results_of_one_seed_are_refused():
    with pytest.raises(UserError, match=r"seed=0 on camvid test: two different results \(finished"):
        summarize([make_row(0), make_row(1), make_row(0, confusion=BETTER)])


def test_runs_scored_on_other_labels_are_refused():
    other = ((81, 15, 5), (10, 180, 10), (6, 6, 8))
    with pytest.raises(UserError, match="scored on different data"):
        summarize([make_row(0), make_row(1, confusion=other)])


@pytest.mark.parametrize(
    "changed",
    [
        {"confusion": ((81, 15, 5), (10, 180, 10), (6, 6, 8))},
        {"data_digest": "2" * 64},
    ],
)
def test_lines_scored_on_other_labels_or_images_are_named(capsys, changed):
    rows = [make_row(0, data_digest="1" * 64), make_row(0, "enet", **changed)]
    assert len(summarize([rows[0], make_row(0, "segnet", data_digest="1" * 64)])) == 2
    assert capsys.readouterr().err == ""
    assert len(summarize(rows)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "different labels or images" in said
    assert all(row["name"] in said for row in rows)
    # At its own sizes a label has other pixels.
    assert len(summarize([rows[0], rows[1] | {"inference": "native"}])) == 2
    assert capsys.readouterr().err == ""
    # They are those of the dataset, whatever the resolution of training.
    native = [row | {"inference": "native"} for row in rows]
    assert len(summarize([native[0], native[1] | {"resolution": [48, 64]}])) == 2
    assert "different labels or images" in capsys.readouterr().err


def test_markdown_shows_what_differs_and_the_best():
    text = drawn(some_rows())
    assert "dataset camvid; split test; images 233; resolution 96x128; steps 3000; batch" in text
    header, rule, *lines = cells_of(text)
    assert header[:4] == ["loss.class_weights", "model", "params M", "seeds"]
    assert header[4:] == ["G", "C", "mIoU", *CLASS_NAMES]
    assert [line[0] for line in lines] == ["segnet", "none", ""]
    assert [line[3] for line in lines] == ["3", "2", "-"]
    assert lines[2][1:7] == ["all Road", "0.00", "-", "62.5", "33.3", "20.8"]
    # G of the seeds: 280/320, 286/320, 286/320
    assert lines[0][4] == "**88.8 ± 1.1**"
    # Road: no network beats predicting Road everywhere, which is bold
    accuracy = cells_of(drawn(some_rows(), per_class="accuracy"))
    assert accuracy[-1][header.index("Road")] == "**100.0**"
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert all(set(cell) <= set("-:") for cell in rule)


def test_overrides_that_are_the_same_in_all_are_left_out():
    assert "model.width" not in drawn(some_rows())
    assert "model.width" in drawn(some_rows(), "csv")
    other = make_row(3, overrides={"loss.class_weights": "none", "seed": 3})
    text = drawn([*some_rows(), other])
    assert {line[1] for line in cells_of(text)[2:]} == {"32", ""}


def test_one_line_has_no_best_and_no_deviation():
    text = drawn([make_row(0)])
    assert "**" not in text
    _, _, line = cells_of(text)
    assert line[:4] == ["segnet_basic", "0.36", "1", "83.8"]


def test_ties_as_printed_are_all_bold():
    rows = [make_row(0), make_row(0, weights="segnet")]
    _, _, *lines = cells_of(drawn(rows))
    assert [line[4] for line in lines] == ["**83.8**", "**83.8**"]


def test_an_absent_class_is_a_dash():
    counts = ((80, 15, 5), (10, 180, 10), (0, 0, 0))
    rows = [make_row(0, confusion=counts)]
    header, _, line = cells_of(drawn(rows))
    assert line[header.index("Pole")] == "-"
    (row,) = csv.DictReader(io.StringIO(drawn(rows, "csv")))
    assert row["iou_Pole_mean"] == ""
    assert row["iou_Sky_mean"] != ""


def test_a_measured_boundary_score_has_its_column():
    rows = [make_row(0, boundary_f=0.25), make_row(1, boundary_f=0.35)]
    header, _, line = cells_of(drawn(rows))
    assert line[header.index("BF")] == "30.0 ± 7.1"


def test_csv_has_the_numbers_at_full_precision():
    summaries = summarize(some_rows())
    lines = list(csv.DictReader(io.StringIO(drawn(some_rows(), "csv", "accuracy"))))
    assert [line["n"] for line in lines] == ["3", "2", "1"]
    assert [line["seeds"] for line in lines] == ["0 1 2", "0 1", ""]
    for line, summary in zip(lines, summaries, strict=True):
        assert (line["dataset"], line["split"], line["resolution"]) == ("camvid", "test", "96x128")
        assert float(line["mean_iou_mean"]) == summary.scores["mean_iou"].mean
        assert float(line["accuracy_Pole_mean"]) == summary.per_class["accuracy"][2].mean
    assert float(lines[0]["mean_iou_sd"]) == summaries[0].scores["mean_iou"].sd
    assert lines[2]["mean_iou_sd"] == ""


def test_mixed_classes_are_refused():
    other = make_row(0, dataset="other", class_names=["a", "b", "c"])
    with pytest.raises(UserError, match="one set of classes"):
        drawn([make_row(0), other])


def test_rows_of_the_published_protocol_stand_beside_the_published_figure():
    whole = {"resolution": [360, 480], "model_options": {}}
    rows = [
        make_camvid_row(800, model="segnet", **whole),
        make_camvid_row(800, model="fcn8s", **whole),
        make_camvid_row(800, model="deeplab_largefov", **whole),
        make_camvid_row(800, model="bayesian_segnet", **whole, inference="mean of 50 samples"),
        make_camvid_row(800, model="deconvnet", **whole),
        make_camvid_row(800, model="unet", **whole),
        make_camvid_row(800, model="segnet_basic", **whole | {"model_options": {"width": 32}}),
        make_camvid_row(800, model="dilation8", **whole | {"resolution": [96, 128]}),
    ]
    heading, _, *lines = cells_of(drawn(rows))
    place = heading.index("published")
    assert heading[place : place + 2] == ["published", "difference"]
    found = {line[heading.index("model")]: line[place : place + 2] for line in lines}
    # 800 right of 1200 in the union of each class: 66.7.
    assert found == {
        "segnet": ["50.2 (from pretrained weights)", "+16.5"],
        "fcn8s": ["57.0", "+9.7"],
        "deeplab_largefov": ["61.6 (480x640)", "+5.1"],
        "bayesian_segnet": ["63.1 (protocol unknown)", "+3.6"],
        "deconvnet": ["48.9 (protocol unknown)", "+17.8"],
        "unet": ["-", "-"],
        "segnet_basic": ["-", "-"],
        "dilation8": ["-", "-"],
    }
    assert "published" not in drawn(some_rows())


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        ("segnet", {"overrides": {"model.pretrained": "vgg16.safetensors"}}, "50.2 |"),
        ("segnet", {"resolution": [180, 240], "inference": "native"}, "50.2 (from pretrained w"),
        ("segnet", {"pretrained": True}, "50.2 |"),
        ("segnet", {"pretrained": False}, "50.2 (from pretrained w"),
        ("deconvnet", {"model_options": {"fc_width": 1024}}, "59.77"),
        ("segnet", {"inference": "flip"}, None),
        ("bayesian_segnet", {}, None),  # the published figure is of samples
        ("bayesian_segnet", {"inference": "native, mean of 50 samples"}, "63.1"),
        ("bayesian_segnet", {"inference": "mean of 50 samples, crf v2"}, None),
        ("deeplab_largefov", {"model_options": {"fc_width": 1024}}, "61.6"),
        ("deeplab_largefov", {"model_options": {"fc_width": 64}}, None),
        ("fc_densenet56", {"model_options": {"growth": 6}}, None),
    ],
)
def test_a_published_figure_is_of_the_same_network_and_inference(model, changed, said):
    row = make_camvid_row(800, model, **{"resolution": [360, 480], "model_options": {}} | changed)
    text = drawn([row])
    assert f" {said}" in text if said else "published" not in text


def test_more_scores_are_columns_when_they_are_asked_for():
    table = tables.table(summarize([make_row(0)]))
    assert "Dice" not in draw(table, "markdown")
    heading, _, line = cells_of(
        draw(
            arrange(table, columns=["mIoU", "Dice", "precision", "fwIoU", "mIoU present"]),
            "markdown",
        )
    )
    # Hits 80, 180, 8 of 100, 200, 20; predicted 96, 201, 23.
    expected = {
        "Dice": (160 / 196 + 360 / 401 + 16 / 43) / 3,
        "precision": (80 / 96 + 180 / 201 + 8 / 23) / 3,
        "fwIoU": (100 * 80 / 116 + 200 * 180 / 221 + 20 * 8 / 35) / 320,
        "mIoU present": (80 / 116 + 180 / 221 + 8 / 35) / 3,
    }
    found = dict(zip(heading, line, strict=True))
    assert {name: found[name] for name in expected} == {
        name: f"{100 * score:.1f}" for name, score in expected.items()
    }


def test_a_mean_over_seeds_is_of_one_dataset():
    rows = [make_row(0, data_digest="1" * 64), make_row(1, data_digest="2" * 64)]
    with pytest.raises(UserError, match="scored on different data"):
        summarize(rows)
    old = make_row(2)  # from before digests
    assert len(summarize([rows[0], old])) == 1
    for order in itertools.permutations([*rows, old]):
        with pytest.raises(UserError, match="scored on different data"):
            summarize(order)


def test_files_have_every_column_that_is_asked_for():
    whole = {"resolution": [360, 480], "model_options": {}}
    rows = [
        make_camvid_row(800, model="segnet", **whole, steps=400),
        make_camvid_row(800, model="fcn8s", **whole, steps=1200),
        make_camvid_row(800, model="unet", **whole, steps=400),
    ]
    table = arrange(tables.table(summarize(rows)), columns=["steps", "published"])
    records = {record["model"]: record for record in table.records}
    assert [records[name]["steps"] for name in ("segnet", "fcn8s")] == [400, 1200]
    published = [records[name]["published_mean_iou"] for name in ("segnet", "fcn8s", "unet")]
    assert published == [0.502, 0.57, None]
    assert "mean_iou_mean" not in records["unet"]
    ranked = arrange(tables.table(summarize(rows)), sort="published")
    assert [record["model"] for record in ranked.records] == ["fcn8s", "segnet", "unet"]
