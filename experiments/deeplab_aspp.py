"""DeepLab-ASPP with VGG-16's trunk on CamVid at 360x480, with the authors' recipe.

segjax train --config experiments/deeplab_aspp.py --workdir runs/deeplab_aspp

Starts from VGG-16's convolutions, which are downloaded (550 MB, once) unless
`--config.model.pretrained` names a file. `--config.model.options.output_stride=32` is the same
depth with the strides of VGG-16. For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "deeplab_aspp"
    config.model.pretrained = "timm/vgg16.tv_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 10

    config.augment.flip = True
    config.augment.scale = (0.5, 1.5)  # as for ResNet-101 in the same paper
    config.augment.crop = (321, 321)  # 8k + 1, so that the 3x3 pools are centered at both ends

    # 20,000 steps are 545 epochs of 367.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rates.update({"*/bias": 2.0, "fc8*": 10.0})
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "poly"

    config.steps = 20_000
    config.eval_every = 1000
    config.eval_batch_size = 4
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "smoke":
        config.model.pretrained = ""  # there are no weights of this width
        config.model.options.update(width=2, fc_width=4)
        config.augment.scale, config.augment.crop = (1.0, 1.0), ()
        config.batch_size = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
