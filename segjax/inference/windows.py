"""The output of a network for an image of any size: of the whole image, or of windows over it.

An output of (H, W, K) may be larger than the memory, so it comes in strips from top to bottom; what
a strip is used for is done before the next. Every shape of a network's input is compiled once, and
nothing else is compiled: windows have one shape for all images that are as large, and outputs are
resized on the host. Images are never padded, but for `data.fit=letterbox` as in training: padding
would change what a network says near it, and with it every score.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from segjax.data import fitting, images
from segjax.data.source import fill_color
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.runs.experiment import Experiment

Size = tuple[int, int]  # height and width, pixels

# f(variables, image uint8 (H, W, C), place) -> strips of the output, float32 (rows, W, K), from the
# top of the image to its bottom. The place is that of `outputs.Output`.
Strips = Callable[[Any, np.ndarray, int], Iterator[np.ndarray]]

ROWS = 256  # of a strip of a resized output


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that slide over an image at its own size."""

    size: Size
    overlap: float = 0.5  # least share of a side that neighbors have in common, in [0, 1)

    def __str__(self) -> str:
        return f"window {self.size[0]}x{self.size[1]} overlap {self.overlap:g}"


# How an image is shown to a network: `resolution`, as training fits it to its resolution
# (`data.fit`; with `crop` all of it is shown); `aspect`, the same, but with `resize` it keeps its
# aspect ratio at the height of training; `native`, at its own size; or by windows.
Fit = str | Windows


def choose_fit(
    *,
    native: bool = False,
    squash: bool = False,
    window: Size | None = None,
    overlap: float | None = None,
) -> Fit:
    """Return the fit of the options of `segjax predict`.

    Raises:
      UserError: two of them contradict each other, or the window or its overlap is impossible.
    """
    if native + squash + (window is not None) > 1:
        raise UserError("native, squash and window exclude each other, expected one of them")
    if window is None:
        if overlap is not None:
            raise UserError("overlap is that of windows, expected a window too")
        return "native" if native else "resolution" if squash else "aspect"
    if len(window) != 2 or any(type(side) is not int or side < 1 for side in window):
        raise UserError(f"window {window!r}, expected (height, width) in whole pixels")
    overlap = Windows.overlap if overlap is None else overlap
    if not 0 <= overlap < 1:
        raise UserError(f"overlap {overlap:g}, expected at least 0 and less than 1")
    return Windows((window[0], window[1]), float(overlap))


def require_squash(experiment: Experiment) -> None:
    """Raise a UserError if squashing would change nothing, as training has squashed no image."""
    fit = experiment.config.data.fit
    if fit != "resize":
        raise UserError(f"squash has no effect on a run with data.fit={fit!r}")


def build_strips(experiment: Experiment, output: outputs.Output, fit: Fit) -> Strips:
    """Return the function that gives the output of an image of any size in strips."""
    if isinstance(fit, Windows):
        return sliding(output, fit)
    data, color = experiment.config.data, fill_color(experiment.info.mean)
    resolution = tuple(data.resolution)
    network = _compiled(output)

    def strips(variables, image, place):
        shape = image.shape[:2]
        size = fitting.scaled_size(shape, resolution, data.fit)
        if fit == "native":
            size = shape
        elif fit == "aspect" and data.fit == "resize":
            size = resolution[0], max(1, round(shape[1] * resolution[0] / shape[0]))
        shown = images.resize(image, size)
        if fit != "native" and data.fit == "letterbox":
            values = network(variables, fitting.centered(shown, resolution, color), place)
            values = fitting.centered(values, size, 0)
        else:
            values = network(variables, shown, place)
        return resize(values, shape)

    return strips


def _compiled(output):
    """Return f(variables, image uint8 (H, W, C), place) -> the output on the host, (H, W, K)."""

    @jax.jit
    def values(variables, raw, places):
        return output(variables, raw.astype(jnp.float32) / 255, places)[0]

    return lambda variables, image, place: np.asarray(
        values(variables, image[None], np.array([place], np.int32))
    )


