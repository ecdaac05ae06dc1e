"""Worker of `growth.py`: time a training step on several devices, one process for each number.

It answers the request {"do": "measure", "model", "model_options", "resolution", "batch",
"precision", "devices", "samples"} with milliseconds of a step, bytes of one device as XLA plans
them, and the loss of the first step over the whole batch, which is equal for any number of devices.
"""

import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import models
from segjax.benchmark import worker
from segjax.benchmark.process import serve
from segjax.data.datasets import VOID
from segjax.errors import UserError
from segjax.models.summary import NUM_CLASSES
from segjax.training import optimizers, parallel, steps


def measure(devices: int, samples: int, **asked: Any) -> dict[str, Any]:
    """Answer the request above; `asked` is the batch and the arguments of `worker.config_of`."""
    batch, size = asked.pop("batch"), tuple(asked["resolution"])
    config = worker.config_of(batch, num_classes=NUM_CLASSES, **asked)
    used = parallel.pick_devices(devices, {"batch": batch})
    axis, dtype = parallel.axis_name(used), jnp.dtype(asked["precision"])
    model = models.create(
        asked["model"], NUM_CLASSES, dtype=dtype, axis_name=axis, **asked["model_options"]
    )
    optimizer = optimizers.create_optimizer(
        config.optimizer, optimizers.create_schedule(config.optimizer, 1)
    )
    step = steps.build_train_steps(
        model,
        optimizer,
        config,
        worker.placeholder_dataset(size, NUM_CLASSES),
        jnp.ones((NUM_CLASSES,), jnp.float32),
        num_steps=1,
        resident=False,
        axis_name=axis,
    )
    variables = worker.seeded_variables(model.clone(axis_name=None), size)
    optimized = jax.jit(optimizer.init)(variables["params"])
    state = steps.TrainState(jnp.zeros((), jnp.int32), variables, optimized, {})
    state = parallel.place(state, used)
    rng = np.random.default_rng(1)
    kinds = np.append(np.arange(NUM_CLASSES), VOID).astype(np.uint8)
    raw = {
        "image": rng.integers(0, 256, (1, batch, *size, 3), np.uint8),
        "label": rng.choice(kinds, (1, batch, *size)),
    }
    share = parallel.split(raw, used, axis=1)
    shared = np.uint32(0), {}
    lowered = parallel.lower(step, used, state, shared, share)
    planned = worker.planned(lowered.compile().memory_analysis())
    compiled = parallel.parallelize(step, used, donate=True)
    state, outputs = compiled(state, shared, share)
    loss = float(outputs["loss"][0])
    taken = []
    for _ in range(samples):
        start = time.perf_counter()
        state, outputs = compiled(state, shared, share)
        jax.block_until_ready(outputs)
        taken.append(1e3 * (time.perf_counter() - start))
    return {
        "ms": taken,
        "bytes": planned,
        "loss": loss,
        "device": used[0].device_kind,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        serve({"measure": measure}, UserError)


if __name__ == "__main__":
    main()
