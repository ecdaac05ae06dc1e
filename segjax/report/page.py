"""One self-contained HTML page of results: tables, figures, predictions, configs and provenance."""

import datetime
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

import segjax
from segjax.data import pictures
from segjax.data.datasets import VOID
from segjax.files import write_whole
from segjax.predict import Compared
from segjax.progress import Bar
from segjax.report import figures, groups, html, predictions, tables
from segjax.report.groups import Method, Run, Setting
from segjax.report.html import Cell, escape
from segjax.results.summary import PER_CLASS, SCORES, Estimate

_FEW = 2  # confusion matrices that are shown without being asked for


def write(paths: Sequence[str], output: Path, *, count: int, data_dir: str | None) -> int:
    """Writes the page of the rows that the paths lead to and gives the number of rows.

    Args:
      paths: workdirs, folders of them, or files of rows; of a row without its workdir there are no
        learning curves and no predictions.
      output: the page.
      count: test images to show; 0: none, and no network is asked.
      data_dir: where prepared sets lie, if elsewhere than in training.

    Raises:
      UserError: what `gather.gather` refuses.
    """
    settings = groups.gather(paths)
    shown: list[tuple[Compared | None, list[str]]] = []
    for setting in settings:
        with Bar("predictions", len(setting.methods)) as bar:
            shown.append(
                predictions.predictions(setting, count, data_dir, bar.advance)
                if count
                else (None, ["they were not asked for"])
            )
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_whole(output, page(settings, shown, paths, made))
    return sum(len(method.runs) for setting in settings for method in setting.methods)


def page(
    settings: Sequence[Setting],
    shown: Sequence[tuple[Compared | None, list[str]]],
    paths: Sequence[str],
    made: str,
) -> str:
    """The page as text.

    Args:
      shown: of each setting its predictions, and what is missing and why.
      paths: where the rows are from.
      made: the time of making, as it is shown.
    """
    rows = [run.row for s in settings for method in s.methods for run in method.runs]
    experiments = ", ".join(dict.fromkeys(row["experiment"] for row in rows))
    styles: list[str] = []
    main = [
        _setting(k, setting, *which, styles)
        for k, (setting, which) in enumerate(zip(settings, shown, strict=True))
    ]
    template = string.Template(
        (resources.files(segjax) / "report" / "page.html").read_text(encoding="utf-8")
    )
    return template.substitute(
        title=escape(f"Results of {experiments}"),
        header=_header(settings, rows, paths, made),
        main="\n".join(main),
        pictures="\n".join(styles),
    )


def _header(settings, rows, paths, made):
    def of_all(values):
        return ", ".join(dict.fromkeys(values))

    said = [f"{name} {version}" for row in rows for name, version in row["versions"].items()]
    facts = [
        ("rows", f"{len(rows)}, read from {', '.join(map(str, paths))}"),
        (
            "runs finished",
            f"{min(r['finished'] for r in rows)} to {max(r['finished'] for r in rows)}",
        ),
        ("devices", of_all(row["device"] for row in rows)),
        ("versions", of_all(said)),
        ("page made", f"{made} by segjax {segjax.__version__}"),
    ]
    links = "".join(
        f'<li><a href="#setting-{k}">{escape(setting.title)}</a></li>'
        for k, setting in enumerate(settings)
    )
    contents = f'<nav aria-label="Settings"><ul>{links}</ul></nav>' if len(settings) > 1 else ""
    return html.facts(facts) + contents


