"""A dataset of your own: U-Net on a folder of images and masks.

segjax data check photos
segjax train --config experiments/folder.py --workdir runs/folder --config.data.folder=photos

The folder has images, masks and `classes.json`, as `segjax/data/folder.py` describes. Images of any
size are resized to 256x256, which `--config.data.resolution=HEIGHT,WIDTH` changes. The network is
U-Net at half its width, with padding and batch normalization, by AdamW with ENet's class weights.
"""

from ml_collections import ConfigDict

from segjax import config as configs
from segjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, or `smoke`, a few seconds."""
    if size not in ("full", "smoke"):
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    config = configs.default()
    config.data.dataset = "folder"
    config.data.resolution = (256, 256)
    config.batch_size = 8

    config.model.name = "unet"
    config.model.options.width = 32
    config.model.options.padding = "same"
    config.model.options.batch_norm = True

    config.augment.flip = True
    config.augment.scale = (0.8, 1.25)
    config.loss.class_weights = "enet"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.steps = 2000
    config.eval_every, config.checkpoint_every = 200, 200
    if size == "smoke":
        config.data.resolution = (32, 32)
        config.model.options.width = 2
        recipes.cut_to_seconds(config)
    return config
