"""Time what surrounds a training step: loop, first step, evaluation, prediction, --help.

python experiments/speed/loop.py --output rows.jsonl
python experiments/speed/loop.py --output rows.jsonl --resolution 360x480 \\
    --config.model.options.width=64 --config.precision=bfloat16 --config.batch_size=16

The first is for two CPU cores (with JAX_NUM_CPU_DEVICES=2, one device per core as in training), the
second for a GPU; each takes less than six minutes. Any config works; the rows name it.

- loop: images per second of `segjax train` (data, augmentation, metrics, logs), of its compiled
  program alone (data on the device, with augmentation), and of the bare step on prepared,
  normalized batches, in turn within one training. The loop waits for its last step at the end of
  each turn, so it appears slightly slower than it is.
- first_step: seconds from the command to the first step in its log, with an empty and with a filled
  compilation cache.
- throughput: images per second of evaluation, of boundary matching (labels against themselves
  shifted by two pixels), and of `segjax predict` from file to file, all after compilation.
- start: seconds of `--help` and of Python alone.
"""

import argparse
import functools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timings
from ml_collections import ConfigDict
from PIL import Image

from segjax import config as configs
from segjax import predict, results, train
from segjax.cli import arguments
from segjax.data import datasets, loader
from segjax.errors import UserError
from segjax.inference import scoring
from segjax.metrics import boundary
from segjax.results.schema import Row
from segjax.runs import experiment
from segjax.runs.experiment import Description, Experiment
from segjax.training import optimizers, parallel, steps

RECIPE = Path(__file__).parents[1] / "camvid_small.py"
KINDS = ("start", "first_step", "loop", "throughput")
DISTINCT = 4  # number of batches, cycled
MOVED = 2  # pixels; shifted labels serve as predictions
ENDLESS = 10**6  # steps


class Enough(Exception):
    """Raised to end the training when all turns are done."""


class Turns:
    """A wrapper of a training's compiled step that times the other programs in between.

    After every `calls` steps it waits for their results, then calls each of the other programs the
    same number of times. The first turn, which includes compilation, does not count.
    """

    def __init__(self, step: Callable[..., Any], bare: Callable[[], Any], calls: int, turns: int):
        self.step, self.bare, self.calls, self.turns = step, bare, calls, turns
        self.done, self.since, self.own = 0, 0.0, None
        self.seconds: dict[str, list[float]] = {"loop": [], "program": [], "bare": []}

    def __call__(self, state: Any, shared: Any, share: Any) -> Any:
        if self.done % self.calls == 0:
            jax.block_until_ready(state)
            self._note("loop", time.perf_counter() - self.since)
            program = functools.partial(self._program, state, shared, share)
            others = [("program", program), ("bare", self.bare)]
            # The first program in one turn is the last in the next.
            for name, call in others[:: 1 if self.done % (2 * self.calls) else -1]:
                start = time.perf_counter()
                for _ in range(self.calls):
                    result = call()
                jax.block_until_ready(result)
                self._note(name, time.perf_counter() - start)
            if self.done == self.calls * (self.turns + 1):
                raise Enough
            self.since = time.perf_counter()
        self.done += 1
        return self.step(state, shared, share)

    def _note(self, name, seconds):
        if self.done > self.calls:
            self.seconds[name].append(seconds)

    def _program(self, state, shared, share):
        # A copy, since the steps donate their arguments.
        self.own = jax.tree.map(jnp.copy, state) if self.own is None else self.own
        self.own, outputs = self.step(self.own, shared, share)
        return outputs


def bare_step(run: Experiment) -> Callable[[], Any]:
    """Return a function that runs one more step, cycling through prepared batches."""
    config, info = run.config, run.info
    source, counted = run.open_training()
    weights = jnp.asarray(counted)
    schedule = optimizers.create_schedule(config.optimizer, config.steps)
    optimizer = optimizers.create_optimizer(config.optimizer, schedule)

    def step(state, batch):
        return steps.train_step(
            state,
            batch,
            run.model,
            optimizer,
            config,
            jnp.asarray(weights),
            seed=config.seed,
            axis_name=run.axis_name,
        )

    def ready(number):
        size = config.batch_size
        places = [(size * number + k) % len(source) for k in range(size)]
        batch = prepared(loader.pick(source, places), jnp.int32(number))
        split = parallel.split(jax.tree.map(np.asarray, batch), run.devices)
        return split if run.axis_name else parallel.place(split, run.devices)

    prepared = jax.jit(lambda raw, k: loader.training_batch(raw, config.seed, k, 0, config, info))
    batches = [ready(number) for number in range(DISTINCT)]
    compiled = parallel.parallelize(step, run.devices, donate=True)
    state = steps.create_state(run.model, optimizer, config, len(info.mean))
    held = {"state": parallel.place(state, run.devices), "number": 0}

    def call():
        held["number"] += 1
        held["state"], outputs = compiled(held["state"], batches[held["number"] % DISTINCT])
        return outputs

    return call


