"""Result rows as data: read, checked and written.

A row is one run scored on one split: a ``result.json``, or one line of a ``.jsonl`` file. Its
scores are fractions in [0, 1] and are made again from its confusion matrix whenever it is read, so
a number that was changed by hand is found out.
"""

import datetime
import json
import os
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import segjax
from segjax import metrics
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.metrics import boundary
from segjax.ops.onednn import build
from segjax.results import schema
from segjax.results.schema import Row, is_count, is_number, is_text

SCHEMA = 1
REPRODUCED = "results.jsonl"  # of all runs, in the folder of `segjax reproduce`
_WHAT = "a result row"
_TOLERANCE = 1e-9


def _is_fraction(value: Any) -> bool:
    return is_number(value, 1.0)


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and value != [] and all(map(holds, value))


_FIELDS: schema.Fields = {
    "schema": (str(SCHEMA), lambda v: type(v) is int and v == SCHEMA, False),
    "experiment": ("a name", is_text, False),
    "name": ("a name", is_text, False),
    "overrides": ("an object", lambda v: isinstance(v, dict), False),
    "command": ("a command", is_text, False),
    "model": ("a name", is_text, False),
    "model_options": ("an object", lambda v: isinstance(v, dict), False),
    "parameters": ("an integer >= 0", is_count, False),
    "config_digest": ("a digest", is_text, True),
    "seed": ("an integer", lambda v: type(v) is int, True),
    "dataset": ("a name", is_text, False),
    "split": ("a name", is_text, False),
    "num_images": ("an integer >= 1", lambda v: is_count(v, 1), False),
    "resolution": (
        "[height, width]",
        lambda v: _is_list(v, lambda x: is_count(x, 1)) and len(v) == 2,
        False,
    ),
    "class_names": (
        "a list of different names",
        lambda v: _is_list(v, is_text) and len(set(v)) == len(v),
        False,
    ),
    "global_accuracy": ("a fraction", _is_fraction, False),
    "class_accuracy": ("a fraction", _is_fraction, False),
    "mean_iou": ("a fraction", _is_fraction, False),
    "boundary_f": ("a fraction", _is_fraction, True),
    "per_class_accuracy": ("a list of fractions", lambda v: _is_list(v, _is_fraction), False),
    "per_class_iou": ("a list of fractions", lambda v: _is_list(v, _is_fraction), False),
    "present": (
        "a list of booleans",
        lambda v: _is_list(v, lambda x: isinstance(x, bool)),
        False,
    ),
    "confusion": (
        "lists of integers >= 0",
        lambda v: _is_list(v, lambda x: _is_list(x, is_count)),
        False,
    ),
    "steps": ("an integer >= 0", is_count, True),
    "best_step": ("an integer >= 0", is_count, True),
    "seconds": ("a number >= 0", lambda v: is_number(v, 1e12), True),
    "batch_norm": ("a name", is_text, True),
    "device": ("a name", is_text, False),
    "versions": ("an object", lambda v: isinstance(v, dict), False),
    "finished": ("a time", is_text, False),
}
# Not there where there is nothing to say.
_OPTIONAL: schema.Fields = {
    # How the labels were made, other than from one network's logits.
    "inference": ("a text", is_text, False),
    # BF over the classes with a boundary in the truth or in the prediction.
    "boundary_f_either": ("a fraction", _is_fraction, True),
    "per_class_boundary_f": (
        "a list of fractions and null",
        lambda v: _is_list(v, lambda x: x is None or _is_fraction(x)),
        False,
    ),
}

_PER_CLASS = ("per_class_accuracy", "per_class_iou", "per_class_boundary_f", "present", "confusion")


def _check(row: Any, where: str) -> Row:
    """Gives the row back, or raises a UserError that names the place and the first fault."""
    schema.check_fields(row, _FIELDS, where, f"{_WHAT} (an object)", _OPTIONAL)
    names = row["class_names"]
    for name in _PER_CLASS:
        if name in row and len(row[name]) != len(names):
            raise UserError(
                f"{where}: {name} has {len(row[name])} entries, expected {len(names)}, one a class"
            )
    for name, counts in zip(names, row["confusion"], strict=True):
        if len(counts) != len(names):
            raise UserError(
                f"{where}: confusion has {len(counts)} columns in the row of {name}, "
                f"expected {len(names)}"
            )
    scores = metrics.scores(np.array(row["confusion"], np.int64))
    for name in metrics.SCORES:
        found, made = row[name], getattr(scores, name)
        if not abs(found - made) <= _TOLERANCE:
            raise UserError(f"{where}: {name} is {found}, its confusion matrix gives {made}")
    for name in ("per_class_accuracy", "per_class_iou", "present"):
        for of_class, found, made in zip(names, row[name], getattr(scores, name), strict=True):
            if not abs(found - made.item()) <= _TOLERANCE:
                raise UserError(
                    f"{where}: {name} of {of_class} is {json.dumps(found)}, "
                    f"its confusion matrix gives {json.dumps(made.item())}"
                )
    return row


