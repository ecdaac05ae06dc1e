"""Bayesian SegNet on CamVid at 360x480: SegNet with dropout, scored by Monte Carlo samples.

segjax train --config experiments/bayesian_segnet.py --workdir runs/bayesian_segnet
segjax evaluate --workdir runs/bayesian_segnet --samples 50
segjax predict --workdir runs/bayesian_segnet --samples 50 IMAGES --output DIR

The test at the end of training is without dropout; the second command averages samples with
dropout, as the paper does. The authors start from VGG-16's weights, this config from scratch;
`--config.model.pretrained=timm/vgg16.tv_in1k` starts the encoder from them. For an accelerator. Not
yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "bayesian_segnet"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 4

    config.augment.flip = True  # not in the authors' files; reimplementations need it

    config.loss.class_weights = "segnet"

    # The authors' solver for SegNet, with 1.5 times as many steps.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rates.update({"*/conv/bias": 2.0, "conv1_1_D/bias": 2.0})
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4

    config.steps = 60_000
    config.eval_every = 1000
    config.eval_batch_size = 4
    config.best_metric = "global_accuracy"
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.options.width = 2
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
