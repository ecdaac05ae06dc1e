"""Test-time augmentation: the mean prediction over scaled and mirrored copies of an image."""

import dataclasses

from segjax.inference import outputs


@dataclasses.dataclass(frozen=True)
class Transforms:
    """Copies of an image to predict: one for each scale, with `flip` also its mirror image."""

    scales: tuple[float, ...] = (1.0,)  # factors of height and width
    flip: bool = False  # left and right

    def __str__(self) -> str:
        scales = [f"{scale:g}" for scale in self.scales]
        return " ".join([*scales, *["mirrored"] * self.flip])


def average(output: outputs.Output, transforms: Transforms) -> outputs.Output:
    """Return the mean of an output over the transforms of an image, each transformed back.

    Resizing is bilinear and rounds to whole pixels.

    Args:
      output: gives probabilities.
      transforms: applied to every image.
    """

    def output_at(scale, variables, image, places):
        size = tuple(max(1, round(scale * side)) for side in image.shape[1:3])
        resized = outputs.resized(output, None if size == image.shape[1:3] else size)
        values = resized(variables, image, places)
        if transforms.flip:
            mirrored = resized(variables, image[:, :, ::-1], places)
            values = (values + mirrored[:, :, ::-1]) / 2
        return values

    def mean_output(variables, image, places):
        each = [output_at(scale, variables, image, places) for scale in transforms.scales]
        return sum(each[1:], each[0]) / len(each)

    return mean_output
