"""Compare ways of running the same training step, timed in turn.

python experiments/speed/levers.py --output levers.jsonl --resolution 48x64 --options width=16
python experiments/speed/levers.py --output levers.jsonl --resolution 360x480 \\
    --models segnet unet deeplab_largefov --precision bfloat16

The first is for two CPU cores, the second for a GPU; each takes a few minutes. For each network it
writes a row of `timings.py`: milliseconds of a step, and bytes of each program as XLA plans them.

- plain: the step of `segjax.training.steps`.
- recompute: normalization, ReLU, pooling and unpooling are recomputed in the backward pass; the
  outputs of convolutions are kept.
- recompute_all: the whole forward pass is recomputed.
- dispatch: an eighth of the time of eight steps in one call.
- seeds: a quarter of the time of a step of four networks in one program.
"""

import argparse
import random
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import timings
from flax import linen as nn

from segjax import results
from segjax.benchmark import run, worker
from segjax.cli import arguments
from segjax.errors import UserError

STEPS, SEEDS = 8, 4
KEPT = ("conv_general_dilated", "custom_vjp_call", "dot_general")  # expensive to recompute


class Checkpointed:
    """A model whose backward pass recomputes what `policy` does not keep."""

    def __init__(self, model: nn.Module, policy: Callable[..., bool] | None):
        self.model, self.policy = model, policy

    def apply(self, variables: Any, image: jax.Array, **options: Any) -> Any:
        def forward(variables, image):
            return self.model.apply(variables, image, **options)

        return jax.checkpoint(forward, policy=self.policy)(variables, image)


def _keeps_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in KEPT


class Lever(worker.Bench):
    """A network and its training step, compiled in each of these ways."""

    def place(self, batch: int) -> dict[str, int | None]:
        """Compile the step in each way; return the planned bytes."""
        self._place(batch)
        self._place_optimizer()
        self.programs: dict[str, tuple[Any, tuple[Any, ...], int]] = {}
        raw = self.inputs["training_step"][0]
        model = self.model
        for name, kept in (
            ("plain", model),
            ("recompute", Checkpointed(model, _keeps_convolutions)),
            ("recompute_all", Checkpointed(model, None)),
        ):
            self.model = kept
            self._compile(name, self._step("training_step"), (self.state, self.shared, raw), 1)
        self.model = model
        many = jax.tree.map(lambda x: jnp.repeat(x, STEPS, 0), raw)
        self._compile(
            "dispatch", self._step("training_step", STEPS), (self.state, self.shared, many), STEPS
        )
        seeds = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), (self.state, raw))
        step = self._step("training_step")
        each = jax.vmap(lambda state, raw: step(state, self.shared, raw))
        self._compile("seeds", each, seeds, SEEDS)
        return {
            name: worker.planned(program.memory_analysis())
            for name, (program, _, _) in self.programs.items()
        }

    def _compile(self, name, function, given, count):
        program = jax.jit(function).lower(*given).compile()
        jax.block_until_ready(program(*given))
        self.programs[name] = program, given, count

    def samples(self, turns: int) -> dict[str, list[float]]:
        """Return milliseconds of a step for each way, one sample per turn.

        The order is random in each turn, since caches and memory depend on what ran before.
        """
        found: dict[str, list[float]] = {name: [] for name in self.programs}
        programs = list(self.programs.items())
        for turn in range(turns):
            for name, (program, given, count) in random.Random(turn).sample(
                programs, len(programs)
            ):
                start = time.perf_counter()
                jax.block_until_ready(program(*given))
                found[name].append(1e3 * (time.perf_counter() - start) / count)
        return found


def main(given: list[str] | None = None) -> int:
    """Measure; return the exit status, 2 for a user error."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = arguments.Parser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("--models", nargs="+", default=("segnet_basic",), metavar="NAME")
    add("--options", nargs="+", default=(), metavar="[NAME.]OPTION=VALUE")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--batch", type=arguments.count, default=4, metavar="N", help="(default: 4)")
    add("--resolution", type=arguments.size, default=(96, 128), metavar="HxW")
    add("--turns", type=arguments.count, default=5, metavar="N", help="(default: 5)")
    add("--output", type=Path, required=True, metavar="FILE.jsonl")
    given = sys.argv[1:] if given is None else given
    try:
        options = parser.parse_args(given)
        plan = run.Plan(
            models=tuple(options.models),
            options=run.read_options(options.options),
            resolution=options.resolution,
            batches=(options.batch,),
            precisions=(options.precision,),
        )
        run.check(plan)
        command = shlex.join(["python", "experiments/speed/levers.py", *given])
        for network in plan.networks():
            _measure(network, options, command)
    except (UserError, OSError) as error:
        sys.stderr.write(f"levers.py: {error}\n")
        return 2
    return 0


def _measure(network, options, command):
    bench = Lever()
    about = bench.network(None, **network)
    planned, samples = bench.place(options.batch), bench.samples(options.turns)
    setting = {key: network[key] for key in ("model", "model_options", "resolution", "precision")}
    row = {
        "schema": timings.SCHEMA,
        "kind": "levers",
        "command": command,
        "setting": setting | {"batch": options.batch, "dataset": "random", "placement": "stream"},
        "unit": "ms",
        "samples": samples,
        "bytes": planned,
        **results.provenance(about["device"]),
    }
    timings.append(options.output, row)
    for name in samples:
        part, size = timings.ratio(row, name, "plain"), (planned[name] or 0) / 1e6
        sys.stdout.write(f"{network['model']} {name}: {part:.2f} of plain, {size:.0f} MB\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
