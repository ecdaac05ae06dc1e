"""FCN-32s on CamVid at 360x480, with the authors' own solver file.

segjax train --config experiments/fcn32s.py --workdir runs/fcn32s

Starts from VGG-16's weights, which are downloaded (550 MB, once) unless `--config.model.pretrained`
names a file. For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "fcn32s"
    config.model.pretrained = "timm/vgg16.tv_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 1

    # The authors' solver: a rate of 1e-10 and a decay of 5e-4 for a loss that is summed over the
    # pixels, where ours is averaged. The kernels of the upsampling are fixed.
    pixels = 360 * 480
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-10 * pixels
    config.optimizer.rates["*/bias"] = 2.0
    config.optimizer.momentum = 0.99
    config.optimizer.weight_decay = 5e-4 / pixels

    config.steps = 100_000
    config.eval_every = 4_000
    config.eval_batch_size = 4
    config.best_metric = "mean_iou"
    config.checkpoint_every = 4_000
    config.log_every = 50

    if size == "smoke":
        config.model.options.width = 2
        config.model.options.fc_width = 4
        config.model.pretrained = ""  # there are no weights of this width
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
