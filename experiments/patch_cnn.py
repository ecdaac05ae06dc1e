"""A classifier of 95x95 patches on CamVid at 360x480, the method before FCNs.

segjax train --config experiments/patch_cnn.py --workdir runs/patch_cnn

Trained on patches, tested fully convolutionally with the same weights. The solver is ours; the
paper uses plain gradient descent. For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "patch_cnn"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.data.patches = 32  # per image, 256 per step
    config.batch_size = 8

    config.augment.flip = True

    config.loss.class_weights = "median_frequency"  # the paper draws as many patches of each class

    # 30,000 steps are 654 epochs of 367, and one patch for every eight labeled pixels.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "cosine"

    config.steps = 30_000
    config.eval_every = 1000
    config.eval_batch_size = 2
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.options.update(kernel_sizes=(4, 3), width=2, fc_width=4)
        config.data.patches = 3
        config.batch_size = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
