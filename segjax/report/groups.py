"""Group result rows and their run directories by comparable settings and by method."""

import dataclasses
import itertools
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax import config as configs
from segjax import results
from segjax.errors import UserError, counted
from segjax.report import tables
from segjax.results.schema import Row
from segjax.results.summary import Estimate, Summary, summarize
from segjax.runs import metrics_log
from segjax.system import stored

Curve = dict[int, float]  # step -> value


@dataclasses.dataclass(frozen=True)
class Run:
    """One result row and its run directory."""

    row: Row
    workdir: Path | None  # None: only the row is there, such as a line of a .jsonl


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed."""

    label: str  # unique in its setting
    summary: Summary
    runs: tuple[Run, ...]  # ascending seeds


@dataclasses.dataclass(frozen=True)
class Setting:
    """Methods scored on the same images and classes."""

    title: str
    slug: str  # the title as part of file names
    methods: tuple[Method, ...]  # highest mean mIoU first


def read_settings(paths: Sequence[str | os.PathLike[str]]) -> list[Setting]:
    """Read rows by `results.read_files`, and group them into settings, methods and runs.

    Raises:
      UserError: as `results.read_files` and `summarize`, or rows of a setting differ in classes.
    """
    files = results.read_files(paths)
    workdirs = {
        _key(row): folder
        for file, its_rows in files.items()
        for row in its_rows
        if (folder := results.run_directory(file))
    }
    settings: dict[str, list[Row]] = {}
    for row in itertools.chain.from_iterable(files.values()):
        height, width = row["resolution"]
        size = "their own sizes" if results.is_native(row) else f"{height}x{width}"
        count = counted(row["num_images"], "image")
        title = f"{row['dataset']}, {row['split']} split, {count} of {size}"
        rows = settings.setdefault(title, [])
        rows.append(row)
        if rows[0]["class_names"] != row["class_names"]:
            raise UserError(
                f"{results.title(row)}: its classes are not those of {results.title(rows[0])}"
            )
    return [_setting(title, rows, workdirs) for title, rows in settings.items()]


def _key(row):
    return results.group_key(row), row["seed"]


def _setting(title, rows, workdirs):
    summaries = summarize(rows)
    groups = [[Run(row, workdirs.get(_key(row))) for row in s.rows] for s in summaries]
    names = labels([(own[0].row, config(own[0])) for own in groups])
    methods = [
        Method(name, summary, tuple(own))
        for name, summary, own in zip(names, summaries, groups, strict=True)
    ]
    slug = "".join(letter if letter.isalnum() else "-" for letter in title)
    return Setting(title, "-".join(filter(None, slug.split("-"))), tuple(methods))


def labels(runs: Sequence[tuple[Row, Mapping[str, Any]]]) -> list[str]:
    """Return short, unique names of runs (row, config).

    A name is the model and the overrides that differ: `segnet_basic, class_weights=none`. If names
    would be equal, as few facts as possible are added: inference, experiment, fields of the config,
    or as a last resort the digest.
    """
    overrides = [results.overrides(row) for row, _ in runs]
    # A baseline without a seed has no config that could differ.
    varied = _varied(
        [each for each, (row, _) in zip(overrides, runs, strict=True) if row["seed"] is not None]
    )
    varied = [name for name in varied if name != "model.name"]  # the label starts with it
    found = [
        ", ".join(
            [row["model"], *(_assignment(name, each[name]) for name in varied if name in each)]
        )
        for (row, _), each in zip(runs, overrides, strict=True)
    ]
    while twins := [place for place, label in enumerate(found) if found.count(label) > 1]:
        alike = [place for place in twins if found[place] == found[twins[0]]]
        facts = [_facts(*runs[place]) for place in alike]
        # Add the fact that distinguishes most of them; the digest, which explains nothing, is last.
        names = [name for name in _varied(facts) if name != "config_digest"] or ["config_digest"]
        best = max(names, key=lambda name: len({fact.get(name) for fact in facts}))
        if len({fact.get(best) for fact in facts}) == 1:
            raise AssertionError(f"two groups have the same facts: {found[alike[0]]}")
        for place, fact in zip(alike, facts, strict=True):
            if best in fact:
                found[place] += f", {fact[best]}"
    return found


def _varied(each: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names whose values differ."""
    names = dict.fromkeys(name for one in each for name in one)
    return [name for name in names if len({json.dumps(one.get(name)) for one in each}) > 1]


