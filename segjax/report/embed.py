"""Embed SVG figures and images in an HTML page, so that it needs no other files."""

import base64
import io
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from PIL import Image

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


def svg(content: bytes, prefix: str, caption: str, ink: str) -> Markup:
    """Return a figure as an inline element with a label, in the text color of the page.

    Args:
      content: an SVG file from matplotlib.
      prefix: prefix of all ids, so that the ids of different figures differ.
      caption: label for assistive technology.
      ink: color to replace with the text color of the page.
    """
    root = ElementTree.fromstring(content)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", caption)
    root.set("style", f"--width: {width * 4 / 3:.0f}px")
    for parent in list(root.iter()):
        for child in list(parent):
            # A style would apply to the whole page; `page.html` has its rule. Metadata has URLs.
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
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def image(pixels: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> str:
    """Return an image as a CSS `url(...)` value that contains a PNG.

    Args:
      pixels: uint8 (H, W, 3) RGB or (H, W, 1) gray; with a palette, indices (H, W) into it, where
        those beyond its end are transparent.
      palette: RGB triples.
    """
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    options = {}
    if palette is not None:
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = palette
        picture.putpalette(colors.tobytes())
        options["transparency"] = bytes([255] * len(palette) + [0] * (256 - len(palette)))
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True, **options)
    return f"url(data:image/png;base64,{base64.b64encode(content.getvalue()).decode()})"
