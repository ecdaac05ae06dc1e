"""Draw figures from result rows and the logs of their runs, as SVG or PNG.

Methods differ in color and in marker, dash or hatching. The colors are those of Okabe and Ito,
"Color Universal Design" (2008), without black and yellow. The same rows give the same bytes.
"""

import hashlib
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from segjax.errors import listing, warn
from segjax.report import groups
from segjax.report.groups import Method, Setting
from segjax.results.summary import PER_CLASS

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FORMATS = ("svg", "png")
INK = "#1b1b1f"  # text and axes; `report.page` replaces it with the page's text color

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than the colors, for 42 distinct pairs
_HATCHES = ("", "//", "\\\\", "..", "xx", "--")
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)))
_GRID = "#8c8c94"
# Characters, in UTF-8, that a name may contain but XML may not.
_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")
_WIDTH = 10.0  # inches
_LONGEST_LABEL = 150  # bytes in the name of a file, of the 255 that file systems allow
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so every machine draws the same
    "font.size": 10,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names may contain a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "segjax",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.alpha": 0.35,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


def render(figure: Figure, format: str) -> bytes:
    """Return a figure as a file of one of FORMATS, the same bytes for the same figure."""
    content = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            content, format=format, dpi=150, metadata=metadata, transparent=format == "svg"
        )
    drawn = content.getvalue()
    return _NOT_XML.sub(b"?", drawn) if format == "svg" else drawn


