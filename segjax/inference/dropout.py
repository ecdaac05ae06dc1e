"""Monte Carlo dropout: mean and variance of the predictions with dropout kept on.

Kendall, Badrinarayanan, Cipolla, arXiv 1511.02680 (Bayesian SegNet): each sample is a network drawn
from the approximate posterior; the mean of the samples is the prediction, their variance its
uncertainty. Any network with dropout can be sampled. Batch normalization uses running statistics.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.data import loader
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.models.layers import Dropout
from segjax.runs.experiment import Experiment
from segjax.training import steps


class NoDropoutError(UserError):
    """The samples of a network would all be the same."""


class Moments(NamedTuple):
    """Mean and variance of the sampled probabilities of each class: float32 (B, H, W, K) both."""

    mean: jax.Array | np.ndarray
    variance: jax.Array | np.ndarray  # of the samples, divided by T, not T - 1


def sample(
    model: nn.Module, variables: Any, image: jax.Array, keys: jax.Array, samples: int
) -> Moments:
    """Return mean and variance of the softmax over samples of the network with dropout on.

    Args:
      model: network with dropout layers.
      variables: of the model.
      image: (B, H, W, C), normalized.
      keys: (B,), one per image; its samples depend on this key only, not on the batch.
      samples: number T of samples.

    Raises:
      NoDropoutError: the model has no dropout.
    """
    dropping = []

    def drop(call, args, kwargs, context):
        layer = context.module
        # The active clone created below is intercepted too.
        if not isinstance(layer, nn.Dropout) or layer.deterministic is False:
            return call(*args, **kwargs)
        dropping.append(layer.rate > 0)
        # The key is the image's own, so its index among the devices' images must not matter.
        alone = {"axis_name": None} if isinstance(layer, Dropout) else {}
        active = layer.clone(deterministic=False, parent=None, name=None, **alone)
        return active.apply({}, args[0], rng=layer.make_rng(layer.rng_collection))

    def one(image, key):
        with nn.intercept_methods(drop):
            logits = model.apply(variables, image[None], train=False, rngs={"dropout": key})
        return jax.nn.softmax(logits[0])

    def body(moments, number):
        drawn = jax.vmap(one)(image, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))
        count = (number + 1).astype(jnp.float32)
        # Welford's algorithm: E[x^2] - E[x]^2 would cancel.
        mean = moments.mean + (drawn - moments.mean) / count
        squares = (drawn - moments.mean) * (drawn - mean)
        return Moments(mean, moments.variance + (squares - moments.variance) / count), ()

    zeros = jnp.zeros((*image.shape[:3], model.num_classes))
    numbers = jnp.arange(samples, dtype=jnp.int32)
    moments, _ = steps.scan(body, Moments(zeros, zeros), numbers, samples)
    if not any(dropping):
        name = type(model).__name__
        raise NoDropoutError(f"{name} has no dropout, so all its samples are the same")
    return moments


def confidence(moments: Moments) -> np.ndarray:
    """Return the mean probability of the most likely class: (..., H, W), from 1 / K to 1."""
    return np.asarray(moments.mean).max(-1)


def deviation(moments: Moments) -> np.ndarray:
    """Return the deviation of the most likely class's probability: (..., H, W), 0 to 1 / 2."""
    likely = np.asarray(moments.mean).argmax(-1)[..., None]
    return np.sqrt(np.take_along_axis(np.asarray(moments.variance), likely, -1)[..., 0])


def moments(experiment: Experiment, samples: int) -> outputs.Output:
    """Return means and variances, concatenated along the last axis: (B, H, W, 2 K).

    The samples of an image depend on the seed of the experiment and the index of the image.
    """
    key = loader.key(experiment.config.seed, loader.SAMPLING)

    def output(variables, image, places):
        image = loader.normalize(image, experiment.config.data.normalization, experiment.info)
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        return jnp.concatenate(sample(experiment.model, variables, image, keys, samples), -1)

    return output


def probabilities(experiment: Experiment, samples: int) -> outputs.Output:
    """Return the mean of the sampled probabilities."""
    both = moments(experiment, samples)
    return lambda variables, image, places: jnp.split(both(variables, image, places), 2, -1)[0]
