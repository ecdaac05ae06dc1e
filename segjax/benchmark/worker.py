"""Worker of `segjax benchmark`: compile, measure and time one network.

`python -m segjax.benchmark.worker` is a process of its own, so that its memory is that of one
network. It answers each line of JSON on standard input with a line on standard output, which has
an `error` if the request fails:

- {"do": "network", "model", "model_options", "num_classes", "resolution", "precision", "folder"}:
  create the network. Returns device, versions and number of parameters. Into the folder, if given,
  it writes reference values for other implementations: weights.npz (arrays by their paths in Flax),
  image.npy (1, H, W, 3) and logits.npy, float32.
- {"do": "batch", "batch"}: compile all of `PROGRAMS` for this batch size and warm them up. Returns
  compilation seconds, memory, MACs, and the memory traffic that XLA expects.
- {"do": "time", "program"}: run one of them several times on successive batches, and wait for the
  last result. Returns milliseconds of one call.
- {"do": "peaks"}: time a large matrix product and a large copy. Returns their rates.

The programs: `forward`, inference on float32 images; `training_step`, the step of `training.steps`
on uint8 images and labels on the device, with momentum SGD and weighted cross entropy; `gradient`,
the same without the optimizer.
"""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import models
from segjax.benchmark.process import (
    DISTINCT,
    LEARNING_RATE,
    PROGRAMS,
    WARM_UP,
    forget_peak,
    resident,
    serve,
    warm_up,
)
from segjax.data.datasets import VOID, DatasetInfo
from segjax.errors import UserError
from segjax.models import flops
from segjax.ops.onednn import build
from segjax.ops.platform import shapes_only
from segjax.system import processor
from segjax.training import losses, optimizers, parallel, steps

PATCHES = 64  # per image, for a network that trains on patches

# Sizes of the matrix product and the copy by platform, by default ON_ACCELERATOR.
MATRIX_SIDE = {"cpu": 2048}
COPIED_BYTES = {"cpu": 2**27}
ON_ACCELERATOR = 8192, 2**30

_NOTHING = optax.set_to_zero().init(None)  # optimizer state of `gradient`


