"""Logits, probabilities and labels of a network or an ensemble.

An `Output` runs on the device, inside the jitted or pmapped step; a `Refine` then works on the
probabilities of one image at a time, on the host.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import loader
from segjax.errors import UserError
from segjax.runs.experiment import Experiment

# f(variables, image, places) -> float32 (B, H, W, K): logits or probabilities, the class of a
# pixel being the greatest. The image is float32 (B, H, W, 3) RGB in [0, 1], not yet normalized;
# places, int32 (B,), are the indices of the images in their split or list, whatever the batch size:
# random numbers are drawn for each image from its index.
Output = Callable[[Any, jax.Array, jax.Array], jax.Array]

# f(image uint8 (H, W, 3), probabilities float32 (H, W, K)) -> probabilities float32 (H, W, K)
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]

# f(variables, images uint8 (B, H, W, C)) -> labels uint8 (B, H, W)
Predictor = Callable[[dict[str, Any], np.ndarray], np.ndarray]


def logits(experiment: Experiment) -> Output:
    """Return the logits of the network."""

    def output(variables, image, places):
        del places
        image = loader.normalize(image, experiment.config.data.normalization, experiment.info)
        return experiment.model.apply(variables, image, train=False)

    return output


def probabilities(experiment: Experiment) -> Output:
    """Return the softmax of the logits."""
    network = logits(experiment)
    return lambda variables, image, places: jax.nn.softmax(network(variables, image, places))


def mean(members: Sequence[Output]) -> Output:
    """Return the mean of an ensemble.

    Args:
      members: give probabilities; the variables of the result are a tuple, one entry a member.
    """

    def output(variables, image, places):
        outputs = [
            member(own, image, places) for member, own in zip(members, variables, strict=True)
        ]
        return sum(outputs[1:], outputs[0]) / len(outputs)

    return output


def check_images(images: Any, channels: int) -> None:
    """Check the images given to a predictor, which divides them by 255.

    Raises:
      UserError: they are not an array of uint8 (B, H, W, channels) with at least one pixel.
    """
    shape: tuple[int, ...] = tuple(getattr(images, "shape", ()))
    dtype = getattr(images, "dtype", type(images).__name__)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != channels or 0 in shape:
        raise UserError(
            f"images of shape {shape} and type {dtype}, expected uint8 (B, H, W, {channels})"
        )


def build_predictor(
    experiment: Experiment, output: Output | None = None, refine: Refine | None = None
) -> Predictor:
    """Return a function that predicts the most likely class of each pixel of images of one size.

    Args:
      experiment: owner of the network.
      output: values whose greatest is the class; None: the logits of the network.
      refine: applied to the output, which then must be probabilities.

    The function raises a UserError for images that `check_images` refuses.
    """
    output = output or logits(experiment)

    @jax.jit
    def values(variables, raw):
        places = jnp.arange(raw.shape[0], dtype=jnp.int32)
        values = output(variables, raw.astype(jnp.float32) / 255, places)
        return values if refine else jnp.argmax(values, -1).astype(jnp.uint8)

    def predict(variables, images):
        check_images(images, len(experiment.info.mean))
        result = np.asarray(values(variables, images))
        if refine is None:
            return result
        refined = [refine(*each) for each in zip(images, result, strict=True)]
        return np.stack([values.argmax(-1).astype(np.uint8) for values in refined])

    return predict
