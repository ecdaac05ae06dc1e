"""FC-DenseNet103 on CamVid at 360x480, with the authors' recipe for crops.

segjax train --config experiments/fc_densenet103.py --workdir runs/fc_densenet103
segjax train --config experiments/fc_densenet103.py:authors --workdir runs/fc_densenet103_authors

In the first Adam replaces the authors' RMSprop, and a cosine their factor of 0.995 an epoch; the
second has both as they are in the authors' `train.py`. The fine-tuning at full size is left out.
For an accelerator. Not yet run in full.
"""

from ml_collections import ConfigDict

from segjax.config import default


def get_config(size: str = "full") -> ConfigDict:
    """Return the config of a size: `full`; `authors`, by RMSprop; `smoke`, `full` in seconds."""
    config = default()
    config.model.name = "fc_densenet103"
    config.precision = "bfloat16"

    config.data.dataset = "camvid"
    config.data.resolution = (360, 480)
    config.batch_size = 3

    config.augment.flip = True
    config.augment.crop = (224, 224)

    # 92,000 steps are 752 epochs of 367; the authors stop at 750, or when validation stalls.
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 2e-4  # their penalty is 1e-4 |kernel|^2, without our half
    config.optimizer.schedule = "cosine"

    config.steps = 92_000
    config.eval_every = 1000
    config.eval_batch_size = 3
    config.checkpoint_every = 1000
    config.log_every = 50

    if size == "authors":
        config.optimizer.name = "rmsprop"
        config.optimizer.schedule = "step"
        config.optimizer.step_every = 122  # an epoch
        config.optimizer.step_factor = 0.995
    elif size == "smoke":
        config.model.options.update(layers=(1, 1, 1), growth=2, width=4)
        config.augment.crop = ()
        config.data.resolution = (24, 32)
        config.steps, config.eval_every, config.checkpoint_every = 2, 2, 2
    elif size != "full":
        raise ValueError(f"unknown size {size!r}, expected full, authors or smoke")
    return config