def _panels(methods: Sequence[Method]) -> list[Sequence[Method]]:
    """Split methods into panels of similar size, with at most as many methods as colors."""
    count = -(-len(methods) // len(COLORS))
    edges = [round(k * len(methods) / count) for k in range(count + 1)]
    return [methods[a:b] for a, b in itertools.pairwise(edges)]


def _legend(figure: FigureBase, axes: Axes) -> None:
    """Add a legend above all axes, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    columns = int(_WIDTH * 11 // (max(map(len, names)) + 8))
    figure.legend(handles, names, loc="outside upper left", ncols=max(1, min(len(names), columns)))


def per_class(methods: Sequence[Method], kind: str = "iou") -> Figure:
    """Draw a bar per class and method: mean over the seeds, whiskers of one standard deviation.

    Args:
      methods: methods of one setting.
      kind: "iou" or "accuracy".
    """
    names = methods[0].summary.row["class_names"]
    panels = _panels(methods)
    places = np.arange(len(names))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4 * len(panels)))
        parts = figure.subfigures(len(panels), squeeze=False)[:, 0]
        for part, shown in zip(parts, panels, strict=True):
            axes = part.subplots()
            width = 0.84 / len(shown)
            for k, method in enumerate(shown):
                estimates = method.summary.per_class[kind]
                axes.bar(
                    places + (k - (len(shown) - 1) / 2) * width,
                    [100 * e.mean if e else np.nan for e in estimates],
                    width,
                    yerr=_whiskers(estimates),
                    label=method.label,
                    color=COLORS[k],
                    hatch=_HATCHES[k],
                    edgecolor=INK,
                    linewidth=0.5,
                    error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
                )
            absent = [e is None for e in shown[0].summary.per_class[kind]]
            ticks = [f"{n}\n(absent)" if no else n for n, no in zip(names, absent, strict=True)]
            axes.set_xticks(places, ticks, fontsize=9, rotation=0 if len(names) <= 12 else 30)
            axes.tick_params(axis="x", length=0)
            axes.grid(visible=False, axis="x")
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.set_ylim(0, 100)
            axes.set_ylabel(f"{PER_CLASS[kind]}, %")
            _legend(part, axes)
    return figure


def _whiskers(estimates):
    """Return standard deviations in percent, NaN if unknown; None if all are unknown."""
    deviations = [100 * e.sd if e and e.sd is not None else np.nan for e in estimates]
    return None if np.isnan(deviations).all() else deviations


def learning_curves(methods: Sequence[Method]) -> Figure | None:
    """Draw validation mIoU and training loss by step: mean and standard deviation over the seeds.

    A curve covers the steps that all runs of its method reached. None if no run has a log.
    """
    found = {method.label: [groups.curves(run) for run in method.runs] for method in methods}
    courses = {label: list(filter(None, each)) for label, each in found.items()}
    trained = [method.label for method in methods if method.summary.row["steps"]]
    methods = [method for method in methods if courses[method.label]]
    if not methods:
        return None
    if without := [label for label in trained if None in found[label]]:
        warn(f"not in the learning curves, runs without log of {listing(without)}")
    panels = _panels(methods)
    titles = ("validation mIoU, %", "training loss")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.6 * len(panels)))
        parts = figure.subfigures(len(panels), squeeze=False)[:, 0]
        for part, shown in zip(parts, panels, strict=True):
            row = part.subplots(1, 2)
            for which, (axes, title, scale) in enumerate(zip(row, titles, (100, 1), strict=True)):
                for k, method in enumerate(shown):
                    steps, values = groups.common(c[which] for c in courses[method.label])
                    _band(axes, steps, scale * np.array(values), k, method.label)
                axes.set_xlabel("step")
                axes.set_ylabel(title)
            _legend(part, row[0])
    return figure


def _band(axes: Axes, steps: Sequence[int], values: np.ndarray, style: int, label: str) -> None:
    """Draw the mean of values (runs, steps) over the runs, with a band if there are several."""
    mean = values.mean(0)
    axes.plot(
        steps,
        mean,
        color=COLORS[style],
        linestyle=DASHES[style],
        marker=MARKERS[style],
        markersize=4,
        linewidth=1.6,
        label=label,
    )
    if len(values) > 1:
        sd = values.std(0, ddof=1)
        axes.fill_between(steps, mean - sd, mean + sd, color=COLORS[style], alpha=0.22, linewidth=0)


def cost(methods: Sequence[Method]) -> Figure | None:
    """Draw mIoU against parameters and against training time, mean ± sd over the seeds.

    Baselines, which have no parameters, are left out. None if nothing remains.
    """
    trained = [
        (method, estimate)
        for method in methods
        if method.summary.row["parameters"] and (estimate := method.summary.scores["mean_iou"])
    ]
    if not trained:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, max(3.6, 2.8 + 0.2 * len(trained))))
        parameters, time = figure.subplots(1, 2, sharey=True)
        for k, (method, estimate) in enumerate(trained):
            seconds = [run.row["seconds"] for run in method.runs]
            minutes = np.array([s for s in seconds if s is not None]) / 60
            spread = minutes.std(ddof=1) if len(minutes) > 1 else None
            style = {
                "color": COLORS[k % len(COLORS)],
                "marker": MARKERS[k % len(MARKERS)],
                "markersize": 8,
                "markeredgecolor": INK,
                "markeredgewidth": 0.5,
                "capsize": 3,
                "linestyle": "none",
                "yerr": None if estimate.sd is None else 100 * estimate.sd,
                "label": method.label,
            }
            score = 100 * estimate.mean
            parameters.errorbar(method.summary.row["parameters"] / 1e6, score, **style)
            if minutes.size:
                time.errorbar(minutes.mean(), score, xerr=spread, **style)
        for axes, heading in ((parameters, "parameters, million"), (time, "training, minutes")):
            axes.set_xlabel(heading)
            axes.margins(0.12)
            if np.divide(*axes.dataLim.intervalx[::-1]) > 10:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        parameters.set_ylabel("mIoU, %")
        _legend(figure, parameters)
    return figure


def ablation(methods: Sequence[Method]) -> Figure | None:
    """Draw mIoU against each number that a grid varies, a line for each choice of the others.

    Whiskers are one standard deviation over the seeds. None if no two methods differ in one number
    alone.
    """
    panels = groups.ablations(methods)
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.8 * len(panels)))
        parts = figure.subfigures(len(panels), squeeze=False)[:, 0]
        for part, (name, shown) in zip(parts, panels.items(), strict=True):
            axes = part.subplots()
            for k, (label, points) in enumerate(shown.items()):
                values, estimates = zip(*points, strict=True)
                axes.errorbar(
                    values,
                    [100 * estimate.mean for estimate in estimates],
                    yerr=_whiskers(estimates),
                    color=COLORS[k % len(COLORS)],
                    linestyle=DASHES[k % len(DASHES)],
                    marker=MARKERS[k % len(MARKERS)],
                    markersize=6,
                    capsize=3,
                    label=label,
                )
            axes.set_xlabel(name)
            axes.set_ylabel("mIoU, %")
            ticks = sorted({value for points in shown.values() for value, _ in points})
            if ticks[0] > 0 and ticks[-1] / ticks[0] > 10:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(ticker.NullLocator())
            if len(ticks) <= 12:
                axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            _legend(part, axes)
    return figure


def confusion(method: Method) -> Figure:
    """Draw the confusion matrix, summed over the seeds, in percent of each true class."""
    names = method.summary.row["class_names"]
    counts = np.array([run.row["confusion"] for run in method.runs], np.int64).sum(0)
    totals = counts.sum(1, keepdims=True)
    percent = 100 * counts / np.where(totals, totals, 1)
    side = 2.2 + 0.47 * len(names)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(side + 0.6, side))
        axes = figure.subplots()
        # Squares, not an image, which a browser would blur.
        axes.pcolormesh(percent, cmap="Blues", vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
        for (truth, predicted), value in np.ndenumerate(percent):
            axes.text(
                predicted + 0.5,
                truth + 0.5,
                f"{value:.0f}" if totals[truth, 0] else "-",
                ha="center",
                va="center",
                fontsize=9,
                color="#ffffff" if value > 55 else "#000000",
            )
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        axes.spines[:].set_visible(False)
        axes.set_title(textwrap.fill(method.label, int(9 * side)), fontsize=10)
    return figure


def figures(setting: Setting) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure of all figures of a setting."""
    methods = setting.methods
    seeds = "mean and sample standard deviation over the seeds"
    yield "per_class_iou", f"IoU of each class, {seeds}.", per_class(methods, "iou")
    yield "per_class_accuracy", f"Accuracy of each class, {seeds}.", per_class(methods, "accuracy")
    drawn: tuple[tuple[str, str, Callable[[Sequence[Method]], Figure | None]], ...] = (
        ("learning_curves", f"Learning curves, {seeds}.", learning_curves),
        ("ablation", f"mIoU against each number that the grid varies, {seeds}.", ablation),
        ("cost", f"mIoU of trained networks against parameters and training time, {seeds}.", cost),
    )
    for name, caption, draw in drawn:
        figure = draw(methods)
        if figure:
            yield name, caption, figure
    names: set[str] = set()
    for method in methods:
        caption = f"{method.label}: percent of the pixels of each true class, over all seeds."
        names.add(name := _file_name(method.label, names))
        yield name, caption, confusion(method)


def _file_name(label: str, others: Container[str]) -> str:
    """Return the name of a confusion matrix, of a length that file systems allow, unlike others."""
    slug = re.sub(r"[^\w.=-]+", "_", label)
    short = slug.encode()[:_LONGEST_LABEL].decode(errors="ignore")
    if short != slug or f"confusion_{short}" in others:
        short += f"-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return f"confusion_{short}"