def measure_loop(config: ConfigDict, folder: Path, calls: int, turns: int) -> dict[str, Any]:
    """Return images per second of the loop, its program and the bare step in each turn."""
    with config.unlocked():
        config.steps = config.eval_every = config.checkpoint_every = ENDLESS
    bare, held = bare_step(experiment.create(config)), []
    parallelize = parallel.parallelize

    def stand_in(step, devices, donate=False):
        compiled = parallelize(step, devices, donate=donate)
        if step.__name__ != "train_steps":
            return compiled
        held.append(Turns(compiled, bare, calls, turns))
        return held[-1]

    parallel.parallelize = stand_in
    try:
        train.train(config, folder / "loop", Description("loop", "loop", {}, "loop.py"))
    except Enough:
        pass
    finally:
        parallel.parallelize = parallelize
    images = dict.fromkeys(held[0].seconds, calls * config.batch_size)
    for name in ("loop", "program"):
        images[name] *= config.steps_per_dispatch
    return {
        name: [images[name] / seconds for seconds in found]
        for name, found in held[0].seconds.items()
    }


def measure_first_step(
    spec: str, overrides: Mapping[str, Any], folder: Path, repeats: int
) -> dict[str, Any]:
    """Return seconds from the command to the first step, without and with a compilation cache."""
    samples: dict[str, list[float]] = {"cold": [], "warm": []}
    # The first step is logged when it is to be saved.
    wanted = {**overrides, "log_every": 1, "checkpoint_every": 1}
    for repeat in range(repeats):
        for name in samples:
            workdir = folder / f"{name}{repeat}"
            command = [sys.executable, "-m", "segjax", "train", "--config", spec]
            command += ["--workdir", str(workdir)]
            command += [f"--config.{field}={value}" for field, value in wanted.items()]
            cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled{repeat}")}
            samples[name].append(_until_logged(command, workdir / "metrics.jsonl", cache))
    return samples


def _until_logged(command, log, environment):
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None:
                    said.seek(0)
                    raise UserError(f"{shlex.join(command)}: {said.read().decode().strip()}")
                time.sleep(0.005)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
    return seconds


def measure_throughput(config: ConfigDict, folder: Path, repeats: int) -> dict[str, Any]:
    """Return images per second of evaluation, boundary matching and prediction."""
    run = experiment.create(config)
    num_classes = len(run.info.class_names)
    optimizer = optimizers.create_optimizer(config.optimizer, lambda _: 0.0)
    state = steps.create_state(run.model, optimizer, config, len(run.info.mean))
    variables = parallel.place(state.variables, run.devices)
    examples = loader.in_memory(run.open_split("val"))
    count = len(examples["label"])
    files = [folder / f"{place}.png" for place in range(count)]
    for path, image in zip(files, examples["image"], strict=True):
        Image.fromarray(image.squeeze()).save(path)
    evaluator = scoring.build_evaluator(run)
    evaluator(variables, examples)

    def match():
        for label in examples["label"]:
            boundary.counts(label, np.roll(label, MOVED, (0, 1)), num_classes)

    samples: dict[str, list[float]] = {"evaluation": [], "boundary_f": [], "predict": []}
    for _ in range(repeats):
        for name, call in (
            ("evaluation", lambda: evaluator(variables, examples)),
            ("boundary_f", match),
        ):
            start = time.perf_counter()
            call()
            samples[name].append(count / (time.perf_counter() - start))
        ends: list[float] = []
        predict.predict_files(
            run,
            parallel.place(state.variables, run.devices[:1]),
            files,
            folder / "predicted",
            fit="aspect",
            crf=None,
            samples=None,
            transforms=None,
            progress=lambda _, ends=ends: ends.append(time.perf_counter()),
        )
        # The first includes compilation.
        samples["predict"].append((len(ends) - 1) / (ends[-1] - ends[0]))
    return samples


