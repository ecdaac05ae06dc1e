"""PNG files: pixels and label values come back as they were written."""

import re
import zlib

import numpy as np
import pytest
from PIL import Image

from segjax.data.builders import encode_png, read_png
from segjax.data.camvid import PALETTE
from segjax.errors import UserError

SHAPES = [(1, 1), (7, 5), (36, 48, 3), (5, 9, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_come_back(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "image.png"
    path.write_bytes(encode_png(pixels))
    found = read_png(path, "RGB" if len(shape) == 3 else "L", *shape[:2])
    np.testing.assert_array_equal(found, pixels, strict=True)


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("order", ["random", "ramp"])  # a ramp has Pillow filter the rows
def test_label_values_are_exact(mode, order, tmp_path):
    label = np.random.default_rng(0).integers(0, 12, (36, 48), np.uint8)
    label = np.sort(label, 0) if order == "ramp" else label
    image = Image.fromarray(label)
    if mode == "P":
        image.putpalette([value for color in (*PALETTE, (0, 0, 0)) for value in color])
    image.save(tmp_path / "label.png")
    found = read_png(tmp_path / "label.png", mode, 36, 48)
    np.testing.assert_array_equal(found, label, strict=True)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_the_error_for_another_mode_names_it(mode, tmp_path):
    path = tmp_path / "image.png"
    Image.new(mode, (6, 4)).save(path)
    for expected in {"L", "RGB", "P"} - {mode}:
        said = f"{path}: PNG of mode {mode}, expected {expected}"
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            read_png(path, expected, 4, 6)


def test_values_that_pillow_would_scale_are_refused(tmp_path):
    path = tmp_path / "label.png"
    data = bytearray(encode_png(np.zeros((4, 6), np.uint8)))
    data[24] = 4  # bits a pixel
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UserError, match="PNG of mode L;4, expected L"):
        read_png(path, "L", 4, 6)


@pytest.mark.parametrize("content", [b"", b"<html>" * 10, "header", "half"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "image.png"
    data = encode_png(np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8))
    path.write_bytes({"header": data[:12], "half": data[: len(data) // 2]}.get(content, content))
    with pytest.raises(UserError, match="cannot be read as an image") as error:
        read_png(path, "RGB", 36, 48)
    assert "\n" not in str(error.value)
