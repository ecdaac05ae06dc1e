"""A camera and a painter: polygons in meters, drawn into an image and its label at once.

A place in the street is (across, up, ahead) in meters: right of the middle of the road, above its
surface, from the camera. Screen positions are in image heights, so that a scene is the same at
every resolution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

NEAR = 0.6
"""Meters from the camera to the near plane."""

OVERSAMPLE = 2
"""Drawn pixels per pixel, along each side: images are averaged over them, labels sampled."""

Place = tuple[float, float, float]
Color = tuple[float, float, float]

LEFT: Place = (-1.0, 0.0, 0.0)
RIGHT: Place = (1.0, 0.0, 0.0)
UP: Place = (0.0, 1.0, 0.0)
BACK: Place = (0.0, 0.0, -1.0)
LEAFY: Place = (0.0, 0.7, -0.7)
"""Normals of faces; BACK points to the camera, LEAFY is the mean normal of leaves."""


def mix(a: Sequence[float], b: Sequence[float], share: float) -> Color:
    """Interpolate between the colors `a` (share 0) and `b` (share 1)."""
    red, green, blue = (x + share * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def scale(color: Sequence[float], gain: float) -> Color:
    """Make a color darker (gain below 1) or lighter."""
    return color[0] * gain, color[1] * gain, color[2] * gain


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in a car; a bend of the road shifts places ahead sideways."""

    height: float  # meters
    across: float  # meters from the middle of the road
    focal: float  # image heights
    horizon: float  # image heights below the top
    center: float  # image heights from the left: where the road would vanish without a bend
    bend: float  # curvature of the road, 1 / meters

    def project(self, places: Sequence[Place], unit: float) -> list[tuple[float, float]]:
        """Return screen positions (from the left, from the top), `unit` to an image height."""
        screen = []
        for across, up, ahead in places:
            # Moving a corner up to NEAR is an exact cut for edges that run along the street.
            ahead = ahead if ahead > NEAR else NEAR
            zoom = self.focal / ahead
            aside = across - self.across + self.bend * ahead * ahead / 2
            x, y = self.center + aside * zoom, self.horizon + (self.height - up) * zoom
            screen.append((x * unit, y * unit))
        return screen


@dataclass(frozen=True)
class Light:
    """Sun, open sky and haze."""

    sun: Place  # unit vector to the sun
    direct: float  # gain of a face that looks into the sun, added to `ambient`
    ambient: float  # gain of a face in shadow
    haze: Color
    visibility: float  # meters at which a color is reduced to 1/e

    def on(self, color: Sequence[float], facing: Place, ahead: float) -> tuple[int, int, int]:
        """Return the color of a lit face at a distance, 0 to 255."""
        (nx, ny, nz), (sx, sy, sz) = facing, self.sun
        toward_sun = max(0.0, nx * sx + ny * sy + nz * sz)
        clear = math.exp(-max(ahead, 0.0) / self.visibility)
        gain, veil = clear * (self.ambient + self.direct * toward_sun), 1 - clear
        red, green, blue = color
        return (
            min(255, int(gain * red + veil * self.haze[0])),
            min(255, int(gain * green + veil * self.haze[1])),
            min(255, int(gain * blue + veil * self.haze[2])),
        )