def measure_start(repeats: int) -> dict[str, Any]:
    """Return the seconds of commands that do nothing."""
    module = [sys.executable, "-m", "segjax"]
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "segjax --help": [*module, "--help"],
        "segjax train --help": [*module, "train", "--help"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            samples[name].append(time.perf_counter() - start)
    return samples


def setting(config: ConfigDict) -> Row:
    """Return the setting of a row (`timings.Setting`)."""
    return {
        "model": config.model.name,
        "model_options": config.model.options.to_dict(),
        "dataset": config.data.dataset,
        "resolution": list(config.data.resolution),
        "batch": config.batch_size,
        "precision": config.precision,
        "placement": config.data.placement,
        "steps_per_dispatch": config.steps_per_dispatch,
        "config_digest": configs.digest(config),
    }


def make_row(kind: str, command: str, samples: dict[str, Any], config: ConfigDict | None) -> Row:
    """Return a row of `timings`."""
    used = parallel.pick_devices(config.num_devices, {"": config.batch_size}) if config else ()
    device = f"{jax.devices()[0].device_kind} x{max(1, len(used))}"
    return {
        "schema": timings.SCHEMA,
        "kind": kind,
        "command": command,
        "setting": setting(config) if config else None,
        "unit": timings.KINDS[kind][0],
        "samples": samples,
        **results.provenance(device),
    }


def summary(row: Row) -> str:
    """Return a summary of a row in one line."""
    texts = [f"{name} {timings.median(row, name):.3g}" for name in row["samples"]]
    line = f"{row['kind']}: {', '.join(texts)} {row['unit']}"
    if row["setting"]:
        size = "x".join(map(str, row["setting"]["resolution"]))
        line = f"{row['setting']['model']} {size} {line}"
    if row["kind"] == "loop":
        parts = [
            f"{timings.ratio(row, 'loop', name):.3f} of {name}" for name in ("bare", "program")
        ]
        line += f"; the loop has {', '.join(parts)}"
    return line


def measure(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    """Measure the requested kinds; write each row as soon as it is measured."""

    def keep(kind, samples, config=None):
        row = make_row(kind, options.shell, samples, config)
        if options.output:
            timings.append(options.output, row)
        sys.stdout.write(summary(row) + "\n")
        sys.stdout.flush()

    if "start" in options.only:
        keep("start", measure_start(options.repeats))
    for resolution in options.resolution:
        own = {"data.dataset": "streetscenes", **overrides, "data.resolution": resolution}
        data = configs.load(options.config, own).data
        datasets.prepare(data.dataset, data_dir=data.data_dir or None, resolution=resolution)
        for kind in [kind for kind in KINDS if kind in options.only and kind != "start"]:
            config = configs.load(options.config, own)
            with tempfile.TemporaryDirectory() as name:
                if kind == "loop":
                    samples = measure_loop(config, Path(name), options.calls, options.turns)
                elif kind == "first_step":
                    samples = measure_first_step(options.config, own, Path(name), options.starts)
                else:
                    samples = measure_throughput(config, Path(name), options.repeats)
            keep(kind, samples, config)


def main(given: list[str] | None = None) -> int:
    """Measure; return the exit status, 2 for a user error."""
    parser = arguments.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=str(RECIPE), metavar="FILE[:ARG]")
    parser.add_argument(
        "--resolution",
        nargs="+",
        type=arguments.size,
        default=((96, 128), (144, 192)),
        metavar="HxW",
        help="(default: 96x128 144x192)",
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    add = functools.partial(parser.add_argument, type=arguments.count, metavar="N")
    add("--calls", default=4, help="calls of each program in a turn of the loop (default: 4)")
    add("--turns", default=6, help="turns of the loop (default: 6)")
    add("--starts", default=1, help="cold and warm starts for first_step (default: 1)")
    add("--repeats", default=5, help="samples of start and throughput (default: 5)")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append the rows to it")
    given = sys.argv[1:] if given is None else given
    # Leaves GPU memory for the commands that this process starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        options, rest = parser.parse_known_args(given)
        options.shell = shlex.join(["python", "experiments/speed/loop.py", *given])
        measure(options, configs.parse_overrides(rest))
    except train.Stopped as stopped:
        return stopped.status
    except (UserError, OSError) as error:
        sys.stderr.write(f"loop.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
