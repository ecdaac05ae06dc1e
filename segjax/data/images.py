"""Read image files of many formats as 8-bit RGB or gray, and arrays of any number of channels.

What a file holds beyond 8-bit RGB or gray is converted only if its meaning is certain:

| content | result |
| --- | --- |
| several pages or frames | one image each; not the previews in a JPEG or TIFF file |
| orientation in EXIF | rotated and mirrored accordingly |
| 1 bit, palette, YCbCr | the colors shown, RGB or gray |
| RGB for a gray dataset | luma, ITU-R 601-2 |
| gray for an RGB dataset | three equal channels |
| alpha or a transparent color, all opaque | dropped |
| 16-bit gray, value v | (v + 128) // 257 |
| 16-bit RGB | the upper 8 bits |

The following are refused: transparent pixels, 16 bits whose greatest value fits 14 bits (probably
the range of a sensor), signed, 32-bit and floating-point values, and CMYK and other color spaces.

Images of other than 1 or 3 channels are NumPy arrays, uint8 (H, W, N) in a `.npy` file.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segjax.errors import UserError, one_line, warn

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

ARRAY = ".npy"  # suffix of a NumPy array

MOST_PIXELS = 5 * 10**8  # in an image; about 2 GB in memory

_EIGHT_BITS = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "LA", "La", "PA", "RGBA", "RGBa")
_SENSOR_BITS = 14  # most bits of values that may be stored in 16 bits without being scaled

# Value of the EXIF tag -> what shows the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF tags.
_SUBFILE, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 262, 339


class ImageError(UserError):
    """An image that cannot be read or predicted, while others may be."""


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files of FORMATS and arrays, in lower case with the dot."""
    known = Image.registered_extensions().items()
    return frozenset((ARRAY, *(suffix for suffix, name in known if name in FORMATS)))


def list_pages(path: Path) -> tuple[list[int], int]:
    """Return the numbers, from 0, of the pages or frames of a file, and its count of previews.

    Raises:
      ImageError: the file is not a readable image.
    """
    if path.suffix.lower() == ARRAY:
        return [0], 0
    with _opened(path) as image:
        count = getattr(image, "n_frames", 1)
        pages = list(range(count))
        if image.format == "MPO":  # a JPEG followed by smaller versions, or the other eye's view
            pages = [0]
        elif image.format == "TIFF":
            pages = [page for page in pages if not _is_preview(image, page)] or pages
        return pages, count - len(pages)


def _is_preview(image: Image.Image, page: int) -> bool:
    image.seek(page)
    return bool(image.tag_v2.get(_SUBFILE, 0) & 0b101)  # type: ignore[attr-defined]


