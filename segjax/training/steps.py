"""The pure steps of training, evaluation and batch-normalization statistics.

A training step is a function of the state alone, because the batch follows from (seed, step). Each
step takes the name of the axis that it may be mapped over; `training.parallel` maps it.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from segjax.data import loader
from segjax.data.augment import Example
from segjax.data.datasets import DatasetInfo
from segjax.errors import UserError
from segjax.metrics import confusion_matrix
from segjax.training import losses, parallel

# {"params": ..., "batch_stats": ...}, the latter only with batch normalization.
Variables = dict[str, Any]


@struct.dataclass
class TrainState:
    """Everything that training changes."""

    step: jax.Array  # int32, steps done
    variables: Variables
    opt_state: optax.OptState
    ema: Variables  # variables averaged with decay min(ema_decay, (1 + step) / (10 + step)), or {}

    def evaluated(self) -> Variables:
        """Return the variables to validate and test: the averaged ones if there are any."""
        return self.ema or self.variables


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    channels: int = 3,
) -> TrainState:
    """Return the state before the first step, from the config's seed, for images of C channels.

    Raises:
      UserError: the logits of the model do not have the size of the image and K channels.
    """
    # On a CPU, optimizing the program takes many times longer than its one call. XLA_FLAGS may say
    # another level.
    level = "xla_backend_optimization_level"
    is_given = level in os.environ.get("XLA_FLAGS", "")
    options = {level: 1} if jax.default_backend() == "cpu" and not is_given else None
    init = jax.jit(_init(model, optimizer, config, channels), compiler_options=options)
    return init(loader.key(config.seed, loader.INITIALIZATION))


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    channels: int = 3,
) -> TrainState:
    """Return the shapes and dtypes of the state without computing it."""
    return jax.eval_shape(_init(model, optimizer, config, channels), jax.random.key(0))


def _init(model, optimizer, config, channels):
    def init(seed_key):
        # train=False needs no axis of devices. Of the logits only the shape is used, so the
        # compiler removes the network at any resolution.
        image = jnp.zeros((1, *config.data.resolution, channels))
        logits, variables = model.init_with_output(seed_key, image, train=False)
        expected = (*image.shape[:3], model.num_classes)
        found = getattr(logits, "shape", type(logits).__name__)
        if found != expected:
            raise UserError(
                f"model {config.model.name} gives {found} for images of {image.shape}, expected "
                f"logits of {expected}"
            )
        ema = jax.tree.map(jnp.copy, variables) if config.ema_decay else {}
        opt_state = optimizer.init(variables["params"])
        return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, ema)

    return init


def build_train_steps(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    info: DatasetInfo,
    class_weights: jax.Array,
    *,
    num_steps: int,
    resident: bool,
    axis_name: str | None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Build a function that runs `num_steps` training steps.

    Returns:
      f(state, (seed, data), batches) -> (state, metrics). The seed, uint32, is an argument, so that
      runs that differ in it alone share a compiled program. If the dataset is `resident`, `data` is
      the whole dataset, uint8, and `batches` is empty; else `data` is empty and `batches` has this
      device's share of each step's raw batch, (num_steps, share, H, W, ...). The metrics are
      (num_steps,) arrays: loss, global_accuracy (of the augmented batch, before the step) and
      gradient_norm.
    """

    def train_steps(state, shared, batches):
        seed, data = shared
        share = config.batch_size // parallel.size(axis_name)
        first = parallel.index(axis_name) * share

        def body(state, raw):
            if resident:
                count = data["label"].shape[0]
                order = loader.batch_indices(seed, state.step, count, config.batch_size)
                mine = jax.lax.dynamic_slice_in_dim(order, first, share)
                raw = jax.tree.map(lambda x: x[mine], data)
            batch = loader.training_batch(raw, seed, state.step, first, config, info)
            if config.data.patches:
                batch = loader.patch_batch(
                    batch, seed, state.step, first, config.data.patches, model.patch_size
                )
            return train_step(
                state,
                batch,
                model,
                optimizer,
                config,
                class_weights,
                seed=seed,
                axis_name=axis_name,
            )

        return scan(body, state, batches, num_steps)

    return train_steps


