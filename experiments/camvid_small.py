"""SegNet-Basic on CamVid at 96x128: the reduced network that a CPU can train.

segjax train --config experiments/camvid_small.py --workdir runs/camvid_small

With JAX_NUM_CPU_DEVICES=2 twenty to thirty minutes on two CPU cores, by what else they do. Test
mIoU 0.387 for seed 0; on validation, which is another street, 0.51.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """`full`, or `smoke`: the same run cut to seconds."""
    config = default()
    config.model.name = "segnet_basic"
    config.model.options.width = 32

    config.data.dataset = "camvid"
    config.data.resolution = (96, 128)
    config.batch_size = 4

    config.augment.flip = True
    config.augment.scale = (0.8, 1.4)
    config.augment.brightness = 0.2

    config.loss.class_weights = "enet"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100

    config.steps = 4400
    config.ema_decay = 0.995
    config.eval_every = 400
    config.checkpoint_every = 400
    config.log_every = 25

    if size == "smoke":
        config.model.options.width = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
        config.optimizer.warmup_steps = 1
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
