"""Monte Carlo dropout: mean and variance of the predictions with dropout kept on.

Kendall, Badrinarayanan, Cipolla, arXiv 1511.02680 (Bayesian SegNet): each sample is a network drawn
from the approximate posterior; the mean of the samples is the prediction, their variance its
uncertainty. Any network with dropout can be sampled. Batch normalization uses running statistics.
"""

from collections.abc import Callable
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


class Moments(NamedTuple):
    """Mean and variance of the sampled probabilities of each class: float32 (B, H, W, K) both."""

    mean: jax.Array
    variance: jax.Array  # of the samples, divided by T, not T - 1


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
      UserError: the model has no dropout.
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
        raise UserError(f"{type(model).__name__} has no dropout, so all its samples are the same")
    return moments


def confidence(moments: Moments) -> jax.Array:
    """Return the mean probability of the most likely class: (B, H, W), from 1 / K to 1."""
    return jnp.max(moments.mean, -1)


def deviation(moments: Moments) -> jax.Array:
    """Return the deviation of the most likely class's probability: (B, H, W), from 0 to 1 / 2."""
    likely = jnp.argmax(moments.mean, -1)[..., None]
    return jnp.sqrt(jnp.take_along_axis(moments.variance, likely, -1)[..., 0])


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


def build_predictor(
    experiment: Experiment,
    samples: int,
    size: tuple[int, int] | None = None,
    refine: outputs.Refine | None = None,
) -> Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return f(variables, images uint8 (B, H, W, C)) -> labels, confidence, deviation.

    Labels are uint8 (B, H, W); the confidence in them and its deviation are float32 (B, H, W).

    Args:
      experiment: owner of the network.
      samples: number of samples.
      size: height and width in pixels to resize images to; None: they keep their size.
      refine: applied to the mean probabilities before the labels are decided.

    The function raises a UserError for images that `outputs.check_images` refuses.
    """
    output = outputs.sized(experiment, moments(experiment, samples), size)

    @jax.jit
    def estimate(variables, raw):
        places = jnp.arange(raw.shape[0], dtype=jnp.int32)
        both = output(variables, raw.astype(jnp.float32) / 255, places)
        found = Moments(*jnp.split(both, 2, -1))
        return found.mean, confidence(found), deviation(found)

    def predict(variables, images):
        outputs.check_images(images, len(experiment.info.mean))
        mean, *maps = map(np.asarray, estimate(variables, images))
        if refine:
            mean = np.stack([refine(*each) for each in zip(images, mean, strict=True)])
        return mean.argmax(-1).astype(np.uint8), *maps

    return predict


def probabilities(experiment: Experiment, samples: int) -> outputs.Output:
    """Return the mean of the sampled probabilities."""
    both = moments(experiment, samples)

    def output(variables, image, places):
        return jnp.split(both(variables, image, places), 2, -1)[0]

    return output