def sliding(output: outputs.Output, windows: Windows) -> Strips:
    """Return the mean of the output over windows, weighted by a Gaussian, in strips.

    The standard deviation of the Gaussian is an eighth of the window, as in nnU-Net (Isensee et
    al., Nature Methods 2021). The windows are evenly spaced from border to border and cover every
    pixel. Along an axis on which the image is smaller, a window is as long as the image; so a
    window at least as large as the image gives the very output of the whole image.

    Memory holds the output of one window and a band, as high as a window and as wide as the image.
    """
    network = _compiled(output)

    def strips(variables, image, place):
        height, width = (min(pair) for pair in zip(windows.size, image.shape[:2], strict=True))
        tops = starts(image.shape[0], height, windows.overlap)
        lefts = starts(image.shape[1], width, windows.overlap)
        down = weights(tops, image.shape[0], height)
        across = weights(lefts, image.shape[1], width)

        band: Any = None  # its depth is known after the first window
        for top, following, row_weights in zip(
            tops, [*tops[1:], image.shape[0]], down, strict=True
        ):
            for left, column_weights in zip(lefts, across, strict=True):
                window = image[top : top + height, left : left + width]
                values = network(variables, window, place)
                if band is None:
                    band = np.zeros((height, image.shape[1], values.shape[-1]), np.float32)
                weight = row_weights[:, None] * column_weights
                band[:, left : left + width] += weight[..., None] * values
            done = following - top  # rows that no other window covers
            yield band[:done]
            band = np.concatenate([band[done:], np.zeros_like(band[:done])])

    return strips


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where the windows along an axis start: the fewest that overlap enough, even apart.

    Args:
      length: of the image.
      side: of the windows, at most the length.
      overlap: least share of the side that neighbors have in common.
    """
    stride = max(1, int(side * (1 - overlap)))
    number = 1 + -(-(length - side) // stride)
    return [k * (length - side) // max(number - 1, 1) for k in range(number)]


def weights(starts: list[int], length: int, side: int) -> np.ndarray:
    """Return the weights of windows along an axis, float32 (windows, side); at each pixel sum 1.

    The weights of a window are the products of those along its axes: as windows form a grid, so do
    the sums of their Gaussians. A pixel of a single window has a weight of exactly 1.
    """
    distance = (np.arange(side) - (side - 1) / 2) / (side / 8)
    gaussian = np.exp(-0.5 * distance**2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += gaussian
    return np.stack([gaussian / total[k : k + side] for k in starts]).astype(np.float32)


def resize(values: np.ndarray, size: Size) -> Iterator[np.ndarray]:
    """Resize an output as `ops.upsampling.bilinear` does, in strips.

    Args:
      values: float32 (h, w, K).
      size: H and W of the result.

    Yields:
      float32 (rows, W, K), H rows in all.
    """
    if values.shape[:2] == size:
        yield values
        return
    above, below, down = _neighbors(values.shape[0], size[0])
    left, right, across = _neighbors(values.shape[1], size[1])
    down, across = down[:, None, None], across[:, None]
    for top in range(0, size[0], ROWS):
        rows = slice(top, top + ROWS)
        strip = (1 - down[rows]) * values[above[rows]] + down[rows] * values[below[rows]]
        yield (1 - across) * strip[:, left] + across * strip[:, right]


def _neighbors(length, new):
    """Return the pixels before and after each new one, and the weight of the latter, float32."""
    place = np.clip((np.arange(new) + 0.5) * length / new - 0.5, 0, length - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (place - before).astype(np.float32)


def softmax(strips: Strips) -> Strips:
    """Return the softmax of logits, strip by strip."""
    return lambda variables, image, place: (
        special.softmax(strip, -1) for strip in strips(variables, image, place)
    )


def classes(strip: np.ndarray) -> np.ndarray:
    """Return the class of the greatest value: (rows, W, K) to uint8 (rows, W)."""
    return strip.argmax(-1).astype(np.uint8)