def train_step(
    state: TrainState,
    batch: Example,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    class_weights: jax.Array,
    *,
    seed: loader.Seed,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step on a device's share of the batch.

    The loss is the sum over all devices and micro-batches divided by their `losses.num_terms`, so
    it does not depend on their number. Of M micro-batches, number m has the images whose index in
    the batch of all devices is m modulo M. Batch normalization sees one of them, of all devices, at
    a time. So neither its statistics nor the masks of dropout depend on the number of devices.
    """
    num_classes, parts, labels = class_weights.shape[0], config.micro_batches, batch["label"]
    # At least one of the whole batch, where a device's own share may have none. Divided by the
    # number of devices, because pmean of the gradients below divides by it as well.
    valid, normalizer = (
        jnp.maximum(terms, 1.0) / parallel.size(axis_name)
        for terms in parallel.psum(
            (
                losses.num_valid(labels, num_classes),
                losses.num_terms(config.loss.name, labels, num_classes),
            ),
            axis_name,
        )
    )
    dropout = jax.random.fold_in(loader.key(seed, loader.DROPOUT), state.step)

    def loss_of(params, batch_stats, part, dropout_key):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            part["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = losses.loss(
            config.loss.name,
            logits,
            part["label"],
            class_weights,
            pixel_weights=part.get("weight"),
            normalizer=normalizer,
        )
        hits = jnp.sum(jnp.argmax(logits, -1) == part["label"].astype(jnp.int32))
        return loss, (updated.get("batch_stats", {}), hits.astype(jnp.float32))

    params = state.variables["params"]
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(carry, inputs):
        batch_stats, sums = carry
        (loss, (batch_stats, hits)), gradients = gradient_of(params, batch_stats, *inputs)
        return (batch_stats, jax.tree.map(jnp.add, sums, (gradients, loss, hits))), None

    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(()))
    micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(dropout, parts)
    (batch_stats, sums), _ = scan(
        accumulate, (state.variables.get("batch_stats", {}), zeros), (micro, keys), parts
    )
    gradients, loss, hits = parallel.pmean(sums, axis_name)

    # optax raises a float to an integer power, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    variables = {**state.variables, "params": optax.apply_updates(params, updates)}
    if batch_stats:
        variables["batch_stats"] = batch_stats
    ema = state.ema
    if ema:
        # Warmed up: a constant decay would keep the random weights of the start for 1 / (1 - decay)
        # steps, which a short run does not have.
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + done) / (10 + done))
        ema = optax.incremental_update(variables, ema, 1 - decay)
    metrics = {
        "loss": loss,
        "global_accuracy": hits / valid,
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, variables, opt_state, ema), metrics


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any, length: int
) -> tuple[Any, Any]:
    """Scan as `lax.scan`, but unrolled on a CPU, where loops run convolutions far slower."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, inputs, length=length)
    outputs = []
    for k in range(length):
        carry, output = body(carry, jax.tree.map(lambda x, k=k: x[k], inputs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def build_eval_step(
    output: Callable[..., jax.Array], num_classes: int, *, axis_name: str | None
) -> Callable[[Any, Any], tuple[jax.Array, jax.Array]]:
    """Build f(variables, raw) -> (counts, classes) of the batch of all devices.

    `classes`, uint8 (B, H, W), is the argmax of an `inference.Output`; `counts` is the confusion
    matrix of each image, int32 (B, K, K).
    """

    def eval_step(variables, raw):
        image = raw["image"].astype(jnp.float32) / 255
        classes = jnp.argmax(output(variables, image, raw["place"]), -1).astype(jnp.uint8)
        count = functools.partial(confusion_matrix, num_classes=num_classes)
        counts = jax.vmap(count)(raw["label"], classes)
        return parallel.gather((counts, classes), axis_name)

    return eval_step


def build_statistics_step(
    model: nn.Module, config: ConfigDict, info: DatasetInfo, *, axis_name: str | None
) -> Callable[[Variables, Variables, Any], Variables]:
    """Build f(sums, variables, raw) -> sums + (1 - momentum) x the batch's statistics."""

    def statistics_step(sums, variables, raw):
        image = loader.normalize(
            raw["image"].astype(jnp.float32) / 255, config.data.normalization, info
        )
        # From running averages of zero, an update leaves (1 - momentum) times the batch's.
        zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        _, updated = model.apply(
            {"params": variables["params"], "batch_stats": zeros},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": loader.key(config.seed, loader.DROPOUT)},
        )
        return jax.tree.map(jnp.add, sums, updated["batch_stats"])

    return statistics_step
