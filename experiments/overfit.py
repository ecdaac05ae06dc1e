"""Check that each architecture can learn: overfit four small CamVid images to an mIoU above 0.9.

python experiments/overfit.py --output overfit.jsonl [--models fcn8s unet]

A script, not a config: it adds a row for each model that the file does not have yet, and prints the
table of all rows. Each model starts from its config, or from the default if it has none, with few
features, whole images in float32, no augmentation, no class weights (except for DeconvNet and the
classifier of patches), and Adam. Dropout is off except in the Bayesian networks.

A network with one score per cell of its output stride cannot draw poles one pixel wide: the ground
truth itself, by majority vote in cells of 8x8 at 360x480, has an mIoU of 0.8. So each model sees
the images reduced to one pixel for each cell of its finest scores, and enlarged again. The mIoU is
over the classes present in the four images. All models took 1 h 42 min on two busy cores, from 16 s
to 23 min each.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import metrics, models
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference import scoring
from segjax.runs import experiment
from segjax.system.files import write_whole
from segjax.training import optimizers, parallel, steps

GOAL = 0.9
MOST_STEPS = 2000
EVALUATE_EVERY = 25  # steps


@dataclasses.dataclass(frozen=True)
class Setting:
    """Options of a small model, and of its images and training."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"width": 16})
    cells: tuple[int, int] = (48, 64)  # height and width that the images are reduced to
    enlarged: int = 1  # pixels, the side of a cell
    learning_rate: float = 3e-3
    class_weights: str = "none"
    patches: int = 0


_COARSE = {"width": 8, "fc_width": 64, "dropout": 0.0, "batch_norm": True}
_SAME = _COARSE | {"padding": "same"}
_DENSE = {"width": 16, "growth": 6, "dropout": 0.0}
SETTINGS = {
    "fcn32s": Setting(_SAME, (6, 8), 32),
    "fcn16s": Setting(_SAME | {"at_once": False}, (12, 16), 16),
    "fcn8s": Setting(_SAME | {"at_once": False}, (12, 16), 8),
    "fcn4s": Setting(_SAME, (12, 16), 4),
    "deeplab_aspp": Setting(_COARSE, (12, 16), 8),
    "deeplab_largefov": Setting(_COARSE, (12, 16), 8),
    "deeplab_v2": Setting({"trunk": "resnet18", "width": 16}, (12, 16), 8),
    "deeplab_v3": Setting(
        {"trunk": "resnet18", "output_stride": 8, "width": 16, "aspp_width": 32, "dropout": 0.0},
        (12, 16),
        8,
    ),
    "dilation8": Setting(_COARSE | {"width": 4, "fc_width": 32}, (12, 16), 8),
    "bilinear_interpolation": Setting(cells=(12, 16), enlarged=16),
    # Without weights it learns only the large classes for a thousand steps.
    "deconvnet": Setting(
        {"width": 16, "fc_width": 256, "fc_kernel": 3}, (24, 32), 4, 2e-3, "median_frequency"
    ),
    "unet": Setting({"width": 8, "dropout": 0.0, "padding": "same", "batch_norm": True}),
    "unet_resnet": Setting({"trunk": "resnet18", "width": 32}, (24, 32), 2, 2e-3),
    "fc_densenet56": Setting(_DENSE),
    "fc_densenet67": Setting(_DENSE),
    "fc_densenet103": Setting(_DENSE),
    "patch_cnn": Setting(
        {"kernel_sizes": (4, 5, 4), "width": 32, "fc_width": 64},
        (24, 32),
        class_weights="median_frequency",
        patches=128,
    ),
}


def small_config(name: str, setting: Setting, data_dir: str) -> ConfigDict:
    """Return the config of a model, cut down to four small images."""
    file = Path(__file__).with_name(f"{name}.py")
    plain = configs.default()
    config = configs.load(str(file), {}) if file.exists() else plain
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.name = name
        config.model.options.update(setting.options)
        config.model.pretrained = ""
        for part in ("augment", "loss", "optimizer"):
            config[part] = plain[part]
        config.data.dataset, config.data.data_dir = "camvid", data_dir
        config.data.resolution = tuple(side * setting.enlarged for side in setting.cells)
        config.data.patches = setting.patches
        config.loss.class_weights = setting.class_weights
        config.precision, config.ema_decay = "float32", 0.0
        config.batch_size = config.eval_batch_size = 4
        config.num_devices = config.micro_batches = config.steps_per_dispatch = 1
        config.optimizer.name, config.optimizer.learning_rate = "adam", setting.learning_rate
    configs.check(config)
    return config.lock()


