"""DeepLab-LargeFOV on CamVid at 360x480, with the authors' solver file.

segjax train --config experiments/deeplab_largefov.py --workdir runs/deeplab_largefov
segjax train --config experiments/deeplab_largefov.py:authors --workdir runs/largefov_authors

Starts from VGG-16's convolutions, which are downloaded (550 MB, once) unless
`--config.model.pretrained` names a file; the authors' fc6 and fc7 start from a subset of VGG-16's
weights. The learning rate follows the second paper's polynomial; in `authors` it is a tenth after
each 2,000 steps, as in the first. For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `authors`, by steps; `smoke`, a few seconds."""
    config = default()
    config.model.name = "deeplab_largefov"
    config.model.pretrained = "timm/vgg16.tv_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 30

    config.augment.flip = True
    config.augment.crop = (321, 321)  # 8k + 1, so that the 3x3 pools are centered at both ends

    # 6,000 steps are 490 epochs of 367.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rates.update({"*/bias": 2.0, "fc8*": 10.0})
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "poly"

    config.steps = 6000
    config.eval_every = 500
    config.eval_batch_size = 4
    config.checkpoint_every = 500
    config.log_every = 50

    if size == "authors":
        config.optimizer.schedule = "step"
        config.optimizer.step_every = 2000
        config.optimizer.step_factor = 0.1
    elif size == "smoke":
        config.model.pretrained = ""  # there are no weights of this width
        config.model.options.update(width=2, fc_width=4)
        config.augment.crop = ()
        config.batch_size = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full, authors or smoke")
    return config