class Painter:
    """Draws back to front into one picture of red, green, blue and label.

    The label is the picture's fourth channel, so that every shape is in both. Nothing is blended:
    edges are hard until `develop` averages the image.
    """

    def __init__(self, height: int, width: int, camera: Camera, light: Light, sky: Image.Image):
        """Start with the sky, of any size, over the whole of a height x width image."""
        self.camera = camera
        self.light = light
        self.unit = height * OVERSAMPLE  # drawn pixels per image height
        size = (width * OVERSAMPLE, height * OVERSAMPLE)
        picture = sky.resize(size, Image.Resampling.BICUBIC)
        picture.putalpha(SKY)
        self._start(picture)

    def _start(self, picture: Image.Image) -> None:
        self.picture = picture
        self.draw = ImageDraw.Draw(picture)

    def fill(
        self,
        places: Sequence[Place],
        color: Sequence[float],
        label: int,
        facing: Place = BACK,
        *,
        one_sided: bool = False,
    ) -> bool:
        """Fill a polygon, if `one_sided` only where its corners appear in clockwise order.

        Returns:
            Whether it was filled.
        """
        pixels = self.camera.project(places, self.unit)
        if one_sided:
            shifted = pixels[1:] + pixels[:1]
            pairs = zip(pixels, shifted, strict=True)
            if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) < 0:
                return False
        tone = self.light.on(color, facing, places[0][2])
        self.draw.polygon(pixels, fill=(*tone, label))
        return True

    def board(
        self, x0: float, y0: float, x1: float, y1: float, ahead: float, color: Color, label: int
    ) -> None:
        """Fill an upright rectangle that faces the camera; x is across, y is up."""
        corners = [(x0, y0, ahead), (x1, y0, ahead), (x1, y1, ahead), (x0, y1, ahead)]
        self.fill(corners, color, label)

    def clumps(
        self,
        places: np.ndarray,
        radii: np.ndarray,
        colors: Sequence[Color],
        label: int,
        rng: np.random.Generator,
    ) -> None:
        """Fill ragged discs of `radii` (n) at `places` (n, 3), lit from above like leaves.

        All are projected at once, because a scene has hundreds.
        """
        corners = 11
        angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
        reach = radii[:, None] * rng.uniform(0.6, 1.25, (len(radii), corners))
        across = places[:, :1] + reach * np.cos(angles)
        up = places[:, 1:2] + reach * np.sin(angles)
        ahead = np.maximum(places[:, 2:], NEAR)
        camera, zoom = self.camera, self.camera.focal / ahead
        x = camera.center + (across - camera.across + camera.bend * ahead**2 / 2) * zoom
        y = camera.horizon + (camera.height - up) * zoom
        outlines = (np.stack([x, y], axis=2) * self.unit).reshape(len(radii), -1)
        for outline, color, distance in zip(
            outlines.tolist(), colors, ahead[:, 0].tolist(), strict=True
        ):
            tone = self.light.on(color, LEAFY, distance)
            self.draw.polygon(outline, fill=(*tone, label))

    def stroke(
        self, places: Sequence[Place], thickness: float, color: Sequence[float], label: int
    ) -> None:
        """Draw a line at least one pixel wide; `thickness` is in meters at its first place."""
        ahead = max(places[0][2], NEAR)
        width = round(thickness * self.camera.focal / ahead * self.unit)
        width = max(OVERSAMPLE, width)
        pixels = self.camera.project(places, self.unit)
        tone = self.light.on(color, BACK, ahead)
        self.draw.line(pixels, fill=(*tone, label), width=width)

    def disc(
        self, place: Place, radius: float, color: Sequence[float], label: int, stretch: float = 1.0
    ) -> None:
        """Draw a disc facing the camera; `radius` in meters, its height multiplied by `stretch`."""
        ahead = max(place[2], NEAR)
        x, y = self.camera.project([place], self.unit)[0]
        rx = radius * self.camera.focal / ahead * self.unit
        box = (x - rx, y - rx * stretch, x + rx, y + rx * stretch)
        self.draw.ellipse(box, fill=(*self.light.on(color, BACK, ahead), label))

    def shade(self, shadows: Sequence[Sequence[Place]], gain: float) -> None:
        """Darken the picture inside the polygons; labels stay."""
        mask = Image.new("L", self.picture.size, 0)
        draw = ImageDraw.Draw(mask)
        for places in shadows:
            draw.polygon(self.camera.project(places, self.unit), fill=255)
        darker = self.picture.point([int(value * gain) for value in range(256)] * 3 + [*range(256)])
        self._start(Image.composite(darker, self.picture, mask))

    def develop(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image, float32 (H, W, 3) in 0 to 255, and the label, uint8 (H, W)."""
        image = np.asarray(self.picture.convert("RGB").reduce(OVERSAMPLE), np.float32)
        label = np.asarray(self.picture.getchannel("A"))[::OVERSAMPLE, ::OVERSAMPLE].copy()
        return image, label
