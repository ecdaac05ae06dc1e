"""One network on the bench: compiled, weighed and timed as `segjax benchmark` asks for it.

`python -m segjax.benchmark.worker` is a process of its own: its memory is that of one network. It
answers each line of JSON on its standard input by one on its standard output, an `error` where it
cannot:

- {"do": "network", "model", "model_options", "num_classes", "resolution", "precision", "folder"}:
  which network. Gives the device, versions and the number of parameters. In the folder, if one is
  given, it leaves what other implementations are compared by: weights.npz (arrays by their paths
  in Flax), image.npy (1, H, W, 3) and logits.npy, float32.
- {"do": "batch", "batch"}: compiles the three programs of `WHAT` for this many images and warms
  them up. Gives seconds of compilation, memory, multiply-adds, and bytes that XLA expects to move.
- {"do": "time", "what"}: runs one of them a few times on one batch after another, and waits for
  the last result. Gives milliseconds of one.
- {"do": "peaks"}: times one large matrix product and one large copy; gives their rates.

The programs: forward, a network at inference on a float32 image to its float32 logits;
training_step, the step of `training.steps` on uint8 images and labels that lie on the device, with
SGD with momentum and weighted cross entropy; gradient, the same without its optimiser.
"""

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
from segjax.benchmark.process import forget_peak, resident, serve
from segjax.data.datasets import VOID, DatasetInfo
from segjax.models import flops
from segjax.ops.onednn import build
from segjax.ops.platform import shapes_alone
from segjax.training import losses, optimizers, parallel, steps

WHAT = ("forward", "training_step", "gradient")
DISTINCT = 4  # batches that come round, so that none is at hand from the call before
SAMPLE_SECONDS = 0.05  # a sample is as many calls as this takes, from 1 to MOST_CALLS
MOST_CALLS = 20
WARM_UP = 2  # calls before any that counts, but one where a call takes longer than LONG
LONG = 1.0  # seconds
# Hardly any, so that thousands of steps leave the weights, and the work on them, as they were.
LEARNING_RATE = 1e-12
PATCHES = 64  # of an image, where a network trains on patches

# Of the products and copies that the peaks are measured by.
MATRIX_SIDE = {"cpu": 2048}
COPIED_BYTES = {"cpu": 2**27}
ON_ACCELERATOR = 8192, 2**30


_NOTHING = optax.set_to_zero().init(None)  # the state of no optimiser


