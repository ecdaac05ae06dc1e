"""The pieces of HTML that a report is made of; whatever text goes in is escaped here."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from PIL import Image

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it is sorted by (None: nothing, always last)."""

    text: str
    value: float | str | None
    code: bool = False


def score(text: str, value: float | None) -> Cell:
    """A cell with a number."""
    return Cell(text, value)


def name(text: str, code: bool = False) -> Cell:
    """A cell with a text; `code` for what one would type."""
    return Cell(text, text or None, code)


def escape(text: object) -> str:
    """A text, or what has one, as HTML shows it."""
    return html.escape(str(text), quote=True)


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], sorted_by: str = ""
) -> str:
    """A table that the page's script sorts, in a box that scrolls; the first column names the rows.

    Args:
      sorted_by: the heading that the rows are sorted by already, the greatest first.
    """
    numeric = [
        any(isinstance(row[k].value, int | float) for row in rows) for k in range(len(headings))
    ]
    heads = "".join(
        f'<th scope="col" data-kind="{"number" if number else "text"}" '
        f'aria-sort="{"descending" if heading == sorted_by else "none"}">'
        f'<button type="button">{escape(heading)}</button></th>'
        for heading, number in zip(headings, numeric, strict=True)
    )
    lines = "\n".join(
        "<tr>" + "".join(_cell(cell, k == 0, numeric[k]) for k, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f'<table class="sortable"><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>\n"
    )


def _cell(cell: Cell, first: bool, number: bool) -> str:
    value = "" if cell.value is None else cell.value
    text = f"<code>{escape(cell.text)}</code>" if cell.code else escape(cell.text)
    shown = f'data-sort="{escape(value)}"' + (' class="number"' if number else "")
    return f'<th scope="row" {shown}>{text}</th>' if first else f"<td {shown}>{text}</td>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and what they are."""
    lines = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f"<dl>\n{lines}\n</dl>\n"


def svg(content: bytes, prefix: str, caption: str, ink: str) -> str:
    """A figure to stand in a page: named for who cannot see it, and in the page's colour of text.

    Args:
      content: an SVG file of matplotlib.
      prefix: put before every id, so that those of several figures differ.
      ink: the colour that becomes that of the text.
    """
    root = ElementTree.fromstring(content)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", caption)
    root.set("style", f"--width: {width * 4 / 3:.0f}px")
    for parent in list(root.iter()):
        for child in list(parent):
            # The style is for all of a page; `page.html` has its rule. The metadata name sites.
            if child.tag == _SVG + "metadata" or child.tag == _SVG + "style":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{prefix}-{value}"
            elif key == "href":
                value = value.replace("#", f"#{prefix}-", 1)
            else:
                value = value.replace("url(#", f"url(#{prefix}-").replace(ink, "currentColor")
            element.set(key, value)
    return ElementTree.tostring(root, encoding="unicode")


def picture(pixels: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> str:
    """A picture as the value of a CSS property, lossless.

    Args:
      pixels: uint8 (H, W, 3) RGB or (H, W, 1) grey; with a palette (H, W) places in it, and what
        is beyond it transparent.
      palette: RGB triples.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    options = {}
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        image.putpalette(colours.tobytes())
        options["transparency"] = bytes([255] * len(palette) + [0] * (256 - len(palette)))
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True, **options)
    return f"url(data:image/png;base64,{base64.b64encode(content.getvalue()).decode()})"
