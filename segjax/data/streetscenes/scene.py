"""Street scenes as seen from a car, with the eleven classes of CamVid and void.

A scene is laid out in meters (`layout`). Then `buildings`, `objects` and `traffic` draw it with a
perspective `painter`, over the sky and the ground that are drawn here; exposure and noise come
last. The scene is the same at every size. Class shares are those of CamVid's training split within
a factor of two, and colors say little about classes.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from segjax.data.statistics import VOID
from segjax.data.streetscenes.layout import FAR, Scene, lay_out
from segjax.data.streetscenes.objects import LEAVES, chance, pick
from segjax.data.streetscenes.painter import (
    NEAR,
    PAVEMENT,
    ROAD,
    TREE,
    UP,
    Color,
    Light,
    Painter,
    mix,
    scale,
)

CUTS = [NEAR, 2.0, 4.0, 8.0, *np.arange(14.0, FAR + 60, 9.0).tolist()]
"""Meters ahead at which the ground is cut, so that it follows the bend."""


def render(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene; the same arguments give the same bytes.

    Args:
        seed: seed of all scenes, not negative.
        index: number of the scene, not negative.
        height: image height in pixels.
        width: image width in pixels; a wider image shows more of the sides.

    Returns:
        The image, uint8 (height, width, 3) RGB, and the label, uint8 (height, width): 0 to 10 in
        CamVid's order, 255 for void.
    """
    # Three streams, so that layout and drawing do not depend on the number of pixels.
    layout_rng, drawing_rng, film_rng = np.random.default_rng((seed, index)).spawn(3)
    aspect = width / height
    scene = lay_out(layout_rng, aspect)
    sky = _sky(drawing_rng, scene.light, aspect)
    painter = Painter(height, width, scene.camera, scene.light, sky)
    _ground(painter, drawing_rng, scene)
    for _, draw, arguments in sorted(scene.things, key=lambda thing: thing[0], reverse=True):
        draw(painter, drawing_rng, *arguments)
    image, label = painter.develop()
    image = _expose(_textured(image, label, scene, film_rng), film_rng)
    _blank(label, film_rng)
    return image, label


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> np.ndarray:
    """Draw smooth noise of variance at most 1, float32 (height, width), `cells` blobs high."""
    grid = rng.standard_normal((cells, max(2, round(cells * width / height))), np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _sky(rng: np.random.Generator, light: Light, aspect: float) -> Image.Image:
    """Draw a sky, blue or gray, paler at the horizon, cloudy; often overexposed as in CamVid."""
    height, width = 96, max(2, round(96 * aspect))
    zenith = mix((88, 130, 196), (150, 156, 164), rng.random())
    burnt = rng.uniform(0, 0.9)
    zenith, low = mix(zenith, (250, 250, 248), burnt), mix(light.haze, (250, 250, 248), burnt)
    share = np.linspace(0, 1.6, height).clip(0, 1)[:, None, None] ** 0.7
    sky = np.asarray(zenith) * (1 - share) + np.asarray(low) * share
    clouds = sum(_noise(rng, cells, height, width) / cells**0.5 for cells in (3, 6, 12, 24))
    cover = 1 / (1 + np.exp(-4 * (clouds + rng.uniform(-1.5, 0.6))))[..., None]
    tone = np.asarray(scale((240, 242, 246), rng.uniform(0.65, 1.0)))
    sky = sky + cover * (tone - sky) * rng.uniform(0.3, 0.9)
    return Image.fromarray(sky.clip(0, 255).astype(np.uint8))


def _ground(painter: Painter, rng: np.random.Generator, scene: Scene) -> None:
    """Draw grass or paving to the horizon, pavements, curbs, the road, side roads and paint."""

    def strip(left: float, right: float, near: float, far: float, tone: Color, label: int) -> None:
        cuts = [near, *(cut for cut in CUTS if near < cut < far), far]
        edge = [(left, 0.0, ahead) for ahead in cuts]
        edge += [(right, 0.0, ahead) for ahead in reversed(cuts)]
        painter.fill(edge, tone, label, UP)

    asphalt = pick(rng, [(92, 92, 94), (112, 110, 108), (76, 78, 84), (130, 126, 120)], 3)
    paving = pick(rng, [(150, 146, 140), (128, 126, 124), (148, 110, 92), (112, 110, 112)], 6)
    verge = (pick(rng, LEAVES), TREE) if chance(rng, 0.6) else (paving, PAVEMENT)
    strip(-600, 600, NEAR, CUTS[-1], *verge)
    for side, width in scene.pavements.items():
        inner, outer = sorted((side * scene.road, side * (scene.road + width)))
        strip(inner, outer, NEAR, FAR, paving, PAVEMENT)
    strip(-scene.road, scene.road, NEAR, FAR, asphalt, ROAD)
    for side in scene.pavements:
        inner, outer = sorted((side * scene.road, side * (scene.road + 0.18)))
        strip(inner, outer, NEAR, FAR, scale(paving, rng.uniform(1.1, 1.35)), PAVEMENT)
    for side, near, far in scene.junctions:
        inner, outer = sorted((side * (scene.road - 0.1), side * 90))
        strip(inner, outer, near, far, asphalt, ROAD)
    _markings(strip, rng, scene)
    painter.shade(scene.shadows, gain=rng.uniform(0.5, 0.7))


def _markings(strip: Callable[..., None], rng: np.random.Generator, scene: Scene) -> None:
    """Draw lines along and across the road; their class is road."""
    paint = pick(rng, [(204, 204, 200), (214, 206, 170), (170, 170, 166)])
    phase, dash, gap = rng.uniform(0, 6), rng.uniform(2, 4), rng.uniform(3, 5)
    for near in np.arange(NEAR + phase, 90, dash + gap).tolist():
        strip(-0.07, 0.07, near, near + dash, paint, ROAD)
    if chance(rng, 0.6):
        line = pick(rng, [paint, (206, 172, 60)])
        for inset in (0.35, 0.55):
            for side in (-1, 1):
                middle = side * (scene.road - inset)
                strip(middle - 0.06, middle + 0.06, NEAR, FAR, line, ROAD)
    if chance(rng, 0.3):
        near = rng.uniform(7, 25)
        if chance(rng, 0.5):  # a crosswalk, else a stop line
            for left in np.arange(-scene.road + 0.4, scene.road - 0.5, 1.2).tolist():
                strip(left, left + 0.6, near, near + 3, paint, ROAD)
        else:
            strip(-scene.road + 0.6, -0.2, near, near + 0.4, paint, ROAD)


# Per class in CamVid's order: standard deviation of the surface's tone, 0 to 255.
ROUGHNESS = np.array([0, 6, 5, 4, 6, 20, 4, 7, 4, 8, 8], np.float32)


def _textured(
    image: np.ndarray, label: np.ndarray, scene: Scene, rng: np.random.Generator
) -> np.ndarray:
    """Add coarse and fine grain to surfaces, and a pattern to the ground."""
    height, width = label.shape
    rough = np.zeros(VOID + 1, np.float32)
    rough[: len(ROUGHNESS)] = ROUGHNESS * rng.uniform(0.5, 1.5, len(ROUGHNESS))
    rough[VOID] = 6
    grain = _noise(rng, 120, height, width) + 0.5 * _noise(rng, 30, height, width)
    tone = rough[label] * grain
    rows, columns = np.nonzero((label == ROAD) | (label == PAVEMENT))
    tone[rows, columns] += _ground_pattern(label, rows, columns, scene, rng)
    return image + tone[..., None]


def _ground_pattern(
    label: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    scene: Scene,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return tones of ground pixels: patches, tire tracks, and joints between slabs."""
    camera, height = scene.camera, label.shape[0]
    below = ((rows + 0.5) / height - camera.horizon).clip(0.004)
    ahead = camera.focal * camera.height / below
    aside = ((columns + 0.5) / height - camera.center) * ahead / camera.focal
    across = aside + camera.across - camera.bend * ahead**2 / 2
    patches = rng.standard_normal((64, 64), np.float32)
    points = np.stack([ahead * 0.8, across * 2.5])
    worn = ndimage.map_coordinates(patches, points, order=1, mode="grid-wrap")
    tone = 6 * worn + 5 * np.cos(across * (np.pi / 0.9))
    slab = rng.uniform(0.4, 0.9)
    joint = (np.abs(across / slab % 1 - 0.5) > 0.44) | (np.abs(ahead / slab % 1 - 0.5) > 0.44)
    paved = label[rows, columns] == PAVEMENT
    if chance(rng, 0.12):
        paved[:] = True  # a cobbled road
    tone[joint & paved & (ahead < 18)] -= rng.uniform(5, 24)
    return tone


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply exposure, contrast, a color cast, a dark rim and noise; return uint8."""
    height, width = image.shape[:2]
    gain = rng.choice([0.5, 0.8, 1.0, 1.2], p=[0.12, 0.2, 0.4, 0.28])
    cast = gain * rng.uniform(0.95, 1.05, 3)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    rim = 1 - rng.uniform(0, 0.12) * (x * x + y * y)
    image = image * rim[..., None] * cast.astype(np.float32)
    contrast = np.float32(rng.uniform(0.8, 1.2))
    image = (image - 110) * contrast + np.float32(110 + rng.uniform(-12, 12))
    image += rng.uniform(0.5, 4) * rng.standard_normal((height, width, 1), np.float32)
    image += rng.uniform(0.5, 2) * rng.standard_normal((height, width, 3), np.float32)
    return image.clip(0, 255).astype(np.uint8)


def _blank(label: np.ndarray, rng: np.random.Generator) -> None:
    """Set ragged strips along some borders of a label to VOID in place, as in CamVid."""
    for border in range(4):
        depth = rng.uniform(0.005, 0.04)
        grid = rng.uniform(0.2, 1, 12)
        if not chance(rng, 0.45):
            continue
        turned = np.rot90(label, border)  # a view: the border is its first row
        rows, columns = turned.shape
        ragged = depth * rows * np.interp(np.linspace(0, 11, columns), np.arange(12), grid)
        turned[np.arange(rows)[:, None] + 0.5 < ragged] = VOID
