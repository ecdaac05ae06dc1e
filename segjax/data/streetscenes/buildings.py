"""Houses along the street and across its end, drawn as in `objects`."""

from collections.abc import Callable

import numpy as np

from segjax.data.streetscenes.objects import BOARDS, GLASS, GRAYS, ROOFS, WALLS, WHITE, chance, pick
from segjax.data.streetscenes.painter import (
    BACK,
    BUILDING,
    LEFT,
    NEAR,
    RIGHT,
    SIGN,
    Color,
    Painter,
    Place,
    mix,
    scale,
)


def _facade(
    p: Painter,
    rng: np.random.Generator,
    at: Callable[[float, float], Place],
    length: float,
    height: float,
    wall: Color,
    facing: Place,
    shop: bool,
) -> None:
    """Draw a wall with rows of windows; `at(along, up)` places its points, 0 to `length` along."""

    def panel(x0: float, y0: float, x1: float, y1: float, color: Color, label: int) -> None:
        p.fill([at(x0, y0), at(x1, y0), at(x1, y1), at(x0, y1)], color, label, facing)

    panel(0, 0, length, height, wall, BUILDING)
    stories = max(1, round(height / rng.uniform(2.8, 3.5)))
    columns = max(1, round(length / rng.uniform(2.0, 4.5)))
    if at(0, 0)[2] > 50:
        columns = 1  # so far away a row of windows is a band
    story, column = height / stories, length / columns
    middles = [(place + 0.5) * column for place in range(columns)]
    wide, tall = rng.uniform(0.3, 0.75), rng.uniform(0.4, 0.65)
    glass = mix(GLASS, p.light.haze, rng.uniform(0, 0.5))
    frame = pick(rng, [WHITE, *WALLS])
    framed, banded = chance(rng, 0.5) and at(0, 0)[2] < 25, chance(rng, 0.4)
    for row in range(stories):
        bottom = row * story
        if banded:
            panel(0, bottom - 0.15, length, bottom + 0.1, scale(wall, 1.15), BUILDING)
        if row == 0 and shop:
            continue
        for middle in middles:
            x0, x1 = middle - wide * column / 2, middle + wide * column / 2
            y0, y1 = bottom + 0.28 * story, bottom + (0.28 + tall) * story
            if row == 0 and chance(rng, 0.25):  # a door
                x0, x1, y0 = middle - 0.5, middle + 0.5, 0.0
            if framed:
                panel(x0 - 0.12, y0 - 0.12, x1 + 0.12, y1 + 0.12, frame, BUILDING)
            panel(x0, y0, x1, y1, scale(glass, rng.uniform(0.7, 1.3)), BUILDING)
    if shop:
        panel(0.3, 0.1, length - 0.3, 0.9 * story, pick(rng, BOARDS, 20), BUILDING)
        for middle in middles:
            panel(
                middle - 0.42 * column, 0.5, middle + 0.42 * column, 0.68 * story, glass, BUILDING
            )
        if chance(rng, 0.4):
            start = length * rng.uniform(0.1, 0.5)
            end = min(length - 0.3, start + rng.uniform(2, 5))
            board = pick(rng, BOARDS)
            panel(start, 0.72 * story, end, 0.72 * story + 0.7, board, SIGN)
            panel(start + 0.4, 0.72 * story + 0.2, end - 0.4, 0.72 * story + 0.45, WHITE, SIGN)


def building(
    p: Painter,
    rng: np.random.Generator,
    side: int,
    across: float,
    near: float,
    far: float,
    height: float,
) -> None:
    """Draw a house whose front runs along the street from `near` to `far`; side -1 is the left."""
    near = max(near, NEAR)
    wall, roof = pick(rng, WALLS + GRAYS), pick(rng, ROOFS + GRAYS)
    depth = rng.uniform(7, 12)
    outer = across + side * depth
    if chance(rng, 0.6):
        ridge = across + side * depth / 2, height + rng.uniform(1.5, 4)
        gutter = (across - 0.3 * side, height - 0.3)
        eaves = [(*gutter, near), (*gutter, far)]
        toward_street = (-side * 0.6, 0.8, 0.0)
        p.fill([*eaves, (*ridge, far), (*ridge, near)], roof, BUILDING, toward_street)
        gable = [(across, height, near), (outer, height, near), (*ridge, near)]
        p.fill(gable, scale(wall, 0.95), BUILDING)
        for chimney in rng.uniform(near, far, size=rng.integers(0, 3)).tolist():
            foot, top = ridge[1] - 0.5, ridge[1] + 1.2
            x = ridge[0]
            p.board(x - 0.5, foot, x + 0.5, top, chimney, scale(wall, 0.8), BUILDING)
    facing = LEFT if side > 0 else RIGHT
    p.board(across, 0, outer, height, near, scale(wall, 0.95), BUILDING)
    shop = chance(rng, 0.45)
    _facade(p, rng, lambda x, y: (across, y, near + x), far - near, height, wall, facing, shop)


def end_building(
    p: Painter, rng: np.random.Generator, across: float, ahead: float, width: float, height: float
) -> None:
    """Draw a house that closes the view, its front toward the camera."""
    wall = pick(rng, WALLS + GRAYS)
    left = across - width / 2
    if chance(rng, 0.5):
        roof = [(left, height, ahead), (left + width, height, ahead)]
        roof += [(left + 0.85 * width, height + 4, ahead), (left + 0.15 * width, height + 4, ahead)]
        p.fill(roof, pick(rng, ROOFS), BUILDING)
    _facade(p, rng, lambda x, y: (left + x, y, ahead), width, height, wall, BACK, False)
