"""Monte Carlo dropout: what a network that keeps dropping units says, sample after sample.

Kendall, Badrinarayanan, Cipolla, arXiv 1511.02680 (Bayesian SegNet): each sample is a network drawn
from the posterior; their mean is the prediction, and their variance its uncertainty. Any network
with dropout can be sampled. Batch normalisation keeps to its running statistics.
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
from segjax.runs.experiment import Experiment
from segjax.training import steps


class Estimate(NamedTuple):
    """Of the samples' probabilities, by pixel and class: float32 (B, H, W, K) both."""

    mean: jax.Array
    variance: jax.Array  # divided by the samples and not by one less


def sample(
    model: nn.Module, variables: Any, image: jax.Array, keys: jax.Array, samples: int
) -> Estimate:
    """Mean and variance of the softmax of `samples` networks with units dropped.

    Args:
      model: with dropout somewhere.
      variables: of the model.
      image: (B, H, W, C), normalised.
      keys: (B,), one for each image, from which its samples alone follow: the same in any batch.
      samples: how many, T.

    Raises:
      UserError: the model drops nothing.
    """
    dropping = []

    def drop(call, args, kwargs, context):
        layer = context.module
        # One that is active already is the one made below, which is intercepted in its turn.
        if not isinstance(layer, nn.Dropout) or layer.deterministic is False:
            return call(*args, **kwargs)
        dropping.append(layer.rate > 0)
        active = layer.clone(deterministic=False, parent=None, name=None)
        return active.apply({}, args[0], rng=layer.make_rng(layer.rng_collection))

    def one(image, key):
        with nn.intercept_methods(drop):
            logits = model.apply(variables, image[None], train=False, rngs={"dropout": key})
        return jax.nn.softmax(logits[0])

    def body(estimate, number):
        drawn = jax.vmap(one)(image, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))
        count = (number + 1).astype(jnp.float32)
        # Welford's: to subtract the square of the mean from the mean of the squares loses digits.
        mean = estimate.mean + (drawn - estimate.mean) / count
        squares = (drawn - estimate.mean) * (drawn - mean)
        return Estimate(mean, estimate.variance + (squares - estimate.variance) / count), ()

    zeros = jnp.zeros((*image.shape[:3], model.num_classes))
    numbers = jnp.arange(samples, dtype=jnp.int32)
    estimate, _ = steps.scan(body, Estimate(zeros, zeros), numbers, samples)
    if not any(dropping):
        raise UserError(f"{type(model).__name__} has no dropout, so all its samples are the same")
    return estimate


def confidence(estimate: Estimate) -> jax.Array:
    """The mean probability of the most likely class: (B, H, W), from 1 / K to 1."""
    return jnp.max(estimate.mean, -1)


def deviation(estimate: Estimate) -> jax.Array:
    """The standard deviation of the probability of the most likely class: (B, H, W), 0 to 1 / 2."""
    likely = jnp.argmax(estimate.mean, -1)[..., None]
    return jnp.sqrt(jnp.take_along_axis(estimate.variance, likely, -1)[..., 0])


def estimates(experiment: Experiment, samples: int) -> outputs.Output:
    """Means and variances, one after the other in the last axis: (B, H, W, 2 K).

    The samples of an image follow from the experiment's seed and the image's place.
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
    """f(variables, images) -> labels and, of the class likeliest by the mean, how sure it is.

    Of images uint8 (B, H, W, C), labels are uint8 (B, H, W), confidence and deviation float32.

    Args:
      experiment: whose network is sampled.
      samples: how many.
      size: of the images the network sees, height and width in pixels; none: their own.
      refine: what is done to the mean probabilities before the labels are decided.
    """
    output = outputs.resized(estimates(experiment, samples), size)

    @jax.jit
    def estimate(variables, raw):
        places = jnp.arange(raw.shape[0], dtype=jnp.int32)
        both = output(variables, raw.astype(jnp.float32) / 255, places)
        found = Estimate(*jnp.split(both, 2, -1))
        return found.mean, confidence(found), deviation(found)

    def predict(variables, images):
        mean, *maps = map(np.asarray, estimate(variables, images))
        if refine:
            mean = np.stack([refine(*each) for each in zip(images, mean, strict=True)])
        return mean.argmax(-1).astype(np.uint8), *maps

    return predict


def probabilities(experiment: Experiment, samples: int) -> outputs.Output:
    """The mean of the samples' probabilities."""
    both = estimates(experiment, samples)

    def output(variables, image, places):
        return jnp.split(both(variables, image, places), 2, -1)[0]

    return output
