"""Draw the training images of a config before and after augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from segjax.data import loader, pictures
from segjax.runs import experiment


def preview(config: ConfigDict, count: int) -> Image.Image:
    """Draw training images, original and augmented as in the first step, one row each.

    Draw each with its label and, with `loss.border_weight`, its weight map in the loss, from black
    for 0 to white for the maximum.

    Args:
      config: of an experiment.
      count: number of images, evenly spaced in the training split.
    """
    run = experiment.create(config)
    source, _ = run.open_training()
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    raw = loader.in_memory([source[int(place)] for place in places])
    shown = config.copy_and_resolve_references()
    with shown.unlocked():
        shown.data.normalization = "none"  # keep displayable colors
    batch = jax.device_get(
        jax.jit(
            lambda raw: loader.training_batch(raw, config.seed, jnp.int32(0), 0, shown, run.info)
        )(raw)
    )
    batch["image"] = np.rint(255 * batch["image"]).astype(np.uint8)
    greatest = raw["weight"].max() if "weight" in raw else 1.0

    def cells(examples, k):
        row = [examples["image"][k], pictures.colorize(examples["label"][k], run.info.palette)]
        if "weight" in examples:
            row.append(pictures.heat(examples["weight"][k], greatest))
        return row

    titles = ["image", "label", "weight"][: len(raw)]
    return pictures.grid(
        [cells(raw, k) + cells(batch, k) for k in range(len(places))],
        titles + [f"augmented {title}" for title in titles],
        class_names=run.info.class_names,
        palette=run.info.palette,
    )
