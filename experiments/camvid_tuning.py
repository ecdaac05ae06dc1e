"""Choose the recipe of the CamVid table by comparing a few on the validation images.

segjax train --config experiments/camvid_tuning.py --workdir runs/camvid_tuning
segjax sweep --config experiments/camvid_tuning.py --workdir runs/camvid_tuning
segjax table --results runs/camvid_tuning

The first trains SegNet with the table's recipe, half as long; the second also with nine others that
differ from it in one thing each. The final score is on the 101 validation images, so that the test
images have no part in the choice. They also choose the best step, so these scores serve only to
compare recipes. For an accelerator, and not yet run in full; `small`, at 96x128, is for a CPU.
`crops` compares six short recipes for two CPU cores; its rows and what they say are in NOTES.md.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from segjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `small`, for a CPU; `smoke`, a few seconds."""
    config = recipes.camvid(size)
    config.model.name = "segnet"
    config.loss.class_weights = "median_frequency"
    config.test_split = "val"
    if size in recipes.CROPS:
        config.model.name = "segnet_basic"
        config.loss.class_weights = "none"
        config.steps, config.eval_every, config.checkpoint_every = 150, 150, 50
        config.ema_decay = 0.97
    elif size == "full":
        config.model.pretrained = recipes.VGG16
        config.optimizer.learning_rate = recipes.VGG16_RATE
        config.steps = 4000
    else:
        config.model.options.width = 16 if size == "small" else 2
    return config


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """Yield the recipe, and others that differ from it in one thing each."""
    if size in recipes.CROPS:
        yield from crops()
        return
    lower, higher, of_sgd = (3e-5, 3e-4, 1e-2) if size == "full" else (6e-4, 6e-3, 0.1)
    yield {"seed": 0}
    yield {"optimizer.learning_rate": lower, "seed": 0}
    yield {"optimizer.learning_rate": higher, "seed": 0}
    yield {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": of_sgd,
        "optimizer.weight_decay": 5e-4,
        "optimizer.schedule": "poly",
        "seed": 0,
    }
    yield {"augment.scale": (0.5, 2.0), "seed": 0}
    yield {
        "augment.brightness": 0.2,
        "augment.contrast": 0.2,
        "augment.saturation": 0.2,
        "seed": 0,
    }
    yield {"loss.class_weights": "enet", "seed": 0}
    yield {"loss.class_weights": "none", "seed": 0}
    yield {"ema_decay": 0.99, "seed": 0}
    yield {"batch_size": 16, "seed": 0}


def crops() -> Iterator[dict[str, Any]]:
    """Yield DeepLab-LargeFOV from VGG-16 and SegNet-Basic from scratch, a few recipes each."""
    trunk = {
        "model.name": "deeplab_largefov",
        "model.options.fc_width": 1024,
        "model.options.batch_norm": True,
        "model.pretrained": recipes.VGG16,
        "seed": 0,
    }
    scratch = {"model.name": "segnet_basic", "optimizer.learning_rate": 3e-3, "seed": 0}
    for rate in (3e-4, 1e-4, 1e-3):
        yield {**trunk, "optimizer.learning_rate": rate}
    yield {**trunk, "optimizer.learning_rate": 3e-4, "loss.class_weights": "enet"}
    yield scratch
    yield {**scratch, "loss.class_weights": "enet"}
