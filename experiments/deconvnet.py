"""DeconvNet on CamVid at 360x480, with the recipe of the SegNet paper's benchmark.

segjax train --config experiments/deconvnet.py --workdir runs/deconvnet

Starts from VGG-16's weights, which are downloaded (550 MB, once) unless `--config.model.pretrained`
names a file. The benchmark adds dropout to every network, which DeconvNet's own files and this
config do not have. It gives no learning rate for the biases; the authors double it, which is
`--config.optimizer.rates.*conv/bias=2 --config.optimizer.rates.seg-score/bias=2`. For an
accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a test run of a few seconds."""
    config = default()
    config.model.name = "deconvnet"
    config.model.options.fc_width = 1024  # as in that benchmark; the authors have 4096
    config.model.pretrained = "timm/vgg16.tv_in1k"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 5

    # The SegNet paper's controlled benchmark (Table 3), there on 3433 images: a constant rate, no
    # class weights, 260,000 steps. The authors' own recipe is for object proposals.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4

    config.steps = 260_000
    config.eval_every = 4_000
    config.eval_batch_size = 5
    config.best_metric = "mean_iou"
    config.checkpoint_every = 4_000
    config.log_every = 50

    if size == "smoke":
        config.model.options.width = 2
        config.model.options.fc_width = 4
        config.model.options.fc_kernel = 1
        config.model.pretrained = ""  # there are no weights of this width
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