def read_image(path: Path, channels: int, page: int = 0) -> np.ndarray:
    """Read an image, or a page of it, as uint8 (H, W, 3) RGB, (H, W, 1) gray, or (H, W, channels).

    Raises:
      ImageError: the file is not a readable image, its meaning is not certain, or it has other
        channels.
    """
    if path.suffix.lower() == ARRAY:
        pixels = read_array(path)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels:
            raise ImageError(
                f"image {path} has shape {pixels.shape} and dtype {pixels.dtype}, expected uint8 "
                f"(H, W, {channels})"
            )
        return pixels
    if channels not in (1, 3):
        raise ImageError(
            f"image {path} is not an array, expected uint8 (H, W, {channels}) in a {ARRAY} file, "
            f"as the images have {channels} channels"
        )
    with _opened(path, page) as image:
        image.seek(page)
        _check_size(image)  # pages of a TIFF may have different sizes
        is_wide = _has_16_bits(image)
        tags = getattr(image, "tag_v2", {})
        image.load()

        method = _UPRIGHT.get(_orientation(image, path))
        upright = image if method is None else image.transpose(method)

        if 2 in tags.get(_SAMPLE_FORMAT, ()):
            raise ValueError("it has signed integers, expected unsigned integers of 8 bits")
        if is_wide and "transparency" in image.info:
            raise ValueError("it has a transparent color, expected an opaque image")
        is_full = image.mode == "I" and image.format == "PPM"  # scaled to 16 bits
        if image.mode.startswith("I;16") or is_full:
            if tags.get(_PHOTOMETRIC) == 0:
                raise ValueError("it has 16 bits with 0 as white, expected 0 as black")
            values = np.asarray(upright).astype(np.uint32)
            _check_range(int(values.max()), 16)
            gray = ((values + 128) // 257).astype(np.uint8)
            return np.repeat(gray[..., None], channels, axis=-1)

        if image.mode not in _EIGHT_BITS:
            kinds = {"F": "floating-point values", "I": "32-bit integers"}
            found = kinds.get(image.mode, f"color space {image.mode}")
            raise ValueError(f"it has {found}, expected RGB or gray of 8 bits; convert it first")
        pixels = np.array(_opaque(upright).convert("L" if channels == 1 else "RGB"))
        if is_wide:
            _check_range(int(pixels.max()), 8)
        return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, C) to (height, width) as datasets do, bilinearly with antialiasing."""
    if image.shape[:2] == size:
        return image
    if image.shape[-1] != 3:  # channel by channel
        parts = [_resized(image[..., k], size) for k in range(image.shape[-1])]
        return np.stack(parts, -1)
    return _resized(image, size)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def read_array(path: Path) -> np.ndarray:
    """Read the array of a `.npy` file.

    Raises:
      ImageError: it cannot be read, or has no pixels or too many.
    """
    try:
        with path.open("rb") as file:  # np.load would also open an archive of arrays
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # as in `_opened`
        raise ImageError(f"image {path} cannot be read: {_reason(error)}") from error
    if not 0 < array.size <= MOST_PIXELS:
        raise ImageError(
            f"image {path} has {array.size:,} values, expected 1 to {MOST_PIXELS:,}; cut it"
        )
    return array


def _check_size(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MOST_PIXELS:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, expected at most {MOST_PIXELS:,}; "
            "scale it down or cut it"
        )


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether the samples in the file have 16 bits, before the image is loaded."""
    stored = [tile.args for tile in getattr(image, "tile", ())]
    if image.format == "PPM":  # ("RGB", greatest value)
        return any(isinstance(args, tuple) and args[-1] == 65535 for args in stored)
    return any(";16" in str(args) for args in stored)


def _orientation(image: Image.Image, path: Path) -> int:
    """Return the EXIF orientation of a loaded image; Pillow has rotated a TIFF already."""
    # `ImageOps.exif_transpose` would also write the other tags anew, which may be damaged.
    found = image.getexif().get(ExifTags.Base.Orientation)
    if found is None and "exif" in image.info:
        # Pillow may have ignored an error when it opened the file.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                Image.Exif().load(image.info["exif"])
        except Exception:  # as in `_opened`
            warn(f"image {path} is taken as upright, as its EXIF data are damaged")
    return found or 1


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image without its alpha channel; raise a ValueError if a pixel is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")  # also of a palette, or with a transparent color
    if image.getchannel("A").getextrema()[0] != 255:
        raise ValueError("it has transparent pixels; lay it on a background color first")
    return image


def _check_range(greatest: int, kept: int) -> None:
    """Raise a ValueError if 16-bit values may have a smaller range.

    Args:
      greatest: the greatest value.
      kept: number of upper bits that it has of the 16.
    """
    unknown = 16 - kept
    if greatest >> (_SENSOR_BITS - unknown) == 0 and (greatest or unknown):
        most = (greatest << unknown) + (1 << unknown) - 1
        raise ValueError(
            f"it has 16 bits, but its greatest value is {'at most ' * bool(unknown)}{most}, which "
            f"fits {_SENSOR_BITS} bits; expected values up to 65535, or 8 bits; scale it first"
        )


@contextlib.contextmanager
def _opened(path: Path, page: int = 0) -> Iterator[Image.Image]:
    """Open an image; raise every error inside as an ImageError that names the file and the page."""
    try:
        with opened(path) as image:
            yield image
    except Exception as error:  # a damaged file makes Pillow raise almost any
        where = f"page {page} of image {path}" if page else f"image {path}"
        raise ImageError(f"{where} cannot be read: {_reason(error)}") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of FORMATS and at most MOST_PIXELS; Pillow's own limit and warnings are off.

    Raises:
      ValueError: it has too many pixels.
      Exception: almost any, if the file is damaged.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow warns of damaged metadata, on which no pixel depends.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
            with Image.open(path, formats=_formats()) as image:
                _check_size(image)
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is damaged or none of {', '.join(_formats())}"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error) or type(error).__name__
