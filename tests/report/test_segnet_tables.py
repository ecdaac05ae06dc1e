"""Tables 1, 3 and 6 of the SegNet paper beside ours."""

import itertools
import json

import pytest

from segjax.cli.main import main
from segjax.errors import UserError
from segjax.report import segnet_tables
from segjax.report.table import draw
from segjax.results import published
from segjax.results.summary import summarize
from support.rows import make_camvid_row

VARIANTS = {
    record.model: record
    for record in published.records("table1", "test")
    if record.class_weights == "median frequency"
}


def ranked_rows(order, weights="segnet", **changed):
    """Return our rows of the variants, two seeds each, scores ascending in this order."""
    return [
        make_camvid_row(500 + 10 * place + seed, model, seed, weights, **changed)
        for place, model in enumerate(order)
        for seed in (0, 1)
    ]


def by_paper():
    return sorted(VARIANTS, key=lambda model: VARIANTS[model].scores["mean_iou"])


def correlations(rows):
    return segnet_tables.table1(summarize(rows)).facts["rank_correlation"]


def test_table_1_alone_has_the_papers_columns():
    table = segnet_tables.table1()
    assert [c.label for c in table.columns] == [
        "variant",
        *(f"paper {name}" for name in ("params M", "G", "C", "mIoU", "BF")),
    ]
    assert table.groups == [("Median-frequency balancing", 8), ("Natural frequencies", 8)]
    assert table.facts["rank_correlation"] == []
    assert "ours" not in draw(table)
    train = segnet_tables.table1(split="train")
    assert train.records[0]["paper_mean_iou"] == 82.7
    assert "paper BF" not in [column.label for column in train.columns]


def test_ours_are_beside_the_same_network_and_weighting():
    rows = ranked_rows(by_paper()) + ranked_rows(["fcn_basic"], "none", boundary_f=0.3)
    table = segnet_tables.table1(summarize(rows))
    lines = {(r["variant"], r["class_weights"]): r for r in table.records}
    line = lines["FCN-Basic", "natural"]
    assert (line["paper_boundary_f"], line["ours_boundary_f"]) == (37.33, 30)
    assert line["difference_boundary_f"] == pytest.approx(-7.33)
    assert line["ours_seeds"] == 2
    assert line["ours_class_accuracy"] == pytest.approx(50.05)
    assert line["difference_class_accuracy"] == pytest.approx(50.05 - 55.6)
    assert lines["SegNet-Basic", "natural"]["ours_class_accuracy"] is None
    balanced = lines["Bilinear-Interpolation", "median frequency"]
    assert balanced["ours_class_accuracy"] == pytest.approx(50.05)
    assert balanced["ours_boundary_f"] is None
    text = draw(table)
    assert "96x128, networks of width 32, mean ± sample standard deviation" in text
    wide = [row | {"model_options": {}} if row["model"] == "segnet_basic" else row for row in rows]
    assert "96x128, networks of width 32, 64, mean" in draw(segnet_tables.table1(summarize(wide)))
    assert "| 50.0 ± 0.1 |" in text or "| 50.1 ± 0.1 |" in text
    assert "-7.3 |" in text


def test_both_median_frequency_weights_match_the_papers(capsys):
    rows = ranked_rows(["fcn_basic"], "median_frequency") + ranked_rows(["segnet_basic"], "enet")
    table = segnet_tables.table1(summarize(rows))
    (left_out,) = capsys.readouterr().err.splitlines()
    assert left_out.startswith(
        "segjax: warning: not in the table, as no line fits: small model.name="
    )
    found = [(r["variant"], r["class_weights"]) for r in table.records if r["ours_seeds"]]
    assert found == [("FCN-Basic", "median frequency")]


def test_rank_correlation_is_one_for_the_papers_order_and_counts_swaps():
    (fact,) = correlations(ranked_rows(by_paper()))
    assert fact == {
        "score": "mean_iou",
        "class_weights": "median frequency",
        "variants": 8,
        "spearman": pytest.approx(1),
        "kendall": pytest.approx(1),
    }
    (fact,) = correlations(ranked_rows(by_paper()[::-1]))
    assert (fact["spearman"], fact["kendall"]) == (pytest.approx(-1), pytest.approx(-1))
    # Two neighbors swapped: one of the 28 pairs; the sum of squared differences of ranks is 2.
    order = by_paper()
    order[2], order[3] = order[3], order[2]
    (fact,) = correlations(ranked_rows(order))
    assert fact["kendall"] == pytest.approx((27 - 1) / 28)
    assert fact["spearman"] == pytest.approx(1 - 6 * 2 / (8 * 63))
    text = draw(segnet_tables.table1(summarize(ranked_rows(order))))
    assert "over 8 variants, median frequency weights: Spearman 0.98, Kendall 0.93." in text


