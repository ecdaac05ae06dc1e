"""Draw labels: in color, over images, in indexed PNG files, and side by side."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.datasets import VOID
from segjax.errors import UserError
from segjax.system.files import write_whole

Palette = Sequence[Sequence[int]]

_GAP = 8  # pixels, between the cells of a grid and around it
_FONT_SIZE = 16


def _colors(label: np.ndarray, palette: Palette) -> np.ndarray:
    """Check a label and return the palette as uint8 (256, 3), black for void."""
    _check_label(label)
    wrong = label[((label < 0) | (label >= len(palette))) & (label != VOID)]
    if wrong.size:
        raise UserError(
            f"label value {wrong[0]}, expected 0 to {len(palette) - 1}, or {VOID} for void"
        )
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    return colors


def shown(image: np.ndarray) -> np.ndarray:
    """Return what is shown of an image: RGB or gray, of more channels the first three or one.

    Raises:
      UserError: it is not uint8 (H, W, C), as float in [0, 1] would be black.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] < 1:
        raise UserError(
            f"image of shape {image.shape} and type {image.dtype}, expected uint8 (H, W, 3) RGB, "
            "(H, W, 1) gray or (H, W, N)"
        )
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1]


def _check_label(label: np.ndarray) -> None:
    if not (np.issubdtype(label.dtype, np.integer) and label.ndim == 2):
        raise UserError(
            f"label of shape {label.shape} and type {label.dtype}, expected integers (H, W)"
        )


def _check_size(label: np.ndarray, size: tuple[int, ...]) -> None:
    # Shapes that NumPy could broadcast would be drawn wrongly.
    if label.shape != size:
        raise UserError(f"label of shape {label.shape}, expected {size} as of the other picture")


def colorize(label: np.ndarray, palette: Palette) -> np.ndarray:
    """Draw a label in the colors of its classes, void in black.

    Args:
      label: integers (H, W) in [0, K) or VOID.
      palette: K RGB triples in [0, 255].

    Returns:
      uint8 (H, W, 3) RGB.

    Raises:
      UserError: the label has another type or shape, or a value that is no class.
    """
    return _colors(label, palette)[label]


RIGHT, WRONG, UNKNOWN = (255, 255, 255), (170, 0, 0), (190, 190, 190)


