"""Test-time augmentation: the mean prediction over scaled and mirrored copies of an image."""

import dataclasses

import jax

from segjax.inference import outputs


@dataclasses.dataclass(frozen=True)
class Transforms:
    """Copies of an image to predict: one for each scale, with `flip` also its mirror image."""

    scales: tuple[float, ...] = (1.0,)  # factors of height and width
    flip: bool = False  # left and right

    def __str__(self) -> str:
        alone = self.flip and self.scales == (1.0,)
        scales = [] if alone else ["scales", *(f"{scale:g}" for scale in self.scales)]
        return " ".join([*scales, *["flip"] * self.flip])


def average(output: outputs.Output, transforms: Transforms) -> outputs.Output:
    """Return the mean of an output over the transforms of an image, each transformed back.

    Resizing is bilinear and rounds to whole pixels.

    Args:
      output: gives probabilities.
      transforms: applied to every image.
    """

    def at_scale(scale, variables, image, places):
        batch, *full, channels = image.shape
        size = [max(1, round(scale * side)) for side in full]
        if size != full:
            image = jax.image.resize(image, (batch, *size, channels), "linear")
        values = output(variables, image, places)
        if size != full:
            shape = (batch, *full, values.shape[-1])
            values = jax.image.resize(values, shape, "linear", antialias=False)
        return values

    def with_mirror(scale, variables, image, places):
        values = at_scale(scale, variables, image, places)
        if transforms.flip:
            mirrored = at_scale(scale, variables, image[:, :, ::-1], places)
            values = (values + mirrored[:, :, ::-1]) / 2
        return values

    def mean_output(variables, image, places):
        each = [with_mirror(scale, variables, image, places) for scale in transforms.scales]
        return sum(each[1:], each[0]) / len(each)

    return mean_output
