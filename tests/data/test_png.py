"""PNG files without Pillow, which here says what they hold."""

import io

import numpy as np
import pytest
from PIL import Image

from segjax.data import png

SHAPES = [(1, 1), (7, 5), (36, 48, 3), (5, 9, 3)]


def noise(shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def by_pillow(array, mode=None, **options):
    content = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(content, "PNG", **options)
    return content.getvalue()


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_that_pillow_reads_and_writes(shape):
    pixels = noise(shape)
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    # A ramp has Pillow choose filters between the rows.
    for array in (pixels, np.sort(pixels, axis=0)):
        data = by_pillow(array)
        assert png.header(data) == (*shape[:2], "RGB" if len(shape) == 3 else "L")
        np.testing.assert_array_equal(png.decode(data), array)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_kinds_have_pillows_names(mode):
    options = {"bits": 8} if mode == "P" else {}
    assert png.header(by_pillow(noise((4, 6, 3)), mode, **options)) == (4, 6, mode)


def test_what_is_damaged_is_an_error():
    data = png.encode(noise((36, 48, 3)))
    for broken in (b"", b"<html>" * 10, data[:12]):
        with pytest.raises(ValueError, match="not a PNG"):
            png.header(broken)
    with pytest.raises(ValueError, match="damaged"):
        png.decode(data[: len(data) // 2])
