"""What a network, or several, say about each pixel, before and after it is refined.

The seam between networks and the commands that use them: an `Output` runs on the device, inside
the jitted or pmapped step; a `Refine` takes one image's probabilities on from there, on the host.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import loader
from segjax.runs.experiment import Experiment

# f(variables, image, places) -> float32 (B, H, W, K): logits or probabilities, the class of a pixel
# being the greatest. The image is float32 (B, H, W, 3) RGB in [0, 1], not yet normalised; places,
# int32 (B,), are those of the images in their split or list, the same in batches of any size: what
# is random is drawn for each image from its own.
Output = Callable[[Any, jax.Array, jax.Array], jax.Array]

# f(image uint8 (H, W, 3), probabilities float32 (H, W, K)) -> probabilities float32 (H, W, K)
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]

Predictor = Callable[[dict[str, Any], np.ndarray], np.ndarray]


def logits(experiment: Experiment) -> Output:
    """The network's own output."""

    def output(variables, image, places):
        del places
        image = loader.normalize(image, experiment.config.data.normalization, experiment.info)
        return experiment.model.apply(variables, image, train=False)

    return output


def probabilities(experiment: Experiment) -> Output:
    """The softmax of the logits."""
    network = logits(experiment)
    return lambda variables, image, places: jax.nn.softmax(network(variables, image, places))


def resized(output: Output, size: tuple[int, int] | None) -> Output:
    """The output for images resized to (h, w), brought back to their own size, both bilinearly."""
    if size is None:
        return output

    def resize(variables, image, places):
        batch, height, width, channels = image.shape
        values = output(
            variables, jax.image.resize(image, (batch, *size, channels), "linear"), places
        )
        shape = (batch, height, width, values.shape[-1])
        return jax.image.resize(values, shape, "linear", antialias=False)

    return resize


def mean(members: Sequence[Output]) -> Output:
    """The mean of members that give probabilities; the variables are a tuple, one for each."""

    def output(variables, image, places):
        outputs = [
            member(own, image, places) for member, own in zip(members, variables, strict=True)
        ]
        return sum(outputs[1:], outputs[0]) / len(outputs)

    return output


@dataclasses.dataclass(frozen=True)
class Views:
    """How an image is shown to a network, several times, for the mean of what it says."""

    scales: tuple[float, ...] = (1.0,)  # factors of height and width
    flip: bool = False  # each also left and right

    def __str__(self) -> str:
        scales = [f"{scale:g}" for scale in self.scales]
        return " ".join([*scales, *["mirrored"] * self.flip])


def viewed(output: Output, views: Views) -> Output:
    """The mean, over the views of an image, of what `output` says of them, brought back.

    Resizing is bilinear and rounds to whole pixels; `output` is to give probabilities.
    """

    def output_of(scale, variables, image, places):
        size = tuple(max(1, round(scale * side)) for side in image.shape[1:3])
        at_scale = resized(output, None if size == image.shape[1:3] else size)
        values = at_scale(variables, image, places)
        if views.flip:
            mirrored = at_scale(variables, image[:, :, ::-1], places)
            values = (values + mirrored[:, :, ::-1]) / 2
        return values

    def mean_output(variables, image, places):
        each = [output_of(scale, variables, image, places) for scale in views.scales]
        return sum(each[1:], each[0]) / len(each)

    return mean_output


def build_predictor(
    experiment: Experiment,
    size: tuple[int, int] | None = None,
    output: Output | None = None,
    refine: Refine | None = None,
) -> Predictor:
    """f(variables, images uint8 (B, H, W, C)) -> labels uint8 (B, H, W), the most likely class.

    With a size (h, w) the output is made at that size, of the resized image, and brought back to
    the image's own bilinearly before the decision.

    Args:
      experiment: whose network is asked.
      size: height and width in pixels.
      output: whose greatest class is given; none: the logits of the experiment's own network.
      refine: what is done to the output, probabilities, before that.
    """
    sized = resized(output or logits(experiment), size)

    @jax.jit
    def values(variables, raw):
        places = jnp.arange(raw.shape[0], dtype=jnp.int32)
        values = sized(variables, raw.astype(jnp.float32) / 255, places)
        return values if refine else jnp.argmax(values, -1).astype(jnp.uint8)

    def predict(variables, images):
        result = np.asarray(values(variables, images))
        if refine is None:
            return result
        refined = [refine(*each) for each in zip(images, result, strict=True)]
        return np.stack([values.argmax(-1).astype(np.uint8) for values in refined])

    return predict