def _setting(place, setting, compared, missing, styles):
    methods = setting.methods
    names = methods[0].summary.row["class_names"]
    spread = "mean ± sample standard deviation over the seeds, percent"
    parts = [
        f'<section id="setting-{place}" aria-labelledby="heading-{place}">',
        f'<h2 id="heading-{place}">{escape(setting.title)}</h2>',
        "<h3>Scores</h3>",
        _scores(methods, f"Scores, {spread}. Headings sort."),
        "<h3>Classes</h3>",
    ]
    for kind, said in PER_CLASS.items():
        cells = [[html.name(m.label), *map(_estimate, m.summary.per_class[kind])] for m in methods]
        title = said[0].upper() + said[1:]
        parts.append(html.table(f"{title} of each class, {spread}.", ["method", *names], cells))
    parts += ["<h3>Figures</h3>", *_figures(place, setting)]
    parts += ["<h3>Predictions</h3>", _predictions(place, compared, missing, styles)]
    parts += ["<h3>Configs</h3>", _configs(methods)]
    parts += ["<h3>Runs</h3>", _runs(methods), "</section>"]
    return "\n".join(parts)


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return html.score("-", None)
    return html.score(estimate.percent(), estimate.mean)


def _measured(methods: Sequence[Method]) -> list[str]:
    """The scores that some run has."""
    rows = [run.row for method in methods for run in method.runs]
    return [name for name in SCORES if any(row[name] is not None for row in rows)]


def _scores(methods: Sequence[Method], caption: str) -> str:
    measured = _measured(methods)
    cells = [
        [
            html.name(method.label),
            *(_estimate(method.summary.scores[name]) for name in measured),
            html.score(
                f"{method.summary.row['parameters'] / 1e6:.2f}", method.summary.row["parameters"]
            ),
            html.score(str(len(method.summary.seeds) or "-"), len(method.summary.seeds) or None),
        ]
        for method in methods
    ]
    headings = ["method", *(SCORES[name] for name in measured), "parameters, M", "seeds"]
    return html.table(caption, headings, cells, sorted_by="mIoU")


