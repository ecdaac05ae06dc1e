"""Dilation8 on CamVid at 360x480, with the authors' recipe for the front end.

segjax train --config experiments/dilation8.py --workdir runs/dilation8

Starts from VGG-16's weights, which are downloaded (550 MB, once) unless `--config.model.pretrained`
names a file. The authors first train the front end alone (`--config.model.options.context=none`) at
480x640, then front end and context module together, one image of 480x480 a step, at a learning rate
of 1e-5 and a momentum of 0.9. Here both train from the start. For an accelerator. Not yet run in
full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "dilation8"
    config.model.pretrained = "timm/vgg16.tv_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 8

    config.augment.flip = True
    config.augment.crop = (256, 256)  # 628 with the margins

    # 20,000 steps are 436 epochs of 367.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.rates["*/bias"] = 2.0
    config.optimizer.momentum = 0.99
    config.optimizer.weight_decay = 5e-4

    config.steps = 20_000
    config.eval_every = 1000
    config.eval_batch_size = 2
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.pretrained = ""  # there are no weights of this width
        config.model.options.update(width=2, fc_width=4)
        config.augment.crop = ()
        config.batch_size = 2
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