def errors(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Mark the errors of a prediction: `WRONG` or `RIGHT`, and `UNKNOWN` where the label is void.

    Args:
      label: ground truth, integers (H, W) in [0, K) or VOID.
      prediction: integers (H, W) in [0, K).

    Returns:
      uint8 (H, W, 3) RGB.

    Raises:
      UserError: they have another type or different shapes.
    """
    for each in (label, prediction):
        _check_label(each)
    _check_size(label, prediction.shape)
    colors = np.array([RIGHT, WRONG, UNKNOWN], np.uint8)
    return colors[np.where(label == VOID, 2, label != prediction)]


def heat(values: np.ndarray, greatest: float) -> np.ndarray:
    """Draw a heat map: black (0), red, yellow, white (`greatest` and above).

    Args:
      values: floating (H, W), not negative.
      greatest: the value that is white, positive.

    Returns:
      uint8 (H, W, 3) RGB.

    Raises:
      UserError: the values have another type, shape or range.
    """
    if not (np.issubdtype(values.dtype, np.floating) and values.ndim == 2):
        raise UserError(
            f"values of shape {values.shape} and type {values.dtype}, expected floating (H, W)"
        )
    if not (greatest > 0 and np.all(values >= 0)):
        raise UserError(
            f"values from {values.min()} with {greatest} as white, expected at least 0 and more "
            "than 0"
        )
    thirds = 3 * values[..., None] / greatest - np.arange(3)
    return np.rint(255 * np.clip(thirds, 0, 1)).astype(np.uint8)


def overlay(
    image: np.ndarray, label: np.ndarray, palette: Palette, opacity: float = 0.5
) -> np.ndarray:
    """Blend a colored label over its image; void pixels show the image alone.

    Args:
      image: uint8 (H, W, 3) RGB, (H, W, 1) gray or (H, W, N), see `shown`.
      label: integers (H, W) in [0, K) or VOID.
      palette: K RGB triples in [0, 255].
      opacity: opacity of the label; 0 gives the image, 1 the colors.

    Returns:
      uint8 (H, W, 3) RGB.

    Raises:
      UserError: image or label has another type or shape, or the label a value that is no class.
    """
    image = shown(image)
    _check_size(label, image.shape[:2])
    mixed = colorize(label, palette)
    for row, pixels, classes in zip(mixed, image, label, strict=True):  # float64 of all is large
        weight = np.where(classes == VOID, 0.0, opacity)[:, None]
        row[:] = np.rint((1 - weight) * pixels + weight * row)
    return mixed


def save_label(path: str | os.PathLike[str], label: np.ndarray, palette: Palette) -> None:
    """Save a label as an indexed PNG: pixel values are class ids or VOID, shown in the palette.

    Read the ids with `numpy.asarray(PIL.Image.open(path))`. OpenCV and other readers that convert
    to RGB give the colors of the palette instead.
    """
    colors = _colors(label, palette)
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette(colors.tobytes())
    save(path, picture)


def save(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Save a picture, whole or not at all, in the format of its suffix.

    Raises:
      UserError: the suffix is not that of a picture format.
    """
    suffix = Path(path).suffix.lower()
    format = Image.registered_extensions().get(suffix)
    if format is None or format not in Image.SAVE:
        raise UserError(f"{path}: {suffix!r} is not a picture format, expected .png, .jpg or .webp")
    content = io.BytesIO()
    picture.save(content, format=format)
    write_whole(path, content.getvalue())


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    *,
    class_names: Sequence[str] = (),
    palette: Palette = (),
    cell_width: int = 240,
) -> Image.Image:
    """Lay out pictures on white, in rows of any lengths.

    A picture narrower than `cell_width` is enlarged by the least whole factor that reaches it, by
    nearest neighbor, so that pixels stay sharp squares.

    Args:
      rows: pictures of any sizes, uint8 (H, W, 3) RGB, (H, W, 1) gray or (H, W, N), see `shown`.
      titles: one above each column; long ones are wrapped.
      class_names: K names, for a legend below that also shows void; () for no legend.
      palette: K RGB triples of the legend.
      cell_width: least width of a picture, in pixels.

    Raises:
      UserError: there are no pictures, or one has another type or shape.
    """
    if not any(map(len, rows)):
        raise UserError("no pictures to lay out, expected at least one")
    rows = [[shown(picture) for picture in row] for row in rows]
    font = ImageFont.load_default(_FONT_SIZE)
    cells = [[_enlarged(picture, cell_width) for picture in row] for row in rows]
    columns = max(len(titles), *map(len, cells))
    widths = [
        max((row[k].width for row in cells if k < len(row)), default=cell_width)
        for k in range(columns)
    ]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    width = sum(widths) + _GAP * (columns + 1)

    heads = [_wrapped(title, widths[k], font) for k, title in enumerate(titles)]
    line_height = _FONT_SIZE + 4
    head_height = line_height * max((head.count("\n") + 1 for head in heads), default=0)
    legend = _legend(class_names, palette, width - 2 * _GAP, font) if class_names else None
    height = head_height + sum(heights) + _GAP * (len(heights) + 1)
    foot = legend.height + _GAP if legend else 0

    sheet = Image.new("RGB", (width, height + foot), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [_GAP * (k + 1) + sum(widths[:k]) for k in range(columns)]
    for left, head in zip(lefts, heads, strict=False):
        for number, line in enumerate(head.split("\n")):
            draw.text((left, _GAP // 2 + number * line_height), line, "black", font)
    top = head_height + _GAP
    for row, row_height in zip(cells, heights, strict=True):
        for left, cell in zip(lefts, row, strict=False):
            sheet.paste(cell, (left, top))
        top += row_height + _GAP
    if legend:
        sheet.paste(legend, (_GAP, height))
    return sheet


def _enlarged(picture: np.ndarray, cell_width: int) -> Image.Image:
    factor = -(-cell_width // picture.shape[1])
    picture = picture[..., 0] if picture.shape[2:] == (1,) else picture
    return Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrapped(title: str, width: int, font: _Font) -> str:
    """Wrap a title into lines of at most `width` pixels, after punctuation if possible."""
    lines = [""]
    for piece in re.findall(r"[^\s,=._/-]*[\s,=._/-]*", title):
        if font.getlength((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
            continue
        lines.append("")
        for letter in piece:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(line.strip() for line in lines if line.strip())


def _legend(class_names: Sequence[str], palette: Palette, width: int, font: _Font) -> Image.Image:
    """Draw a colored square and the name of each class and void, in lines of at most `width`."""
    side, line_height = _FONT_SIZE, _FONT_SIZE + 8
    entries = [*zip(class_names, map(tuple, palette), strict=True), ("void", (0, 0, 0))]
    places, left, line = [], 0, 0
    for name, _ in entries:
        entry_width = side + 6 + round(font.getlength(name)) + 14
        if left and left + entry_width > width:
            left, line = 0, line + 1
        places.append((left, line * line_height))
        left += entry_width
    sheet = Image.new("RGB", (width, (line + 1) * line_height), "white")
    draw = ImageDraw.Draw(sheet)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=color, outline=(120, 120, 120))
        draw.text((x + side + 6, y - 2), name, "black", font)
    return sheet