def _figures(place, setting):
    matrices = []
    logged = False
    for number, (name, caption, figure) in enumerate(figures.figures(setting)):
        logged |= name == "learning_curves"
        content = figures.render(figure, "svg")
        svg = html.svg(content, f"figure-{place}-{number}", caption, figures.INK)
        drawn = (
            f'<figure><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{escape(caption)}">{svg}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
        if name.startswith("confusion"):
            matrices.append(drawn)
        else:
            yield drawn
    if not logged:
        yield '<p class="muted">No learning curves: only result rows are there, not the runs.</p>'
    opened = " open" if len(matrices) <= _FEW else ""
    yield f"<details{opened}><summary>Confusion matrices ({len(matrices)})</summary>"
    yield f'<div class="matrices">{"".join(matrices)}</div></details>'


def _predictions(place, compared, missing, styles):
    lines = [f'<p class="muted">Not shown: {escape(line)}.</p>' for line in missing]
    if compared is None:
        # One line says it of them all where no row has its run.
        rows_only = all(line.endswith("not its run") for line in missing)
        if rows_only:
            lines = ['<p class="muted">None: only result rows are there, not the runs.</p>']
        return "\n".join(lines)
    info = compared.info
    swatches = "".join(
        f'<li><span style="background: rgb({r}, {g}, {b})"></span>{escape(name)}</li>'
        for name, (r, g, b) in zip(info.class_names, info.palette, strict=True)
    )
    lines += [
        "<p>Left of the line is the truth, right of it what the first run of each method says; "
        "the slider below a picture moves the line. Void has no colour.</p>",
        f'<ul class="legend" aria-label="Classes">{swatches}</ul>',
        '<div class="controls"><label>Labels over the image '
        '<input type="range" class="opacity" min="0" max="100" value="65"></label>'
        '<label><input type="checkbox" class="mark"> Wrong pixels in place of the labels '
        "(dark red; void is grey)</label></div>",
    ]
    errors = (pictures.RIGHT, pictures.WRONG, pictures.UNKNOWN)
    for number, example in enumerate(compared.examples):
        which = f"{place}-{number}"
        truth = example["label"]
        styles.append(f".image-{which} {{ background-image: {html.picture(example['image'])}; }}")
        styles.append(
            f".truth-{which} {{ background-image: {html.picture(truth, info.palette)}; }}"
        )
        views = []
        for k, (label, labels) in enumerate(compared.labels):
            predicted = np.where(truth == VOID, VOID, labels[number]).astype(np.uint8)
            wrong = np.where(truth == VOID, 2, truth != labels[number]).astype(np.uint8)
            for kind, pixels, palette in (
                ("predicted", predicted, info.palette),
                ("wrong", wrong, errors),
            ):
                url = html.picture(pixels, palette)
                styles.append(f".{kind}-{which}-{k} {{ background-image: {url}; }}")
            views.append(
                _view(which, k, label, truth.shape, (wrong == 1).sum() / max(1, (wrong < 2).sum()))
            )
        lines.append(f"<h4>Test image {escape(example['id'])}</h4>")
        lines.append(f'<div class="views">{"".join(views)}</div>')
    return "\n".join(lines)


def _view(which: str, method: int, label: str, shape: tuple[int, ...], wrong: float) -> str:
    height, width = shape
    return (
        f'<figure><div class="view" style="aspect-ratio: {width} / {height}" role="img" '
        f'aria-label="{escape(label)}: truth on the left, prediction on the right">'
        f'<div class="image-{which}"></div><div class="truth truth-{which}"></div>'
        f'<div class="predicted predicted-{which}-{method}"></div>'
        f'<div class="wrong wrong-{which}-{method}"></div><div class="line"></div></div>'
        f'<label><span>prediction</span><input type="range" class="cut" min="0" max="100" '
        f'aria-label="Part of the picture that shows the truth, {escape(label)}" '
        f'value="50"><span>truth</span></label>'
        f"<figcaption>{escape(label)}: {100 * wrong:.1f}% of the pixels wrong</figcaption></figure>"
    )


def _configs(methods: Sequence[Method]) -> str:
    configs = [groups.config(method.runs[0]) for method in methods]
    fields = sorted(dict.fromkeys(name for each in configs for name in each))

    def shown(config, name):
        return tables.text(config[name]) if name in config else ""

    differing = [name for name in fields if len({shown(each, name) for each in configs}) > 1]
    parts = []
    if differing:
        cells = [
            [html.name(method.label), *(html.name(shown(each, name)) for name in differing)]
            for method, each in zip(methods, configs, strict=True)
        ]
        parts.append(html.table("The fields that differ.", ["method", *differing], cells))
    for method, each in zip(methods, configs, strict=True):
        same = [name for name in fields if name not in differing]
        pairs = [(name, shown(each, name)) for name in differing + same if name in each]
        parts.append(
            f"<details><summary>{escape(method.label)}</summary>{html.facts(pairs)}</details>"
        )
    return "\n".join(parts)


def _runs(methods: Sequence[Method]) -> str:
    scores = _measured(methods)
    headings = ["run", "experiment", "model", "seed", *(SCORES[name] for name in scores)]
    headings += ["steps", "best step", "minutes", "images", "batch norm", "inference", "device"]
    headings += ["versions", "finished", "config digest", "workdir", "command"]
    cells = [_run(run, scores) for method in methods for run in method.runs]
    return html.table("Every row, and where it is from.", headings, cells)


def _run(run: Run, scores: Sequence[str]) -> list[Cell]:
    row = run.row

    def number(value, shown="{}", scale=1.0):
        return html.score("-" if value is None else shown.format(value * scale), value)

    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return [
        html.name(row["name"]),
        html.name(row["experiment"]),
        html.name(row["model"]),
        number(row["seed"], "{:.0f}"),
        *(number(row[name], "{:.1f}", 100) for name in scores),
        number(row["steps"], "{:.0f}"),
        number(row["best_step"], "{:.0f}"),
        number(row["seconds"], "{:.1f}", 1 / 60),
        number(row["num_images"], "{:.0f}"),
        html.name(row["batch_norm"] or ""),
        html.name(row.get("inference") or ""),
        html.name(row["device"]),
        html.name(versions),
        html.name(row["finished"]),
        html.name(row["config_digest"] or "", code=True),
        html.name(str(run.workdir or "")),
        html.name(row["command"], code=True),
    ]
