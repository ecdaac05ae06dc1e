"""Result rows for tests."""

import numpy as np

from segjax import metrics

CLASS_NAMES = ["Sky", "Road", "Pole"]


def make_row(seed=0, weights="none", confusion=((80, 15, 5), (10, 180, 10), (6, 6, 8)), **changed):
    """Return a consistent row; `changed` replaces fields after the scores are computed."""
    scores = metrics.scores(np.array(confusion))
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
        "class_names": CLASS_NAMES,
        "global_accuracy": scores.global_accuracy,
        "class_accuracy": scores.class_accuracy,
        "mean_iou": scores.mean_iou,
        "boundary_f": None,
        "per_class_accuracy": scores.per_class_accuracy.tolist(),
        "per_class_iou": scores.per_class_iou.tolist(),
        "present": scores.present.tolist(),
        "confusion": np.array(confusion).tolist(),
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
