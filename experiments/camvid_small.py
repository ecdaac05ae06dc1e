"""SegNet-Basic at half its width on CamVid, tested at 360x480: what two CPU cores train in minutes.

segjax train --config experiments/camvid_small.py --workdir runs/camvid_small

Trained on random crops of 180x240 after random scaling. Not yet run to its end, so no figure stands
here; the row of experiments/results/camvid_small.jsonl is of this network at 96x128, as this file
had it before oneDNN made convolutions on a CPU faster.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """`full`, or `smoke`: the same run cut to seconds."""
    config = default()
    config.model.name = "segnet_basic"
    config.model.options.width = 32
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 8

    config.augment.flip = True
    config.augment.scale = (0.7, 1.4)
    config.augment.crop = (180, 240)
    config.augment.brightness = 0.2

    config.loss.class_weights = "enet"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100

    config.steps = 2400
    config.ema_decay = 0.995
    config.eval_every = 400
    config.eval_batch_size = 4
    config.checkpoint_every = 400
    config.log_every = 25

    if size == "smoke":
        config.model.options.width = 4
        config.data.resolution, config.augment.crop = (24, 32), (16, 24)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
        config.optimizer.warmup_steps = 1
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full or smoke")
    return config