class Bench:
    """What lies on the bench, and the answers to the requests of the module's docstring."""

    def __init__(self) -> None:
        self.device = jax.devices()[0]
        self.compiled: dict[str, Any] = {}
        self.inputs: dict[str, list[Any]] = {}
        self.state: Any = None
        self.large: tuple[Any, ...] = ()  # what the peaks are measured on

    def network(self, folder: str | None, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        size, num_classes = tuple(asked["resolution"]), asked["num_classes"]
        self.config = config_of(1, **asked)
        options, dtype = self.config.model.options, jnp.dtype(asked["precision"])
        self.model = models.create(asked["model"], num_classes, dtype=dtype, **options)
        variables = seeded_variables(self.model, size)
        idle = resident()
        if folder:
            exact = models.create(asked["model"], num_classes, **options)
            self._share(Path(folder), variables, exact)
        versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
        versions |= build.versions(self.device.platform)
        if self.device.platform == "gpu":
            versions["platform"] = " ".join(self.device.client.platform_version.split())
        return {
            "device": self.device.device_kind,
            "versions": versions,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "idle": idle[0] if idle else None,
        }

    def _share(self, folder, variables, model):
        paths = jax.tree.leaves_with_path(variables)
        arrays = {"/".join(key.key for key in path): x for path, x in paths}
        image = images(1, tuple(self.asked["resolution"]))[0]
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
        for what in WHAT:
            if what == "training_step":
                self._place_optimizer()
            function = self._function(what)
            start = time.perf_counter()
            compiled = function.lower(*self._arguments(what, 0)).compile()
            seconds[what] = time.perf_counter() - start
            self.compiled[what] = compiled
            analysis = compiled.cost_analysis() or {}
            moved[what] = analysis.get("bytes accessed")
            memory["compiled"][what] = planned(compiled.memory_analysis())
            before = self._device_peak()
            forget_peak()
            calls[what] = self._warm_up(what)
            after, found = self._device_peak(), resident()
            # The device's peak is of the process's whole life.
            memory["device"][what] = after if after and after > (before or 0) else None
            on_cpu = self.device.platform == "cpu"
            memory["process"][what] = found[1] if found and on_cpu else None
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
        size, num_classes = tuple(self.asked["resolution"]), self.asked["num_classes"]
        rng = np.random.default_rng(1)
        kinds = np.append(np.arange(num_classes), VOID).astype(np.uint8)
        self.inputs = {
            "forward": list(images(batch, size, DISTINCT)),
            "training_step": [
                {
                    "image": rng.integers(0, 256, (1, batch, *size, 3), np.uint8),
                    "label": rng.choice(kinds, (1, batch, *size)),
                }
                for _ in range(DISTINCT)
            ],
        }
        self.inputs = jax.device_put(self.inputs, self.device)
        # Made anew: a copy on the host would count as memory of the network.
        variables = jax.device_put(seeded_variables(self.model, size), self.device)
        self.state = steps.TrainState(jnp.zeros((), jnp.int32), variables, _NOTHING, {})
        weights = losses.SEGNET_CLASS_WEIGHTS if num_classes == 11 else np.ones(num_classes)
        self.shared = jax.device_put((np.uint32(self.config.seed), {}), self.device)
        self.class_weights = jnp.asarray(weights, jnp.float32)
        self.count = 0

    def _place_optimizer(self):
        """Put the optimizer's state on the device, which a forward pass has no use for."""
        optimized = jax.jit(self.optimizer.init)(self.state.variables["params"])
        self.state = self.state.replace(opt_state=optimized)

    def _function(self, what):
        if what == "forward":
            return jax.jit(lambda variables, image: self.model.apply(variables, image, train=False))
        return parallel.parallelize(self._step(what), [self.device])

    def _step(self, what, num_steps=1):
        return steps.build_train_steps(
            self.model,
            self.optimizer if what == "training_step" else optax.set_to_zero(),
            self.config,
            information(tuple(self.asked["resolution"]), self.asked["num_classes"]),
            self.class_weights,
            num_steps=num_steps,
            resident=False,
            axis_name=None,
        )

    def _arguments(self, what, number):
        inputs = self.inputs["forward" if what == "forward" else "training_step"]
        if what == "forward":
            return self.state.variables, inputs[number % DISTINCT]
        state = self.state if what == "training_step" else self.state.replace(opt_state=_NOTHING)
        return state, self.shared, inputs[number % DISTINCT]

    def _run(self, what):
        arguments = self._arguments(what, self.count)
        self.count += 1
        if what == "forward":
            return self.compiled[what](*arguments)
        # The state is given up to the step, so the new one takes its place.
        state, outputs = self.compiled[what](*arguments)
        kept = state.opt_state if what == "training_step" else self.state.opt_state
        self.state = state.replace(opt_state=kept)
        return outputs

    def _warm_up(self, what):
        """How many calls make a sample."""
        for _ in range(1 + WARM_UP):
            start = time.perf_counter()
            jax.block_until_ready(self._run(what))
            seconds = time.perf_counter() - start
            if seconds > LONG:
                break
        return calls_of_a_sample(seconds)

    def _macs(self, batch):
        size = (*self.asked["resolution"], 3)
        with shapes_alone():
            step = jax.make_jaxpr(self._step("training_step"))
            traced = step(*self._arguments("training_step", 0))
        return {
            "forward": batch * flops.forward_macs(self.model, size),
            "training_step": flops.macs(traced.jaxpr),
        }

    def _device_peak(self):
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use")

    def time(self, what: str) -> dict[str, Any]:
        calls = self.calls[what]
        start = time.perf_counter()
        for _ in range(calls):
            result = self._run(what)
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
    """Of one call that is not the first."""
    run().block_until_ready()
    start = time.perf_counter()
    run().block_until_ready()
    return time.perf_counter() - start


def planned(analysis: Any) -> int | None:
    """Bytes that a compiled program takes: arguments, results and what is between them."""
    if analysis is None:
        return None
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes  # results in the place of arguments that are given up
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
    """The training of a network as it is timed: the SegNet authors' optimiser, no augmentation.

    Raises:
      UserError: a value that no config has.
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


def information(resolution: tuple[int, int], num_classes: int) -> DatasetInfo:
    """The facts of a data set that there is not."""
    names = tuple(f"class {k}" for k in range(num_classes))
    palette = tuple((k, k, k) for k in range(num_classes))
    return DatasetInfo("random", names, palette, (0.5,) * 3, (0.25,) * 3, {}, resolution)


def images(batch: int, size: tuple[int, int], count: int = 1) -> np.ndarray:
    """Normalised images, float32 (count, batch, H, W, 3); the same at every call."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, batch, *size, 3), np.float32)


def seeded_variables(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Variables that let every path through a network be seen, on the host; ever the same.

    No kernel is zero, as those of scores may be at first, and normalisation does something.
    """
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 200
        values = rng.standard_normal(leaf.shape, np.float32)
        return values * np.float32(math.sqrt(2 / fan_in))

    return jax.tree.map_with_path(fill, shapes)


def calls_of_a_sample(seconds: float) -> int:
    """How many calls of this many seconds make a sample."""
    return max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / seconds)))


def main() -> None:
    # Else a program may come from a cache, and its compilation seem to take no time.
    jax.config.update("jax_enable_compilation_cache", False)
    bench = Bench()
    serve({name: getattr(bench, name) for name in ("network", "batch", "time", "peaks")})


if __name__ == "__main__":
    main()
