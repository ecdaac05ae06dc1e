"""Read, validate and write result rows.

A row is one run scored on one split: a `result.json`, or one line of a `.jsonl` file. Its
scores are fractions in [0, 1] and are checked against its confusion matrix on every read. Its
checksum tells whether anything in it was changed.
"""

import datetime
import functools
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # with TypedDict from typing_extensions: pydantic refuses that of Python 3.11
)

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

import segjax
from segjax import metrics
from segjax.errors import UserError, line, listing, warn
from segjax.metrics import boundary, boundary_iou, calibration
from segjax.ops.onednn import build
from segjax.results import schema
from segjax.results.counts import Counts
from segjax.results.schema import Amount, Count, Fraction, Positive, Row, Size, Text
from segjax.system import processor, stored
from segjax.system.files import write_whole

SCHEMA = 1
_WHAT = "a result row"
_TOLERANCE = 1e-9
_MARKS = {"config.json", "error.txt"}  # of a run that has started
_LOGS = {"metrics.jsonl", "phases.jsonl", "jobs.jsonl"}  # of runs and of their submission


class ResultRow(TypedDict):
    """The fields of one run scored on one split; K classes, in the order of `class_names`."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    experiment: Text
    name: Text
    overrides: dict[str, Any]
    command: Text
    model: Text
    model_options: dict[str, Any]
    parameters: Count
    pretrained: NotRequired[bool]  # whether the training began from ImageNet's weights
    config_digest: Text | None  # none for a baseline
    seed: int | None
    dataset: Text
    split: Text
    num_images: Positive
    resolution: Size
    class_names: Annotated[list[Text], Field(min_length=1)]
    global_accuracy: Fraction
    class_accuracy: Fraction
    mean_iou: Fraction
    boundary_f: Fraction | None  # over the classes with a boundary in the truth
    per_class_accuracy: list[Fraction]
    per_class_iou: list[Fraction]
    present: list[bool]  # whether the class is in the truth
    confusion: list[list[Count]]  # (K, K), rows are the truth
    steps: Count | None
    epochs: NotRequired[Amount]  # examples drawn for these steps, over those of the training split
    best_step: Count | None
    seconds: Amount | None
    batch_norm: Text | None
    device: Text
    processor: NotRequired[Text]  # model and vector instructions of the CPU, if it is the device
    versions: dict[str, Any]
    finished: Text  # time, ISO 8601
    # Git commit of the code, followed by "-modified" if its files were changed; None outside git.
    revision: NotRequired[Text | None]
    # sha256 of the images and labels of the whole split as they were prepared.
    data_digest: NotRequired[Text]
    # How the labels were predicted, if not from the logits of one network alone.
    inference: NotRequired[Text]
    # Over the classes with a boundary in the truth or in the prediction.
    boundary_f_either: NotRequired[Fraction | None]
    per_class_boundary_f: NotRequired[list[Fraction | None]]
    # Mean over images of the mean IoU over the classes in the image's truth.
    per_image_mean_iou: NotRequired[Fraction | None]
    boundary_iou: NotRequired[Fraction | None]  # mean over the classes in the truth
    per_class_boundary_iou: NotRequired[list[Fraction | None]]
    expected_calibration_error: NotRequired[Fraction | None]
    # Pixels, right pixels and sum of confidences in each of the bins, for reliability diagrams.
    calibration: NotRequired[list[list[Amount]]]


_PER_CLASS = (
    *("per_class_accuracy", "per_class_iou", "per_class_boundary_f", "per_class_boundary_iou"),
    *("present", "confusion"),
)


def _check(row: Any, where: str) -> Row:
    """Return the row, or raise a UserError that names the place and the first error."""
    schema.validate(row, ResultRow, where, _WHAT)
    names = row["class_names"]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: class_names is {json.dumps(names)}, expected different names")
    for name in _PER_CLASS:
        if name in row and len(row[name]) != len(names):
            raise UserError(
                f"{where}: {name} has {len(row[name])} entries, "
                f"expected {len(names)}, one per class"
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
    """Return the fields of a row that follow from its counts.

    Args:
      confusion: (K, K), rows are the truth.
      class_names: K names.
      boundaries: (N, K, 3) from `boundary.counts`; None: not measured.
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


def measured(counts: Counts) -> Row:
    """Return the fields of a row that need more than the confusion matrix of its split."""
    row: Row = {"per_image_mean_iou": metrics.per_image_mean_iou(counts.confusion)}
    if counts.boundary_iou is not None:
        present = metrics.scores(counts.total).present
        iou = boundary_iou.iou(counts.boundary_iou, present)
        row["boundary_iou"] = float(iou[present].mean()) if present.any() else None
        row["per_class_boundary_iou"] = [None if np.isnan(x) else float(x) for x in iou]
    if counts.calibration is not None:
        total = counts.calibration.sum(0)
        row["expected_calibration_error"] = calibration.expected_error(total)
        row["calibration"] = total.tolist()
    return row


def provenance(device: str, platform: str = "") -> Row:
    """Return the fields of a row that hold device, versions and time.

    Args:
      device: name of the device.
      platform: JAX platform; for "cpu" also the processor's name, and among the versions that of
        oneDNN, if it is used.
    """
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    versions |= build.versions(platform)
    named = {"processor": processor.name()} if platform == "cpu" else {}
    return {
        "device": device,
        **named,
        "versions": {"segjax": segjax.__version__, **versions},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": revision(),
    }


@functools.cache
def revision() -> str | None:
    """Return the git commit of this code when first called, "-modified" if files of it changed.

    None where the package does not lie in a git repository of its own.
    """
    root = Path(segjax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", root, *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", "segjax", "experiments"),
            )
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or another user's repository
        return None
    return f"{commit}-modified" if changed else commit


