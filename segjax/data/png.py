"""PNG files of 8 bits, grey or RGB, as arrays and back, without Pillow.

TensorStore, which Orbax brings, decodes them; so a machine with nothing but what training needs can
prepare and read the data sets.
"""

import struct
import zlib

import numpy as np
import tensorstore

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">4x4sIIBB")  # after the signature: IHDR, width, height, depth, colour
# By bits and type of colour, as Pillow calls them.
_MODES = {(8, 0): "L", (8, 2): "RGB", (8, 3): "P", (8, 4): "LA", (8, 6): "RGBA", (1, 0): "1"}
_COLOURS = {1: 0, 3: 2}  # by channels


def header(data: bytes) -> tuple[int, int, str]:
    """Height, width and mode (`L`, `RGB`, or that of a PNG of another kind) of a file.

    Raises:
        ValueError: it is not a PNG.
    """
    if len(data) < 26 or not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG")
    kind, width, height, bits, colour = _HEADER.unpack_from(data, len(_SIGNATURE))
    if kind != b"IHDR":
        raise ValueError("not a PNG")
    return height, width, _MODES.get((bits, colour), f"of {bits} bits")


def decode(data: bytes) -> np.ndarray:
    """The pixels: uint8 (H, W) of a grey file, (H, W, C) of another.

    Raises:
        ValueError: it is damaged.
    """
    context = tensorstore.Context()
    store = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    store["image"] = data
    spec = {"driver": "png", "kvstore": {"driver": "memory", "path": "image"}}
    try:
        pixels = tensorstore.open(spec, context=context).result().read().result()
    except ValueError as error:
        raise ValueError("a PNG that is damaged") from error
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def encode(array: np.ndarray) -> bytes:
    """An image, uint8 (H, W, 3) or grey (H, W), or a label, uint8 (H, W), as the bytes of a PNG."""
    height, width = array.shape[:2]
    colour = _COLOURS[array.shape[2] if array.ndim == 3 else 1]
    rows = array.reshape(height, -1)
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    return (
        _SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(unfiltered.tobytes()))
        + chunk(b"IEND", b"")
    )
