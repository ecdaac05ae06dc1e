"""U-Net on CamVid at 360x480, trained as the paper trains on cells.

segjax train --config experiments/unet.py --workdir runs/unet

For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "unet"
    config.model.options.padding = "valid"  # 360x480 is mirrored to 556x668
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 1

    # The paper's augmentation without rotation, because street scenes are upright.
    config.augment.flip = True  # not in the paper
    config.augment.elastic = 10.0
    config.augment.shift = 20.0
    config.augment.outside = "mirror"
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2

    config.loss.class_weights = "median_frequency"

    # Batch and momentum are the paper's; its learning rate and length are not published.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.momentum = 0.99

    config.steps = 60_000
    config.eval_every = 1000
    config.eval_batch_size = 1
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.options.width = 2
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
