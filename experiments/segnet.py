"""SegNet with all of VGG-16's convolutions on CamVid at 360x480.

segjax train --config experiments/segnet.py --workdir runs/segnet

The solver is the authors'. They start from VGG-16's weights, this config from scratch; with
`--config.model.pretrained=timm/vgg16.tv_in1k` the encoder starts from them. For an accelerator. Not
yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "segnet"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 4

    config.augment.flip = True  # not in the authors' files; reimplementations need it

    config.loss.class_weights = "segnet"

    # The authors' solver: a constant rate, L2 penalty, 40,000 steps (436 epochs of 367).
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rates.update({"*/conv/bias": 2.0, "conv1_1_D/bias": 2.0})
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4

    config.steps = 40_000
    config.eval_every = 1000
    config.eval_batch_size = 4
    config.best_metric = "global_accuracy"  # as the paper selects
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.options.width = 2
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
