"""Write results as one HTML page: tables, figures, predictions, configs and provenance."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

import segjax
from segjax.data import pictures
from segjax.data.datasets import VOID
from segjax.predict import Predictions
from segjax.report import embed, figures, groups, predictions, tables
from segjax.report.groups import Method, Run, Setting
from segjax.results.summary import PER_CLASS, SCORES, Estimate
from segjax.system.files import write_whole
from segjax.system.progress import Bar

_SPREAD = "mean ± sample standard deviation over the seeds, percent"


class Entry(NamedTuple):
    """An entry of a table: its text, and the value it is sorted by (None: last)."""

    text: str
    value: float | str | None
    code: bool = False


@dataclasses.dataclass(frozen=True)
class SortableTable:
    """A table that a script in the page sorts; the first column names the rows."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    sorted_by: str = ""  # heading of the column by which the rows are sorted, descending

    @property
    def kinds(self) -> list[str]:
        """Kind of each column, "number" or "text"."""
        columns = ([row[k].value for row in self.rows] for k in range(len(self.headings)))
        return [
            "number" if any(isinstance(value, int | float) for value in column) else "text"
            for column in columns
        ]


def write(paths: Sequence[str], output: Path, *, count: int, data_dir: str | None) -> int:
    """Write the page of the result rows at these paths; return the number of rows.

    Args:
      paths: run directories, folders of them, or files of rows; a row without its run directory has
        no learning curves and no predictions.
      output: HTML file to write.
      count: number of test images to show; 0: no predictions.
      data_dir: folder of prepared datasets, if not that of the training.

    Raises:
      UserError: as `groups.read_settings`.
    """
    settings = groups.read_settings(paths)
    shown: list[tuple[Predictions | None, list[str]]] = []
    for setting in settings:
        with Bar("predictions", len(setting.methods)) as bar:
            shown.append(
                predictions.predict_methods(setting, count, data_dir, bar.advance)
                if count
                else (None, ["not requested"])
            )
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_whole(output, page(settings, shown, paths, made))
    return sum(len(method.runs) for setting in settings for method in setting.methods)


def page(
    settings: Sequence[Setting],
    shown: Sequence[tuple[Predictions | None, list[str]]],
    paths: Sequence[str],
    made: str,
) -> str:
    """Return the page as HTML.

    Args:
      settings: one section of the page each.
      shown: predictions of each setting, and what is missing and why.
      paths: sources of the rows, as shown.
      made: time of writing, as shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segjax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [run.row for s in settings for method in s.methods for run in method.runs]
    return environment.get_template("page.html").render(
        title=f"Results of {_distinct(row['experiment'] for row in rows)}",
        provenance=_provenance(rows, paths, made),
        settings=[
            _section(place, setting, *which)
            for place, (setting, which) in enumerate(zip(settings, shown, strict=True))
        ],
    )


def _distinct(texts):
    return ", ".join(dict.fromkeys(texts))


def _provenance(rows, paths, made):
    finished = [row["finished"] for row in rows]
    versions = [f"{name} {version}" for row in rows for name, version in row["versions"].items()]
    return [
        ("rows", f"{len(rows)}, read from {', '.join(map(str, paths))}"),
        ("runs finished", f"{min(finished)} to {max(finished)}"),
        ("devices", _distinct(row["device"] for row in rows)),
        ("versions", _distinct(versions)),
        ("page made", f"{made} by segjax {segjax.__version__}"),
    ]


def _section(
    place: int, setting: Setting, predicted: Predictions | None, missing: Sequence[str]
) -> dict[str, Any]:
    """Return what `page.html` shows of one setting."""
    methods = setting.methods
    drawn = []
    for number, (name, caption, figure) in enumerate(figures.figures(setting)):
        content = figures.render(figure, "svg")
        svg = embed.svg(content, f"figure-{place}-{number}", caption, figures.INK)
        drawn.append({"name": name, "caption": caption, "svg": svg})
    matrices = [each for each in drawn if each["name"].startswith("confusion")]
    differing, configs = _configs(methods)
    return {
        "title": setting.title,
        "scores": _scores(methods),
        "classes": [_classes(methods, kind, said) for kind, said in PER_CLASS.items()],
        "figures": [each for each in drawn if each not in matrices],
        "logged": any(each["name"] == "learning_curves" for each in drawn),
        "matrices": matrices,
        # If no row has its run, one line for all methods is enough.
        "rows_only": predicted is None
        and all(line.endswith("without run directory") for line in missing),
        "missing": missing,
        "legend": [*zip(predicted.info.class_names, predicted.info.palette, strict=True)]
        if predicted
        else [],
        "images": _images(place, predicted) if predicted else [],
        "differing": differing,
        "configs": configs,
        "runs": _runs(methods),
    }


def _name(text: str, code: bool = False) -> Entry:
    return Entry(text, text or None, code)


def _number(value: float | None, format: str = "{:.0f}", scale: float = 1.0) -> Entry:
    return Entry("-" if value is None else format.format(value * scale), value)


def _estimate(estimate: Estimate | None) -> Entry:
    return Entry(estimate.percent(), estimate.mean) if estimate else Entry("-", None)


def _measured(methods: Sequence[Method]) -> list[str]:
    """Return the names of the scores that some run has."""
    rows = [run.row for method in methods for run in method.runs]
    return [name for name in SCORES if any(row[name] is not None for row in rows)]


def _scores(methods: Sequence[Method]) -> SortableTable:
    measured = _measured(methods)
    headings = ["method", *(SCORES[name] for name in measured), "parameters, M", "seeds"]
    rows = [
        [
            _name(method.label),
            *(_estimate(method.summary.scores[name]) for name in measured),
            _number(method.summary.row["parameters"], "{:.2f}", 1e-6),
            _number(len(method.summary.seeds) or None),
        ]
        for method in methods
    ]
    return SortableTable(f"Scores, {_SPREAD}. Headings sort.", headings, rows, sorted_by="mIoU")


def _classes(methods: Sequence[Method], kind: str, said: str) -> SortableTable:
    names = methods[0].summary.row["class_names"]
    rows = [[_name(m.label), *map(_estimate, m.summary.per_class[kind])] for m in methods]
    title = said[0].upper() + said[1:]
    return SortableTable(f"{title} of each class, {_SPREAD}.", ["method", *names], rows)


def _images(place: int, predicted: Predictions) -> list[dict[str, Any]]:
    """Return the test images, their labels and each method's predictions as CSS values."""
    images = []
    for number, example in enumerate(predicted.examples):
        key, truth = f"{place}-{number}", example["label"]
        images.append(
            {
                "key": key,
                "id": example["id"],
                "width": truth.shape[1],
                "height": truth.shape[0],
                "url": embed.image(pictures.shown(example["image"])),
                "truth": embed.image(truth, predicted.info.palette),
                "views": [
                    {"key": f"{key}-{k}", "method": method}
                    | _view(truth, labels[number], predicted.info.palette)
                    for k, (method, labels) in enumerate(predicted.labels)
                ],
            }
        )
    return images