def ablations(methods: Sequence[Method]) -> dict[str, dict[str, list[tuple[float, Estimate]]]]:
    """Return mIoU by each number that a grid varies: field -> line -> points (value, mIoU).

    The methods of a line differ in that field alone; its name has the model and the other choices.
    Points ascend, the lines start with that of the best method; lines of one point, and fields
    without lines, are left out.
    """
    varied = _varied([method.summary.overrides for method in methods])
    rows = [method.summary.row for method in methods]
    facts = [
        name
        for name in ("model", "experiment", "inference", "batch_norm", "steps")
        if name == "model" or len({row.get(name) for row in rows}) > 1
    ]
    found: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    for name in varied:
        lines: dict[str, list[tuple[float, Estimate]]] = {}
        for method in methods:
            overrides, row = method.summary.overrides, method.summary.row
            value, estimate = overrides.get(name), method.summary.scores["mean_iou"]
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not estimate:
                continue
            others = [other for other in varied if other in overrides]
            label = [
                f"{row[fact]} steps" if fact == "steps" else str(row[fact])
                for fact in facts
                if row.get(fact) and fact != name
            ]
            label += [
                _assignment(other, overrides[other])
                for other in others
                if other not in (name, "model.name")
            ]
            lines.setdefault(", ".join(label), []).append((value, estimate))
        shown = {
            label: sorted(points, key=operator.itemgetter(0))
            for label, points in lines.items()
            if len({value for value, _ in points}) > 1
        }
        if shown:
            found[name] = shown
    return found


def _assignment(name: str, value: Any) -> str:
    return f"{name.rpartition('.')[2]}={tables.text(value)}"


def _facts(row: Row, fields: Mapping[str, Any]) -> dict[str, str]:
    """Return facts that may distinguish a run from others of its model, the clearest first."""
    facts = {name: row[name] for name in ("inference", "experiment") if row.get(name)}
    first = ("model.", "loss.", "optimizer.")  # what a reader looks for first
    for name in sorted(fields, key=lambda name: not name.startswith(first)):
        if not configs.incidental(name):
            facts[name] = _assignment(name, fields[name])
    if row["batch_norm"]:
        facts["batch_norm"] = _assignment("batch norm", row["batch_norm"])
    return facts | {"config_digest": row["config_digest"] or ""}


def config(run: Run) -> Mapping[str, Any]:
    """Return the config of a run by dotted names, or what its row has if it has no directory."""
    if run.workdir is None:
        model = {f"model.options.{name}": value for name, value in run.row["model_options"].items()}
        return {"model.name": run.row["model"], **model, **run.row["overrides"]}
    path = run.workdir / "config.json"
    try:
        return dict(stored.unseal(stored.parse(path.read_bytes()))["config"].items())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}, expected a run's config") from error


def curves(run: Run) -> tuple[Curve, Curve] | None:
    """Return the validation mIoU and the training loss of a run at the steps of its validations.

    The loss at a step is the mean of those logged since the previous validation. None if the run
    has no `metrics.jsonl`.

    Raises:
      UserError: a score or a loss in it is not a number.
    """
    path = run.workdir / "metrics.jsonl" if run.workdir else None
    if path is None or not path.is_file():
        return None
    score: Curve = {}
    loss: Curve = {}
    since: list[float] = []
    for line in metrics_log.read_metrics(path):
        step = int(line["step"])
        for name in ("train/loss", "val/mean_iou"):
            if type(line.get(name, 0.0)) not in (int, float):
                raise UserError(
                    f"{path}: {name} of step {step} is {json.dumps(line[name])}, expected a number"
                )
        if "train/loss" in line:
            since.append(line["train/loss"])
        if "val/mean_iou" in line:
            score[step] = line["val/mean_iou"]
            if since:
                loss[step] = math.fsum(since) / len(since)
            since = []
    return score, loss


def common(found: Iterable[Curve]) -> tuple[list[int], list[list[float]]]:
    """Return the steps that all curves share, and the values of each curve there."""
    all_curves = list(found)
    steps = sorted(set.intersection(*(set(curve) for curve in all_curves)))
    return steps, [[curve[step] for step in steps] for curve in all_curves]