def test_boundaries_are_ranked_where_all_seeds_have_them():
    rows = ranked_rows(by_paper(), boundary_f=None)
    for row in rows:
        row["boundary_f"] = float(VARIANTS[row["model"]].scores["boundary_f"]) / 200
    facts = correlations(rows)
    assert [fact["score"] for fact in facts] == ["mean_iou", "boundary_f"]
    assert facts[1]["kendall"] == pytest.approx(1)
    rows[0]["boundary_f"] = None
    assert correlations(rows)[1]["variants"] == 7


def test_too_few_or_equal_scores_are_not_ranked():
    assert correlations(ranked_rows(by_paper()[:2])) == []
    equal = list(itertools.chain(*(ranked_rows([model]) for model in by_paper())))
    assert correlations(equal) == []


def test_two_configs_for_one_line_and_none_at_all_are_refused():
    rows = ranked_rows(["fcn_basic"]) + ranked_rows(["fcn_basic"], resolution=[360, 480])
    with pytest.raises(UserError, match=r"two configs fit FCN-Basic: .* at .*; give the results"):
        segnet_tables.table1(summarize(rows))
    with pytest.raises(UserError, match="none of the results fits a line, expected rows of bil"):
        segnet_tables.table1(summarize([make_camvid_row(500, "unet")]))
    refined = make_camvid_row(500, "fcn_basic", inference="crf v2")
    with pytest.raises(UserError, match="none of the results fits"):
        segnet_tables.table1(summarize([refined]))


def test_rows_of_some_images_are_left_out_and_widths_are_stated(capsys):
    rows = ranked_rows(["fcn_basic"], model_options={"width": 16})
    some = ranked_rows(["segnet_basic"], num_images=10)
    table = segnet_tables.table1(summarize(rows + some))
    assert "segnet_basic" in capsys.readouterr().err
    assert [r["variant"] for r in table.records if r["ours_seeds"]] == ["FCN-Basic"]
    assert "96x128, networks of width 16, mean" in draw(table)


def test_deconvnet_in_table_3_has_1024_features_in_its_fully_connected_layers(capsys):
    rows = [
        make_camvid_row(700, "deconvnet", model_options={"fc_width": 1024}),
        make_camvid_row(600, "deconvnet", model_options={}, config_digest="4096"),
    ]
    table = segnet_tables.table3(summarize(rows))
    (line,) = [r for r in table.records if r["ours_seeds"]]
    assert line["network"] == "DeconvNet (fc 1024)"
    assert line["ours_class_accuracy"] == pytest.approx(70)
    assert "no line fits" in capsys.readouterr().err


def test_table_3_has_every_column_of_iterations_and_ours_at_the_last():
    rows = [
        make_camvid_row(700, "segnet", model_options={}),
        make_camvid_row(600, "fcn8s", model_options={}),
        make_camvid_row(650, "fcn8s", model_options={"upsampling": "learnt"}),
        make_camvid_row(500, "deeplab_largefov", model_options={}),
        make_camvid_row(550, "deeplab_largefov", model_options={}, inference="crf v1"),
    ]
    table = segnet_tables.table3(summarize(rows))
    assert len(table.records) == 18
    ours = {
        (r["network"], r["iterations"]): r["ours_class_accuracy"]
        for r in table.records
        if r["ours_seeds"]
    }
    assert ours == {
        ("SegNet", ">80K (at most 140K)"): pytest.approx(70),
        ("DeepLab-LargeFOV", ">80K (at most 140K)"): pytest.approx(50),
        ("DeepLab-LargeFOV-denseCRF", ">80K (at most 140K)"): pytest.approx(55),
        ("FCN (fixed bilinear)", ">80K (at most 200K)"): pytest.approx(60),
        ("FCN (learnt deconv)", ">80K (at most 160K)"): pytest.approx(65),
    }
    (line,) = [r for r in table.records if (r["network"], r["iterations"]) == ("SegNet", "80K")]
    assert float(line["paper_boundary_f"]) == 42.08
    assert all("3433" in record["notes"] for record in table.records)


def test_cost_sets_our_parameters_beside_the_papers_megabytes(capsys):
    assert main(["table", "cost", "--format", "json"]) == 0
    rows = {row["network"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["paper_model_mb"] for name, row in rows.items()} == {
        "SegNet": 117,
        "DeepLab-LargeFOV": 83,
        "FCN (learnt deconv)": 539,
        "DeconvNet": 877,
    }
    assert rows["SegNet"]["ours_parameters"] == 29_449_355
    assert rows["DeepLab-LargeFOV"]["ours_parameters"] == 20_495_179
    assert rows["DeconvNet"]["ours_parameters"] == 81_917_259
    for row in rows.values():
        assert row["ours_model_MB"] == round(row["ours_parameters"] * 4 / 1e6)
    assert main(["table", "cost", "--format", "latex"]) == 0
    assert r"877 (sic)" in capsys.readouterr().out
