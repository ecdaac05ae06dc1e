"""SegNet-Basic at half its width on CamVid, which a CPU can train.

segjax train --config experiments/camvid_small.py --workdir runs/camvid_small
segjax train --config experiments/camvid_small.py:crops --workdir runs/camvid_crops

The first trains at 96x128, in twenty to thirty minutes on two CPU cores without oneDNN and with
JAX_NUM_CPU_DEVICES=2: test mIoU 0.387 for seed 0, and 0.51 on validation, which is another street.
The second trains on crops of 180x240 and is tested at 360x480, in half an hour on a busy machine:
test mIoU 0.338, and 0.43 on validation, still rising at the end.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`, 96x128; `crops`, tested at 360x480; `smoke`, seconds."""
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

    if size == "crops":
        config.precision = "bfloat16"
        config.data.resolution = (360, 480)
        config.batch_size = 8
        config.augment.crop = (180, 240)
        config.augment.scale = (0.7, 1.4)
        config.optimizer.learning_rate = 3e-3
        config.steps = 2000
        config.eval_batch_size = 4
    elif size == "smoke":
        config.model.options.width = 4
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
        config.optimizer.warmup_steps = 1
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full, crops or smoke")
    return config
