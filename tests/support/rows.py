"""Result rows for tests."""

import json

import numpy as np

from segjax import results

CLASS_NAMES = ["Sky", "Road", "Pole"]
OTHER = ((60, 35, 5), (30, 160, 10), (2, 6, 12))  # a confusion matrix, not that of `make_row`


def make_row(seed=0, weights="none", confusion=((80, 15, 5), (10, 180, 10), (6, 6, 8)), **changed):
    """Return a consistent row; `changed` replaces fields after the scores are computed."""
    row = {
        "schema": 1,
        "experiment": "small",
        "name": f"loss.class_weights={weights},seed={seed}",
        "overrides": {"loss.class_weights": weights, "model.width": 32, "seed": seed},
        "command": "segjax train --config experiments/small.py",
        "model": "segnet_basic",
        "model_options": {"width": 32},
        "parameters": 357123,
        "config_digest": f"0123456789ab{len(weights):04x}",
        "seed": seed,
        "dataset": "camvid",
        "split": "test",
        "num_images": 233,
        "resolution": [96, 128],
        **results.scored(np.array(confusion), CLASS_NAMES),
        "steps": 3000,
        "best_step": 2800,
        "seconds": 1201.5,
        "batch_norm": "recomputed",
        "device": "cpu x1",
        "versions": {"segjax": "0.1.0"},
        "finished": f"2026-11-22T17:00:0{seed or 0}+00:00",
    }
    return row | changed


def make_baseline(**changed):
    """Return the row of a baseline without seed and parameters: every pixel is Road."""
    return make_row(
        None,
        confusion=((0, 100, 0), (0, 200, 0), (0, 20, 0)),
        name="all Road",
        model="all Road",
        overrides={},
        model_options={},
        parameters=0,
        config_digest=None,
        steps=None,
        best_step=None,
        seconds=None,
        batch_norm=None,
        **changed,
    )


def write_rows(path, rows):
    """Write rows to a .jsonl file, without checksums; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)


def make_camvid_row(right, model="segnet_basic", seed=0, weights="none", **changed):
    """Return a row of CamVid's classes, 1000 pixels each, `right` of them correct."""
    wrong = np.roll(np.eye(len(CAMVID), dtype=int), 1, axis=1) * (1000 - right)
    confusion = np.eye(len(CAMVID), dtype=int) * right + wrong
    more = {"model": model, "class_names": list(CAMVID)}
    more["overrides"] = {"model.name": model, "loss.class_weights": weights, "seed": seed}
    more["name"] = f"model.name={model},loss.class_weights={weights},seed={seed}"
    more["config_digest"] = f"{model} {weights}"
    return make_row(seed, weights, confusion, **(more | changed))