def four_images(setting: Setting, data_dir: str) -> dict[str, np.ndarray]:
    """Return four training images and their labels, reduced to cells and enlarged again."""
    source = datasets.open_split(
        "camvid", "train", data_dir=data_dir or None, resolution=setting.cells
    )
    places = np.linspace(0, len(source) - 1, 4).round().astype(int)
    examples = [source[int(place)] for place in places]
    whole = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
    factor = setting.enlarged
    return {name: x.repeat(factor, 1).repeat(factor, 2) for name, x in whole.items()}


def overfit(name: str, setting: Setting, data_dir: str, most_steps: int) -> dict[str, Any]:
    """Train until the goal or `most_steps` is reached, and return the row."""
    config = small_config(name, setting, data_dir)
    run = experiment.create(config)
    data = four_images(setting, data_dir)
    schedule = optimizers.create_schedule(config.optimizer, most_steps)
    optimizer = optimizers.create_optimizer(config.optimizer, schedule)
    state = steps.create_state(run.model, optimizer, config)
    parameters = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
    _, class_weights = run.open_training()
    weights = jnp.asarray(class_weights)
    train = parallel.parallelize(
        steps.build_train_steps(
            run.model,
            optimizer,
            config,
            run.info,
            weights,
            num_steps=1,
            resident=True,
            axis_name=None,
        ),
        run.devices,
    )
    evaluator = scoring.build_evaluator(run)
    start, done, mean_iou = time.monotonic(), 0, 0.0
    while mean_iou <= GOAL and done < most_steps:
        for _ in range(min(EVALUATE_EVERY, most_steps - done)):
            state, outputs = train(state, (np.uint32(config.seed), data), {})
            done += 1
        scores = metrics.scores(evaluator(state.variables, data).total)
        mean_iou = float(scores.per_class_iou[scores.present].mean())
        loss = float(outputs["loss"][-1])
        print(f"{name} step {done}: loss {loss:.3f}, mIoU {mean_iou:.3f}", file=sys.stderr)
    return {
        "model": name,
        "options": config.model.options.to_dict(),
        "parameters": parameters,
        "cells": list(setting.cells),
        "resolution": list(config.data.resolution),
        "classes": int(scores.present.sum()),
        "learning_rate": setting.learning_rate,
        "class_weights": setting.class_weights,
        "steps": done,
        "seconds": round(time.monotonic() - start, 1),
        "loss": loss,
        "mean_iou": mean_iou,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | options | parameters | cells | image | classes | steps | seconds | mIoU |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
        cells, size = ("x".join(map(str, row[key])) for key in ("cells", "resolution"))
        lines.append(
            f"| {row['model']} | {options} | {row['parameters']:,} | {cells} | {size} "
            f"| {row['classes']} | {row['steps']} | {row['seconds']:.0f} | {row['mean_iou']:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Overfit the models that are missing; return 1 if one misses the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--models", nargs="+", choices=sorted(models.MODELS), metavar="MODEL")
    parser.add_argument("--steps", type=int, default=MOST_STEPS, help=f"at most ({MOST_STEPS})")
    parser.add_argument("--data-dir", default="", help="folder of the prepared camvid")
    options = parser.parse_args(arguments)
    text = options.output.read_text() if options.output.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    try:
        for name in options.models or models.MODELS:
            if name not in [row["model"] for row in rows]:
                setting = SETTINGS.get(name, Setting())
                rows.append(overfit(name, setting, options.data_dir, options.steps))
                write_whole(options.output, "".join(json.dumps(row) + "\n" for row in rows))
    except UserError as error:
        print(f"overfit: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    return int(any(row["mean_iou"] <= GOAL for row in rows))


if __name__ == "__main__":
    sys.exit(main())