class Bench:
    """A network and its compiled programs; the methods answer the requests listed above."""

    def __init__(self) -> None:
        self.device = jax.devices()[0]
        self.compiled: dict[str, Any] = {}
        self.inputs: dict[str, list[Any]] = {}
        self.state: Any = None
        self.large: tuple[Any, ...] = ()  # arrays that the peaks are measured with

    def network(self, folder: str | None, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        self.size, self.num_classes = tuple(asked["resolution"]), asked["num_classes"]
        options, dtype = config_of(1, **asked).model.options, jnp.dtype(asked["precision"])
        self.model = models.create(asked["model"], self.num_classes, dtype=dtype, **options)
        variables = seeded_variables(self.model, self.size)
        idle = resident()
        if folder:
            exact = models.create(asked["model"], self.num_classes, **options)
            self._share(Path(folder), variables, exact)
        versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
        versions |= build.versions(self.device.platform)
        if self.device.platform == "gpu":
            versions["platform"] = " ".join(self.device.client.platform_version.split())
        named = {"processor": processor.name()} if self.device.platform == "cpu" else {}
        return {
            "device": self.device.device_kind,
            **named,
            "versions": versions,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "idle": idle[0] if idle else None,
        }

    def _share(self, folder, variables, model):
        paths = jax.tree.leaves_with_path(variables)
        arrays = {"/".join(key.key for key in path): x for path, x in paths}
        image = images(1, self.size)[0]
        with jax.default_matmul_precision("highest"):
            forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
            logits = forward(variables, image)
        np.savez(folder / "weights.npz", **arrays)
        np.save(folder / "image.npy", image)
        np.save(folder / "logits.npy", logits)

    def batch(self, batch: int) -> dict[str, Any]:
        self.compiled.clear()
        self.state, self.inputs, self.large = None, {}, ()
        gc.collect()
        self._place(batch)
        seconds, moved, calls = {}, {}, {}
        memory: dict[str, Any] = {"compiled": {}, "device": {}, "process": {}}
        for program in PROGRAMS:
            if program == "training_step":
                self._place_optimizer()
            function = self._function(program)
            start = time.perf_counter()
            compiled = function.lower(*self._arguments(program, 0)).compile()
            seconds[program] = time.perf_counter() - start
            self.compiled[program] = compiled
            analysis = compiled.cost_analysis() or {}
            moved[program] = analysis.get("bytes accessed")
            memory["compiled"][program] = planned(compiled.memory_analysis())
            before = self._device_peak()
            forget_peak()
            calls[program] = warm_up(functools.partial(self._run_to_end, program), 1 + WARM_UP)
            after, found = self._device_peak(), resident()
            # The device reports the peak over the lifetime of the process.
            memory["device"][program] = after if after and after > (before or 0) else None
            on_cpu = self.device.platform == "cpu"
            memory["process"][program] = found[1] if found and on_cpu else None
        self.calls = calls
        return {
            "compile_seconds": seconds,
            "memory": memory,
            "macs": self._macs(batch),
            "bytes": moved,
        }

    def _place(self, batch):
        """Put the variables and the batches on the device."""
        self.config = config_of(batch, **self.asked)
        self.optimizer = optimizers.create_optimizer(
            self.config.optimizer, optimizers.create_schedule(self.config.optimizer, 1)
        )
        size, num_classes = self.size, self.num_classes
        rng = np.random.default_rng(1)
        kinds = np.append(np.arange(num_classes), VOID).astype(np.uint8)
        inputs = {
            "forward": list(images(batch, size, DISTINCT)),
            "training_step": [
                {
                    "image": rng.integers(0, 256, (1, batch, *size, 3), np.uint8),
                    "label": rng.choice(kinds, (1, batch, *size)),
                }
                for _ in range(DISTINCT)
            ],
        }
        self.inputs = jax.device_put(inputs, self.device)
        # Created again, because keeping a copy on the host would count as memory of the network.
        variables = jax.device_put(seeded_variables(self.model, size), self.device)
        self.state = steps.TrainState(jnp.zeros((), jnp.int32), variables, _NOTHING, {})
        weights = losses.SEGNET_CLASS_WEIGHTS if num_classes == 11 else np.ones(num_classes)
        self.shared = jax.device_put((np.uint32(self.config.seed), {}), self.device)
        self.class_weights = jnp.asarray(weights, jnp.float32)
        self.count = 0

    def _place_optimizer(self):
        """Put the optimizer state on the device, after the forward pass, which does not need it."""
        optimized = jax.jit(self.optimizer.init)(self.state.variables["params"])
        self.state = self.state.replace(opt_state=optimized)

    def _function(self, program):
        if program == "forward":
            return jax.jit(lambda variables, image: self.model.apply(variables, image, train=False))
        return parallel.parallelize(self._step(program), [self.device], donate=True)

    def _step(self, program, num_steps=1):
        return steps.build_train_steps(
            self.model,
            self.optimizer if program == "training_step" else optax.set_to_zero(),
            self.config,
            placeholder_dataset(self.size, self.num_classes),
            self.class_weights,
            num_steps=num_steps,
            resident=False,
            axis_name=None,
        )

    def _arguments(self, program, number):
        inputs = self.inputs["forward" if program == "forward" else "training_step"]
        if program == "forward":
            return self.state.variables, inputs[number % DISTINCT]
        state = self.state if program == "training_step" else self.state.replace(opt_state=_NOTHING)
        return state, self.shared, inputs[number % DISTINCT]

    def _run(self, program):
        arguments = self._arguments(program, self.count)
        self.count += 1
        if program == "forward":
            return self.compiled[program](*arguments)
        # The step donates the buffers of the state, so the new state replaces it.
        state, outputs = self.compiled[program](*arguments)
        kept = state.opt_state if program == "training_step" else self.state.opt_state
        self.state = state.replace(opt_state=kept)
        return outputs

    def _run_to_end(self, program):
        jax.block_until_ready(self._run(program))

    def _macs(self, batch):
        with shapes_only():
            step = jax.make_jaxpr(self._step("training_step"))
            traced = step(*self._arguments("training_step", 0))
        return {
            "forward": batch * flops.forward_macs(self.model, (*self.size, 3)),
            "training_step": flops.macs(traced.jaxpr),
        }

    def _device_peak(self):
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use")

    def time(self, program: str) -> dict[str, Any]:
        calls = self.calls[program]
        start = time.perf_counter()
        for _ in range(calls):
            result = self._run(program)
        jax.block_until_ready(result)
        return {"ms": 1e3 * (time.perf_counter() - start) / calls}

    def peaks(self) -> dict[str, Any]:
        platform = self.device.platform
        side = MATRIX_SIDE.get(platform, ON_ACCELERATOR[0])
        copied = COPIED_BYTES.get(platform, ON_ACCELERATOR[1])
        if not self.large:
            numbers = np.random.default_rng(2).standard_normal((side, side), np.float32)
            matrix = jax.device_put(numbers, self.device).astype(self.asked["precision"])
            self.large = matrix, jnp.zeros((copied // 4,), jnp.float32, device=self.device)
        matrix, line = self.large
        product = _seconds(lambda: _product(matrix, matrix))
        copy = _seconds(lambda: _copy(line))
        # A copy reads and writes.
        return {"flops_per_second": 2 * side**3 / product, "bytes_per_second": 2 * copied / copy}


_product, _copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)


def _seconds(run: Callable[[], jax.Array]) -> float:
    """Return the seconds of the second call."""
    run().block_until_ready()
    start = time.perf_counter()
    run().block_until_ready()
    return time.perf_counter() - start


def planned(analysis: Any) -> int | None:
    """Return the bytes that a compiled program needs: arguments, results, temporary buffers."""
    if analysis is None:
        return None
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes  # results that reuse donated arguments
    )


def config_of(
    batch: int,
    *,
    model: str,
    model_options: Mapping[str, Any],
    num_classes: int,
    resolution: tuple[int, int],
    precision: str,
) -> ConfigDict:
    """Return the config of the timed training, with the SegNet authors' optimizer.

    Raises:
      UserError: a value is not valid in a config.
    """
    config = configs.default()
    fields = {
        "model.name": model,
        "precision": precision,
        "data.resolution": tuple(resolution),
        "data.patches": PATCHES if hasattr(models.find(model), "patch_size") else 0,
        "batch_size": batch,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.weight_decay": 5e-4,
    }
    options = {f"model.options.{name}": value for name, value in model_options.items()}
    configs.override(config, fields | options)
    configs.check(config)
    return config.lock()


def placeholder_dataset(resolution: tuple[int, int], num_classes: int) -> DatasetInfo:
    """Describe a dataset of random images, to build a training step without data."""
    names = tuple(f"class {k}" for k in range(num_classes))
    palette = tuple((k, k, k) for k in range(num_classes))
    return DatasetInfo("random", names, palette, (0.5,) * 3, (0.25,) * 3, {}, resolution)


def images(batch: int, size: tuple[int, int], count: int = 1) -> np.ndarray:
    """Return normalized random images, float32 (count, batch, H, W, 3), the same in every call."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, batch, *size, 3), np.float32)


def seeded_variables(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return random variables on the host, the same in every call, to compare implementations.

    No kernel is zero, unlike initial score layers, and normalization layers are not the identity.
    """
    shapes = flops.abstract(model, (*size, 3))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 200
        values = rng.standard_normal(leaf.shape, np.float32)
        return values * np.float32(math.sqrt(2 / fan_in))

    return jax.tree.map_with_path(fill, shapes)


def main() -> None:
    # A program from the cache would seem to compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    bench = Bench()
    answers = {name: getattr(bench, name) for name in ("network", "batch", "time", "peaks")}
    serve(answers, UserError)


if __name__ == "__main__":
    main()
