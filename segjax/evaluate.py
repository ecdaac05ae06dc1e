"""Evaluate a trained network, or the mean probabilities of several, on a split."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from segjax.errors import UserError
from segjax.inference import crf as dense_crf
from segjax.inference import dropout, outputs, tta, windows
from segjax.inference.scoring import (
    build_evaluator,
    build_image_evaluator,
    recompute_batch_norm,
    result_row,
)
from segjax.results.counts import Counts
from segjax.runs import hub
from segjax.runs.experiment import Description, Experiment, load_variables, open_run
from segjax.training import parallel


def evaluate_workdirs(
    workdirs: Sequence[Path],
    split: str,
    *,
    kind: str | None = None,
    limit: int | None = None,
    data_dir: str | None = None,
    crf: dense_crf.Parameters | None = None,
    samples: int | None = None,
    transforms: tta.Transforms | None = None,
    native: bool = False,
    window: windows.Windows | None = None,
    calibration: bool = False,
) -> tuple[Path, dict[str, Any], Counts]:
    """Evaluate a checkpoint of a workdir, or the mean probabilities of several, on a split.

    Args:
      workdirs: of trained runs with the same dataset, resolution and classes; `hf:user/name` is one
        on the hub.
      split: train, val or test.
      kind: final, best or latest checkpoint; None: final if it exists, otherwise best. With
        `recompute_batch_norm` the statistics are recomputed first (in `final` they already are).
      limit: number of images, the first of the split; None: all.
      data_dir: folder of prepared datasets, if it differs from training.
      crf: parameters of the dense CRF that refines the probabilities; None: no CRF.
      samples: number of Monte Carlo dropout samples to average; None: no dropout.
      transforms: test-time augmentation; None: no augmentation.
      native: score on the labels as they are stored, not resized: the output at the resolution of
        training is resized to the size of each label. Runs of `data.score_at=native` always are.
      window: score on the labels as they are stored, by windows over the images at their own sizes.
      calibration: also measure the expected calibration error.

    Returns:
      The path for the row, in the first workdir (user/name for one on the hub); the row; and the
      counts it is computed from.

    Raises:
      UserError: a workdir holds no run or is given twice, or the runs differ in dataset, resolution
        or classes, or in the images or labels of the split.
    """
    target = Path(str(workdirs[0]).removeprefix(hub.PREFIX))
    workdirs = [hub.locate(workdir) for workdir in workdirs]
    runs = _open_alike(workdirs, data_dir)
    first = runs[0][0]
    native = native or window is not None or first.config.data.score_at == "native"
    first.require_labels(split)
    source = first.open_split(split, native)
    _require_same_data(runs, workdirs, split, source.digest)
    examples = source.first(limit) if limit else source
    loaded = [_load(run, workdir, kind) for (run, _), workdir in zip(runs, workdirs, strict=True)]
    by_image = native or crf or calibration
    devices = first.devices[:1] if by_image else first.devices
    variables = tuple(parallel.place(each, devices) for each, _ in loaded)

    plain = not (samples or transforms or crf or len(runs) > 1)
    networks = [
        dropout.probabilities(run, samples)
        if samples
        else outputs.logits(run)
        if plain
        else outputs.probabilities(run)
        for run, _ in runs
    ]
    if transforms:
        networks = [tta.average(network, transforms) for network in networks]
    output, shared = networks[0], variables[0]
    if len(runs) > 1:
        output, shared = outputs.mean(networks), variables

    if by_image:
        fit = window or ("resolution" if native else "native")
        strips = windows.build_strips(first, output, fit)
        evaluator = build_image_evaluator(
            first,
            windows.softmax(strips) if plain and calibration else strips,
            functools.partial(dense_crf.refine, crf) if crf else None,
            native=native,
            calibrated=calibration,
        )
        counts = evaluator(shared, examples, f"evaluate {split}")
    else:
        evaluator = build_evaluator(first, output)
        counts = evaluator(shared, examples, f"evaluate {split}", boundaries=True)

    rows = [
        result_row(
            run,
            description,
            counts,
            split=split,
            data_digest=source.digest,
            num_images=len(examples),
            parameters=sum(x.size for x in jax.tree.leaves(own["params"])),
            facts=facts,
            batch_norm=facts.get("batch_norm", "running"),
        )
        for (run, description), (own, facts) in zip(runs, loaded, strict=True)
    ]
    row = rows[0] if len(rows) == 1 else _joint_row(rows)

    row_kind = _agreed([facts["kind"] for _, facts in loaded], "mixed")
    scale = str(window or "native") if native else ""
    done = [scale] if scale else []
    done += ["latest checkpoint"] if row_kind == "latest" else []
    done += [f"mean of {samples} samples"] if samples else []
    done += [str(transforms)] if transforms else []
    done += [f"mean of {len(runs)} networks"] if len(runs) > 1 else []
    done += [f"crf {dense_crf.describe(crf)}"] if crf else []
    if done:
        row["inference"] = ", ".join(done)

    names = [f"evaluation_{split}" + (f"_first{limit}" if limit else "")]
    names += [row_kind]
    names += [scale.replace(" ", "_")] if scale else []
    names += [f"samples_{samples}"] if samples else []
    names += [str(transforms).replace(" ", "_")] if transforms else []
    if len(runs) > 1:
        members = sorted(map(os.path.realpath, workdirs))
        names += [f"ensemble_{hashlib.sha256(json.dumps(members).encode()).hexdigest()[:8]}"]
    names += [f"crf_{dense_crf.describe(crf)}"] if crf else []
    names += ["calibrated"] if calibration else []
    return target / f"{'_'.join(names)}.json", row, counts


def _open_alike(workdirs, data_dir):
    """Open the runs of distinct workdirs that share dataset, resolution and classes."""
    runs: list[tuple[Experiment, Description]] = []
    for place, workdir in enumerate(workdirs):
        if os.path.realpath(workdir) in (os.path.realpath(other) for other in workdirs[:place]):
            raise UserError(f"{workdir} is given twice, expected each network once")
        run, description = open_run(workdir, data_dir)
        runs.append((run, description))
        ours, theirs = _task(run), _task(runs[0][0])
        for what in ours:
            if ours[what] != theirs[what]:
                raise UserError(
                    f"{workdir} has {what} {ours[what]}, but {workdirs[0]} {theirs[what]}; "
                    "averaged networks must share dataset, resolution and classes"
                )
    return runs


def _require_same_data(runs, workdirs, split, digest):
    """Raise if another run, whose data need not be here, had other images or labels."""
    for (run, _), workdir in zip(runs[1:], workdirs[1:], strict=True):
        if not run.info.may_have(split, digest):
            raise UserError(
                f"the {split} split of {workdir} is not that of {workdirs[0]}; averaged networks "
                "must share their data"
            )


def _task(run):
    return {
        "dataset": run.config.data.dataset,
        "resolution": "x".join(map(str, run.config.data.resolution)),
        "fit": run.config.data.fit,
        "score_at": run.config.data.score_at,
        "classes": ", ".join(run.info.class_names),
    }


def _load(run, workdir, kind):
    """Load the variables to evaluate and the facts of their checkpoint."""
    variables, facts = load_variables(run, workdir, kind)
    if "batch_stats" not in variables:
        facts["batch_norm"] = "none"
    elif run.config.recompute_batch_norm and facts["kind"] != "final":
        variables = recompute_batch_norm(run, variables, run.open_split("train"))
        facts["batch_norm"] = "recomputed"
    return variables, facts


def _agreed(values, otherwise):
    """Return the value that all share, otherwise `otherwise`."""
    return values[0] if all(value == values[0] for value in values) else otherwise


def _joint_row(rows):
    """Return the row of an ensemble, from the rows of its members."""
    members = sorted((row["config_digest"], row["seed"]) for row in rows)
    joint = {
        "experiment": " + ".join(dict.fromkeys(row["experiment"] for row in rows)),
        "name": " + ".join(row["name"] for row in rows),
        "overrides": {
            name: value
            for name, value in rows[0]["overrides"].items()
            if all(row["overrides"].get(name) == value for row in rows)
        },
        "command": " && ".join(row["command"] for row in rows),
        "model": " + ".join(dict.fromkeys(row["model"] for row in rows)),
        "model_options": _agreed([row["model_options"] for row in rows], {}),
        "parameters": sum(row["parameters"] for row in rows),
        "pretrained": all(row["pretrained"] for row in rows),
        # The digest includes the seeds of the members, since the ensemble has none.
        "config_digest": hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16],
        "seed": None,
        "steps": sum(row["steps"] for row in rows),
        "epochs": sum(row["epochs"] for row in rows),
        "best_step": None,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "batch_norm": _agreed([row["batch_norm"] for row in rows], "mixed"),
    }
    return rows[0] | joint
