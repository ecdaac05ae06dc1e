"""A config file for tests of commands: two steps of a narrow SegNet-Basic, one device, 24x32."""

from ml_collections import ConfigDict

from segjax import config as configs
from segjax import recipes


def get_config() -> ConfigDict:
    """Return the config; its network compiles in half the time of U-Net's."""
    config = configs.default()
    config.model.options.width = 2
    config.num_devices = 1
    config.augment.flip = True
    config.augment.scale = (0.8, 1.25)
    config.loss.class_weights = "enet"
    recipes.cut_to_seconds(config)
    return config
