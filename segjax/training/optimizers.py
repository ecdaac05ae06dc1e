"""Optimizers and learning-rate schedules, built from optax."""

import fnmatch
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from segjax.errors import UserError

OPTIMIZERS = ("sgd", "rmsprop", "adam", "adamw")
SCHEDULES = ("constant", "step", "poly", "cosine")


def create_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, from the `optimizer` part of a config.

    The rate is multiplied by 1 (constant), step_factor^floor(t / step_every) (step),
    (1 - t / T)^power (poly) or (1 + cos(pi t / T)) / 2 (cosine), where t counts the T steps after
    the warm-up. In a warm-up of W steps, step k = 0, 1, ... has the rate times (k + 1) / (W + 1).

    Raises:
      UserError: the schedule is unknown.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    rest = max(steps - warmup, 1)
    if config.schedule == "constant":
        main = optax.constant_schedule(rate)
    elif config.schedule == "step":
        main = optax.exponential_decay(rate, config.step_every, config.step_factor, staircase=True)
    elif config.schedule == "poly":
        main = optax.polynomial_schedule(rate, 0.0, config.power, rest)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, rest)
    else:
        known = ", ".join(SCHEDULES)
        raise UserError(f"unknown optimizer.schedule {config.schedule!r}; known: {known}")
    if not warmup:
        return main
    rise = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optimizer of a config's `optimizer` part: sgd with momentum, rmsprop, adam, adamw.

    RMSprop is Lasagne's: g / sqrt(v + 1e-6), where v averages g^2 with decay 0.9 from zero.

    Weight decay w applies to kernels, not to biases and batch normalization. It is the L2 penalty
    w / 2 * |kernel|^2, whose gradient is added before the momentum, as in Caffe, except for adamw,
    where it is decoupled. The gradient is clipped first. The rates of parameters are
    those of `scaled`.

    Raises:
      UserError: the optimizer is unknown.
    """
    decay = config.weight_decay
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if decay and config.name != "adamw":
        parts.append(optax.add_decayed_weights(decay, mask=decayed))
    if config.name == "sgd":
        parts.append(optax.sgd(schedule, momentum=config.momentum or None))
    elif config.name == "rmsprop":
        parts.append(optax.rmsprop(schedule, decay=0.9, eps=1e-6))
    elif config.name == "adam":
        parts.append(optax.adam(schedule))
    elif config.name == "adamw":
        parts.append(optax.adamw(schedule, weight_decay=decay, mask=decayed))
    else:
        raise UserError(f"unknown optimizer.name {config.name!r}; known: {', '.join(OPTIMIZERS)}")
    return scaled(optax.chain(*parts), dict(config.rates))


def scaled(
    optimizer: optax.GradientTransformation, rates: Mapping[str, float]
) -> optax.GradientTransformation:
    """Return an optimizer whose learning rate has a factor for each parameter.

    The factor is the product over the patterns that match the parameter's path, 1 without one. A
    parameter of factor 0 keeps its bits: it has no weight decay, no share in the norm that is
    clipped, and no state of the optimizer.

    Args:
      optimizer: of all parameters.
      rates: {pattern: factor}; a `*` of a pattern also matches "/".

    Raises:
      UserError: by `init`; a pattern matches no parameter.
    """
    if not rates:
        return optimizer

    def factors(params):
        def factor(path, _):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return math.prod(x for each, x in rates.items() if fnmatch.fnmatchcase(name, each))

        return jax.tree.map_with_path(factor, params)

    trained = optax.masked(optimizer, lambda params: jax.tree.map(bool, factors(params)))

    def init(params):
        leaves = jax.tree.leaves_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        for pattern in rates:
            if not fnmatch.filter(names, pattern):
                raise UserError(
                    f"config field 'optimizer.rates.{pattern}' matches no parameter, expected the "
                    f"path of one such as {names[0]}"
                )
        return trained.init(params)

    def update(updates, state, params=None):
        updates, state = trained.update(updates, state, params)
        # Not +0, which would turn a parameter of -0 into +0.
        return jax.tree.map(
            lambda factor, x: factor * x if factor else jnp.full_like(x, -0.0),
            factors(updates),
            updates,
        ), state

    return optax.GradientTransformation(init, update)


def decayed(params: optax.Params) -> optax.Params:
    """Return a mask of the parameters that decay: True for kernels, False for all others."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