def _view(truth, labels, palette):
    void = truth == VOID
    predicted = np.where(void, VOID, labels).astype(np.uint8)
    wrong = np.where(void, 2, truth != labels).astype(np.uint8)
    errors = (pictures.RIGHT, pictures.WRONG, pictures.UNKNOWN)
    return {
        "predicted": embed.image(predicted, palette),
        "wrong": embed.image(wrong, errors),
        "error_rate": f"{100 * (wrong == 1).sum() / max(1, (~void).sum()):.1f}%",
    }


def _configs(
    methods: Sequence[Method],
) -> tuple[SortableTable | None, list[tuple[str, list[tuple[str, str]]]]]:
    """Return a table of the fields that differ, and each method's fields, the differing first."""
    configs = [
        {name: tables.text(value) for name, value in groups.config(method.runs[0]).items()}
        for method in methods
    ]
    fields = sorted({name for each in configs for name in each})
    differing = [name for name in fields if len({each.get(name, "") for each in configs}) > 1]
    ordered = differing + [name for name in fields if name not in differing]
    named = [(method.label, each) for method, each in zip(methods, configs, strict=True)]
    rows = [
        [_name(label), *(_name(each.get(name, "")) for name in differing)] for label, each in named
    ]
    table = SortableTable("The fields that differ.", ["method", *differing], rows)
    return table if differing else None, [
        (label, [(name, each[name]) for name in ordered if name in each]) for label, each in named
    ]


def _runs(methods: Sequence[Method]) -> SortableTable:
    measured = _measured(methods)
    rows = [_run(run, measured) for method in methods for run in method.runs]
    headings = ["run", "experiment", "model", "seed", *(SCORES[name] for name in measured)]
    headings += ["steps", "epochs", "best step", "minutes", "images", "batch norm", "inference"]
    headings += ["device", "processor", "versions", "finished"]
    headings += ["config digest", "workdir", "command"]
    return SortableTable("All rows and their origin.", headings, rows)


def _run(run: Run, measured: Sequence[str]) -> list[Entry]:
    row = run.row
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return [
        *map(_name, (row["name"], row["experiment"], row["model"])),
        _number(row["seed"]),
        *(_number(row[name], "{:.1f}", 100) for name in measured),
        _number(row["steps"]),
        _number(row.get("epochs"), "{:.1f}"),
        _number(row["best_step"]),
        _number(row["seconds"], "{:.1f}", 1 / 60),
        _number(row["num_images"]),
        *map(_name, (row["batch_norm"] or "", row.get("inference", ""), row["device"])),
        *map(_name, (row.get("processor", ""), versions, row["finished"])),
        _name(row["config_digest"] or "", code=True),
        _name(str(run.workdir or "")),
        _name(row["command"], code=True),
    ]
