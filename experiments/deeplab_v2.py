"""DeepLab v2 with ResNet-101 on CamVid at 360x480, with the authors' recipe.

segjax train --config experiments/deeplab_v2.py --workdir runs/deeplab_v2

Starts from ImageNet's weights, which are downloaded (180 MB, once) unless
`--config.model.pretrained` names a file. `--config.model.options.rates=2,4,8,12` is the paper's
ASPP-S. For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "deeplab_v2"
    config.model.pretrained = "timm/resnet101.a1h_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 10

    config.augment.flip = True
    config.augment.scale = (0.5, 1.5)
    config.augment.crop = (321, 321)  # 8k + 1, so that the scores reach the border

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.rates.update({"fc1_c*": 10.0, "fc1_c*/bias": 2.0})
    config.optimizer.rates.update({"trunk/*scale": 0.0, "trunk/*bias": 0.0})  # as in their files
    config.optimizer.schedule = "poly"

    config.steps = 20_000
    config.eval_every = 1000
    config.eval_batch_size = 4
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.pretrained = ""  # there are no weights of this width
        config.model.options.update(trunk="resnet18", width=2)
        config.augment.scale, config.augment.crop = (1.0, 1.0), ()
        config.batch_size = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