def _read_file(path: Path) -> list[Row]:
    return [_check(row, where) for where, row in schema.parse(path, _WHAT)]


def read(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """Return the rows of `read_files`."""
    return [row for its_rows in read_files(paths).values() for row in its_rows]


def read_files(paths: Iterable[str | os.PathLike[str]]) -> dict[Path, list[Row]]:
    """Read and validate the result rows of files and directories; return those of each file.

    From a directory, every `result.json` in or below it is read or, if there is none, the
    `.jsonl` files directly in it. Symbolic links are followed. Each file is read once, even if
    several paths lead to it. Warn of runs without a result, folders that cannot be read, `.jsonl`
    files left out (except the logs of runs), and files without a row.

    Raises:
      UserError: a path is missing or has no row, or a row is cut short, lacks a field, has a value
        of the wrong type or range, or a score that does not follow from its confusion matrix. It
        names the file and, in a `.jsonl`, the line.
    """
    rows: dict[Path, list[Row]] = {}
    seen: set[str] = set()
    given = [Path(path) for path in paths]
    named = {os.path.realpath(path) for path in given}
    for path in given:
        files: list[Path] = [path]
        left_out: list[str] = []
        if path.is_dir():
            files, left_out = _find(path, named)
            if not files:
                why = f" ({'; '.join(left_out)})" if left_out else ""
                raise UserError(
                    f"{path}: no results{why}, expected a result.json below or a .jsonl in it"
                )
        elif not path.is_file():
            raise UserError(f"{path}: no such file or directory, expected results")
        found = {file: _read_file(file) for file in files}
        if not any(found.values()):
            raise UserError(f"{path}: empty, expected result rows")
        left_out += [f"{file.name} has no row" for file, its_rows in found.items() if not its_rows]
        for what in left_out:
            warn(f"{path}: {what}")
        for file, its_rows in found.items():
            if os.path.realpath(file) not in seen:
                rows[file] = its_rows
                seen.add(os.path.realpath(file))
    return rows


def _find(folder: Path, read: set[str]) -> tuple[list[Path], list[str]]:
    """Return the files of rows in a directory, and what is left out of it and is not in `read`."""
    finished: list[Path] = []
    unfinished: list[Path] = []
    others: list[Path] = []
    unreadable: list[OSError] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=unreadable.append):
        here = Path(root)
        if os.path.realpath(here) in seen:  # a symbolic link leads here, perhaps from below
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        if "result.json" in names:
            finished.append(here / "result.json")
        elif not _MARKS.isdisjoint(names):
            unfinished.append(here)
        others += [here / name for name in names if name.endswith(".jsonl") and name not in _LOGS]

    files = sorted(finished) or sorted(file for file in others if file.parent == folder)
    left_out = [line(error) for error in unreadable]
    if unfinished:
        named = [path.relative_to(folder) if path != folder else path.name for path in unfinished]
        runs = "1 run" if len(named) == 1 else f"{len(named)} runs"
        left_out.append(f"{runs} unfinished: {listing(sorted(map(str, named)))}")
    if unread := sorted(x for x in set(others) - set(files) if os.path.realpath(x) not in read):
        named = [path.relative_to(folder) for path in unread]
        left_out.append(f"not read unless named: {listing(named)}")
    return files, left_out


def run_directory(file: Path) -> Path | None:
    """Return the directory of the run that wrote a file of rows; None for rows without a run."""
    is_run = file.name == "result.json" and (file.parent / "config.json").is_file()
    return file.parent if is_run else None


def write_row(path: str | os.PathLike[str], row: Row) -> None:
    """Validate a row and write it atomically as `result.json`, one field per line."""
    _check(row, str(path))
    sealed = stored.seal(row)
    fields = [f"  {json.dumps(name)}: {schema.dump(value)}" for name, value in sealed.items()]
    write_whole(path, "{\n" + ",\n".join(fields) + "\n}\n")


def append(path: str | os.PathLike[str], row: Row) -> bool:
    """Validate a row and append it to a `.jsonl`; return False if it is there already.

    Raises:
      UserError: the file holds another result of the same run (config, data and seed).
    """
    path = Path(path)
    _check(row, str(path))
    for old in _read_file(path) if path.exists() else []:
        if group_key(old) == group_key(row) and old["seed"] == row["seed"]:
            if old["confusion"] == row["confusion"]:
                return False
            raise UserError(f"{path}: has another result of {title(row)}; remove that line first")
    schema.append(path, row)
    return True


def overrides(row: Row) -> Row:
    """Return the overrides of the experiment's config, without the seed."""
    return {name: value for name, value in row["overrides"].items() if name != "seed"}


def group_key(row: Row) -> str:
    """Return a key that is equal for rows that differ only in their seed."""
    same = (
        *("experiment", "model", "model_options", "config_digest", "batch_norm"),
        *("dataset", "split", "num_images", "resolution", "class_names"),
    )
    fields = {name: row[name] for name in same} | {"inference": row.get("inference")}
    return json.dumps([fields, overrides(row)], sort_keys=True)


def is_native(row: Row) -> bool:
    """Return whether a row was scored on labels at their own sizes, not at its `resolution`."""
    return row.get("inference", "").startswith(("native", "window"))


def title(row: Row) -> str:
    """Return the name of a row's run, for messages."""
    by = f" by {row['inference']}" if "inference" in row else ""
    return f"{row['experiment']} {row['name']}{by} on {row['dataset']} {row['split']}"