def scored(
    confusion: np.ndarray, class_names: Sequence[str], boundaries: np.ndarray | None = None
) -> Row:
    """The fields of a row that follow from its counts.

    Args:
      confusion: (K, K).
      class_names: K.
      boundaries: (N, K, 3) of `boundary.counts`; none: not measured.
    """
    scores = metrics.scores(confusion)
    row = {
        "class_names": list(class_names),
        "global_accuracy": scores.global_accuracy,
        "class_accuracy": scores.class_accuracy,
        "mean_iou": scores.mean_iou,
        "boundary_f": None,
        "per_class_accuracy": scores.per_class_accuracy.tolist(),
        "per_class_iou": scores.per_class_iou.tolist(),
        "present": scores.present.tolist(),
        "confusion": np.asarray(confusion).tolist(),
    }
    if boundaries is not None:
        f = boundary.f_measure(boundaries)
        row["boundary_f"] = boundary.mean(f)
        row["boundary_f_either"] = boundary.mean(boundary.f_measure(boundaries, "either"))
        row["per_class_boundary_f"] = boundary.per_class(f)
    return row


def provenance(device: str, platform: str = "") -> Row:
    """The fields of a row that say on what and when it was made.

    Args:
      device: by its name.
      platform: of JAX, such as "cpu"; on that oneDNN's version is noted where it is used.
    """
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    versions |= build.versions(platform)
    return {
        "device": device,
        "versions": {"segjax": segjax.__version__, **versions},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _read_file(path: Path) -> list[Row]:
    return [_check(row, where) for where, row in schema.parse(path, _WHAT)]


def read(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """Reads and checks the result rows of files and directories.

    A directory gives every ``result.json`` below it or, where there is none, the ``.jsonl`` files
    directly in it (not ``metrics.jsonl``, the log of a run); one of `segjax reproduce` gives its
    ``results.jsonl``, which may have rows of other machines. A file is read once, however many of
    the paths lead to it.

    Raises:
      UserError: a path that is missing or gives no row; a row that is cut short, lacks a field, has
        a value of the wrong kind or a score that its confusion matrix does not give. It names the
        file and, where it can, the line.
    """
    rows: list[Row] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        if (path / REPRODUCED).is_file():
            files = [path / REPRODUCED]
        elif path.is_dir():
            files = sorted(path.rglob("result.json")) or sorted(
                file for file in path.glob("*.jsonl") if file.name != "metrics.jsonl"
            )
            if not files:
                raise UserError(
                    f"{path}: no results, expected a result.json below or a .jsonl in it"
                )
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"{path}: no such file or directory, expected results")
        found = {file: _read_file(file) for file in files}
        if not any(found.values()):
            raise UserError(f"{path}: empty, expected result rows")
        for file, its_rows in found.items():
            if file.resolve() not in seen:
                rows += its_rows
                seen.add(file.resolve())
    return rows


def write_row(path: str | os.PathLike[str], row: Row) -> None:
    """Writes one checked row as a ``result.json``, one field a line, whole or not at all."""
    _check(row, str(path))
    fields = [f"  {json.dumps(name)}: {schema.dump(value)}" for name, value in row.items()]
    write_whole(path, "{\n" + ",\n".join(fields) + "\n}\n")


def append(path: str | os.PathLike[str], row: Row) -> bool:
    """Adds a checked row to a ``.jsonl``; gives False, and adds nothing, where it is there already.

    Raises:
      UserError: the file holds another result of the same run (config, data and seed).
    """
    path = Path(path)
    _check(row, str(path))
    for old in _read_file(path) if path.exists() else []:
        if group_key(old) == group_key(row) and old["seed"] == row["seed"]:
            if old["confusion"] == row["confusion"]:
                return False
            raise UserError(f"{path}: has another result of {title(row)}; take that line out first")
    schema.append(path, row)
    return True


def overrides(row: Row) -> Row:
    """The overrides that tell a row's config from the experiment's own, but for the seed."""
    return {name: value for name, value in row["overrides"].items() if name != "seed"}


def group_key(row: Row) -> str:
    """What rows that differ in their seed alone have in common, as a text to compare."""
    same = (
        *("experiment", "model", "model_options", "config_digest", "batch_norm"),
        *("dataset", "split", "num_images", "resolution", "class_names"),
    )
    fields = {name: row[name] for name in same} | {"inference": row.get("inference")}
    return json.dumps([fields, overrides(row)], sort_keys=True)


def title(row: Row) -> str:
    """Names the run of a row in a message."""
    by = f" by {row['inference']}" if "inference" in row else ""
    return f"{row['experiment']} {row['name']}{by} on {row['dataset']} {row['split']}"
