"""Figures: the numbers of the drawn shapes, and colors that everyone can distinguish."""

import itertools
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer

from segjax import predict, results
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.predict import Predictions
from segjax.report import figures, groups, predictions
from segjax.results.summary import summarize
from segjax.system import stored
from support.errors import command_refusal
from support.rows import OTHER, make_baseline, make_row, write_rows


def make_rows():
    return [
        make_row(0),
        make_row(1, confusion=OTHER, seconds=601.5),
        make_row(0, weights="enet", confusion=OTHER),
        make_baseline(),
    ]


def make_run(folder, row, courses):
    """Write a run directory: row, config, and a log of (step, training losses since, mIoU)."""
    folder.mkdir(parents=True)
    results.write_row(folder / "result.json", row)
    (folder / "config.json").write_text(json.dumps({"config": {"loss.class_weights": "none"}}))
    lines = []
    for step, losses, score in courses:
        for k, loss in enumerate(losses):
            lines.append({"step": step - len(losses) + k + 1, "train/loss": loss})
        lines.append({"step": step, "val/mean_iou": score, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def methods(tmp_path):
    (setting,) = groups.read_settings([write_rows(tmp_path / "rows.jsonl", make_rows())])
    return setting.methods


def bars_of(axes):
    return [container for container in axes.containers if isinstance(container, BarContainer)]


@pytest.mark.parametrize("kind", ["iou", "accuracy"])
def test_bars_are_as_high_as_the_means_and_whiskers_as_long_as_the_deviations(methods, kind):
    groups = {"none": make_rows()[:2], "enet": make_rows()[2:3]}
    figure = figures.per_class(methods, kind)
    containers = {bars.get_label(): bars for axes in figure.axes for bars in bars_of(axes)}
    assert set(containers) == {method.label for method in methods}
    for weights, rows in groups.items():
        values = 100 * np.array([row[f"per_class_{kind}"] for row in rows])
        container = containers[f"segnet_basic, class_weights={weights}"]
        heights = [bar.get_height() for bar in container.patches]
        np.testing.assert_allclose(heights, values.mean(0), rtol=1e-12)
        if len(rows) == 1:
            assert container.errorbar is None
            continue
        (whiskers,) = container.errorbar.lines[2]
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
        np.testing.assert_allclose(np.diff(ends)[:, 0] / 2, values.std(0, ddof=1), rtol=1e-9)


def test_an_absent_class_has_no_bar_but_a_label(tmp_path):
    row = make_row(confusion=((80, 20, 0), (10, 190, 0), (0, 0, 0)))
    (setting,) = groups.read_settings([write_rows(tmp_path / "rows.jsonl", [row])])
    figure = figures.per_class(setting.methods)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.containers[0].patches]
    assert [np.isnan(height) for height in heights] == [False, False, True]
    said = [label.get_text() for label in axes.get_xticklabels()]
    assert said == ["Sky", "Road", "Pole\n(absent)"]


def test_methods_of_a_panel_differ_in_color_and_in_hatching_or_marker(tmp_path):
    rows = [make_row(weights=f"w{k}" * (k + 1)) for k in range(2 * len(figures.COLORS) + 1)]
    (setting,) = groups.read_settings([write_rows(tmp_path / "rows.jsonl", rows)])
    figure = figures.per_class(setting.methods)
    panels = [bars_of(axes) for axes in figure.axes]
    assert [len(panel) for panel in panels] == [4, 5, 4]
    for panel in panels:
        looks = [(bars.patches[0].get_facecolor(), bars.patches[0].get_hatch()) for bars in panel]
        for look in zip(*looks, strict=True):
            assert len(set(look)) == len(panel)
    drawn = figures.cost(setting.methods)
    points = [c.lines[0] for c in drawn.axes[0].containers]
    assert len({(p.get_color(), p.get_marker()) for p in points}) == len(rows)


def test_learning_curves_are_means_with_a_band_of_one_deviation(tmp_path):
    make_run(tmp_path / "a", make_row(0), [(4, [4.0, 2.0], 0.2), (8, [2.0, 1.0], 0.4), (9, [1], 1)])
    make_run(
        tmp_path / "b", make_row(1, confusion=OTHER), [(4, [5.0, 3.0], 0.3), (8, [2.0, 2.0], 0.6)]
    )
    (setting,) = groups.read_settings([tmp_path])
    score, loss = figures.learning_curves(setting.methods).axes
    for axes, values in ((score, [[20, 40], [30, 60]]), (loss, [[3, 1.5], [4, 2]])):
        (line,) = axes.get_lines()
        np.testing.assert_array_equal(line.get_xdata(), [4, 8])  # the steps of both
        np.testing.assert_allclose(line.get_ydata(), np.mean(values, 0))
        (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
        (path,) = band.get_paths()
        for step, mean, sd in zip(
            (4, 8), np.mean(values, 0), np.std(values, 0, ddof=1), strict=True
        ):
            ys = path.vertices[path.vertices[:, 0] == step, 1]
            np.testing.assert_allclose([ys.min(), ys.max()], [mean - sd, mean + sd])


def test_one_run_has_no_band_and_rows_alone_no_curves(tmp_path, methods):
    assert figures.learning_curves(methods) is None
    make_run(tmp_path / "run", make_row(0), [(4, [4.0], 0.2), (8, [2.0], 0.4)])
    (setting,) = groups.read_settings([tmp_path / "run"])
    figure = figures.learning_curves(setting.methods)
    assert not any(axes.collections for axes in figure.axes)


def test_runs_without_log_and_damaged_logs_are_named(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), make_row(seed), [(4, [4.0], 0.2)])
    (tmp_path / "1/metrics.jsonl").unlink()
    (setting,) = groups.read_settings([tmp_path])
    figures.learning_curves(setting.methods)
    said = "segjax: warning: not in the learning curves, runs without log of segnet_basic\n"
    assert capsys.readouterr().err == said
    (tmp_path / "0/metrics.jsonl").write_text('{"step": 4, "train/loss": "high"}\n')
    with pytest.raises(UserError, match=r'train/loss of step 4 is "high", expected a number'):
        figures.learning_curves(setting.methods)


def test_cost_shows_trained_networks(methods):
    parameters, time = figures.cost(methods).axes
    assert len(parameters.containers) == len(time.containers) == 2  # the baseline is left out
    (point,) = [c for c in time.containers if c.get_label().endswith("none")]
    score = np.mean([row["mean_iou"] for row in make_rows()[:2]])
    found = (float(point.lines[0].get_xdata()[0]), float(point.lines[0].get_ydata()[0]))
    np.testing.assert_allclose(found, (np.mean([1201.5, 601.5]) / 60, 100 * score))
    for container in parameters.containers:
        assert float(container.lines[0].get_xdata()[0]) == pytest.approx(0.357123)
    baselines = [method for method in methods if method.label == "all Road"]
    assert figures.cost(baselines) is None


def make_point(seed, right, **overrides):
    confusion = ((right, 100 - right, 0), (0, 100, 0), (0, 0, 100))
    varied = {f"model.options.{name}": value for name, value in overrides.items()}
    return make_row(
        seed,
        confusion=confusion,
        overrides=varied | {"seed": seed},
        config_digest=str(overrides),
    )


def test_ablation_has_a_line_for_each_choice_of_the_other_fields(tmp_path, methods):
    rows = [
        make_point(0, 90, depth=4, stride=8),
        make_point(1, 80, depth=4, stride=8),
        make_point(0, 70, depth=6, stride=8),
        make_point(0, 50, depth=6, stride=32),
        make_point(0, 40, depth=7, stride=256),  # differs from all others in both
        make_point(0, 30, head="aspp"),  # has neither number
    ]
    (setting,) = groups.read_settings([write_rows(tmp_path / "rows.jsonl", rows)])
    figure = figures.ablation(setting.methods)
    depth, stride = figure.axes

    def score(*places):
        return 100 * np.mean([rows[place]["mean_iou"] for place in places])

    for axes, name, label, expected in (
        (depth, "depth", "segnet_basic, stride=8", [(4, score(0, 1)), (6, score(2))]),
        (stride, "stride", "segnet_basic, depth=6", [(8, score(2)), (32, score(3))]),
    ):
        assert axes.get_xlabel() == f"model.options.{name}"
        (line,) = axes.containers
        assert line.get_label() == label
        np.testing.assert_allclose(line.lines[0].get_xydata(), expected)
    (whiskers,) = depth.containers[0].lines[2]
    several, single = whiskers.get_segments()
    deviation = 100 * np.std([rows[0]["mean_iou"], rows[1]["mean_iou"]], ddof=1)
    np.testing.assert_allclose(np.ptp(several[:, 1]) / 2, deviation)
    assert not single.size

    assert figures.ablation(methods) is None  # class weights are no number


def test_runs_of_other_steps_are_other_lines_of_an_ablation(tmp_path):
    rows = [
        make_point(0, 90, depth=4),
        make_point(0, 70, depth=6),
        make_point(0, 95, depth=6) | {"steps": 9000, "config_digest": "9000"},
    ]
    (setting,) = groups.read_settings([write_rows(tmp_path / "rows.jsonl", rows)])
    (axes,) = figures.ablation(setting.methods).axes
    (line,) = axes.containers
    assert line.get_label() == "segnet_basic, 3000 steps"
    np.testing.assert_array_equal(line.lines[0].get_xdata(), [4, 6])


def test_steps_that_a_grid_varies_are_the_points_of_a_line():
    rows = [
        make_row(0, weights=str(steps), overrides={"steps": steps, "seed": 0}, steps=steps)
        for steps in (100, 200)
    ]
    lines = groups.ablations([groups.Method("", s, ()) for s in summarize(rows)])
    ((label, points),) = lines["steps"].items()
    assert label == "segnet_basic"
    assert [value for value, _ in points] == [100, 200]


def test_predictions_on_other_labels_are_left_out(tmp_path, monkeypatch):
    rows = [make_row(0), make_row(0, "enet")]
    for number, row in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.write_row(folder / "result.json", row)
        (folder / "config.json").write_text(json.dumps(stored.seal({"config": {}})))

    def predict_one(workdirs, count, data_dir):
        label = np.full((2, 3), int(workdirs[0].name), np.uint8)
        example = {"image": np.zeros((2, 3, 3), np.uint8), "label": label}
        return Predictions(None, [example], [("run", label[None])])

    monkeypatch.setattr(predict, "predict_test_images", predict_one)
    (setting,) = groups.read_settings([tmp_path])
    found, missing = predictions.predict_methods(setting, 1, None, lambda done: None)
    assert len(found.labels) == 1
    (line,) = missing
    assert line.endswith(f": other images or labels than those of {found.labels[0][0]}")


def test_predictions_at_another_resolution_are_left_out(tmp_path, monkeypatch):
    for number, size in enumerate(((2, 3), (4, 6))):
        folder = tmp_path / str(number)
        folder.mkdir()
        weights = ("none", "enet")[number]
        row = make_row(0, weights, resolution=list(size), inference="native")
        results.write_row(folder / "result.json", row)
        (folder / "config.json").write_text(json.dumps(stored.seal({"config": {}})))

    def predict_one(workdirs, count, data_dir):
        label = np.zeros((2, 3) if workdirs[0].name == "0" else (4, 6), np.uint8)
        example = {"image": np.zeros((*label.shape, 3), np.uint8), "label": label}
        return Predictions(None, [example], [("run", label[None])])

    monkeypatch.setattr(predict, "predict_test_images", predict_one)
    (setting,) = groups.read_settings([tmp_path])
    _, (line,) = predictions.predict_methods(setting, 1, None, lambda done: None)
    assert "another resolution than that of segnet_basic" in line


def test_confusion_is_of_all_seeds_and_each_true_class_sums_to_one(methods):
    (method,) = [m for m in methods if m.label.endswith("none")]
    (axes,) = figures.confusion(method).axes
    (mesh,) = [c for c in axes.collections if isinstance(c, QuadMesh)]
    counts = np.array(make_row()["confusion"]) + np.array(OTHER)
    shown = np.asarray(mesh.get_array()).reshape(3, 3)
    np.testing.assert_allclose(shown, 100 * counts / counts.sum(1, keepdims=True))
    written = {text.get_position(): text.get_text() for text in axes.texts}
    for (truth, predicted), value in np.ndenumerate(shown):
        assert written[predicted + 0.5, truth + 0.5] == f"{value:.0f}"
    assert axes.yaxis_inverted()  # the first class on top, as in a table


def test_files_are_reproducible_and_parse(tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [make_row(model="$a_{ <b>$")])
    for name in ("one", "two"):
        arguments = ["figures", "--results", str(rows), "--output", str(tmp_path / name)]
        assert main([*arguments, "--format", "svg", "png", "--no-predictions"]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    drawn = ("per_class_iou", "per_class_accuracy", "cost", "confusion__a__b_")
    assert names == {f"{name}.{format}" for name in drawn for format in ("svg", "png")}
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes(), name
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"<dc:date>" not in content
    assert "$a_{ &lt;b&gt;$" in (tmp_path / "one" / "per_class_iou.svg").read_text()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_may_contain_characters_that_xml_may_not(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [make_row(model="a\0b\x1b\ufffec")])
    ((_, _, figure), *_) = figures.figures(groups.read_settings([rows])[0])
    content = figures.render(figure, "svg")
    assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert b">a?b??c</text>" in content


def test_settings_have_files_of_their_own(tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "rows.jsonl", [make_row(), make_row(split="val", num_images=101)])
    monkeypatch.setattr(figures, "render", lambda figure, format: format.encode())
    files = predictions.draw(groups.read_settings([rows]), tmp_path / "out", ["svg"])
    assert len(set(files)) == len(files) == len(list((tmp_path / "out").iterdir())) == 2 * 4
    assert {file.name.split("_")[0] for file in files} == {
        "camvid-test-split-233-images-of-96x128",
        "camvid-val-split-101-images-of-96x128",
    }


def test_the_error_for_a_figure_is_one_line(tmp_path, capsys):
    missing = tmp_path / "nothing"
    command_refusal(capsys, ["figures", "--results", missing, "--output", tmp_path / "out"])
    assert not (tmp_path / "out").exists()
    make_run(tmp_path / "run", make_row(0), [])
    for content in ("{", r'{"config": {"a": "\ud800"}}', "[" * 100_000):
        (tmp_path / "run" / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json cannot be read"):
            groups.read_settings([tmp_path / "run"])


def test_labels_show_what_differs_and_are_unique():
    rows = [
        make_row(),
        make_row(weights="enet"),
        make_row(weights="enet", inference="crf v2"),
        make_row(weights="enet", config_digest="f" * 16),
        make_baseline(),
    ]
    found = groups.labels([(row, {"steps": k, "seed": 0}) for k, row in enumerate(rows)])
    assert found == [
        "segnet_basic, class_weights=none",
        "segnet_basic, class_weights=enet, steps=1",
        "segnet_basic, class_weights=enet, steps=2",
        "segnet_basic, class_weights=enet, steps=3",
        "all Road",
    ]
    found = groups.labels([(row, {}) for row in rows])
    assert found[1:4] == [
        "segnet_basic, class_weights=enet, 0123456789ab0004",
        "segnet_basic, class_weights=enet, crf v2",
        "segnet_basic, class_weights=enet, ffffffffffffffff",
    ]


# Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1.0; on linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(color, sight):
    """Return the CIELAB values of a color as seen with a kind of color vision."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colors_differ_in_every_kind_of_color_vision(sight):
    """A distance of 2.3 is just noticeable; pure red and green keep 26 of 171 in deuteranopia."""
    seen = {color: lab(color, SIGHT[sight]) for color in figures.COLORS}
    distances = {
        pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]])
        for pair in itertools.combinations(figures.COLORS, 2)
    }
    assert min(distances.values()) > 10, min(distances.items(), key=lambda item: item[1])


def test_names_of_files_are_short_and_differ():
    long = "data.folder=" + "/a/very/long/path" * 30
    names = set()
    for label in (long, long + "b", "a b", "a_b", "ä" * 100):
        names.add(figures._file_name(label, names))
    assert len(names) == 5
    assert "confusion_a_b" in names
    assert max(len(f"{name}.svg.tmp".encode()) for name in names) < 200
