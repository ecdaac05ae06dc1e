"""Things in a street: each function draws one, with random choices from `rng`.

Places are (across, up, ahead) in meters, as in `painter`. Nothing here may depend on the
resolution, or a scene would differ from one size to another.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from segjax.data.statistics import VOID
from segjax.data.streetscenes.painter import (
    FENCE,
    LEFT,
    NEAR,
    POLE,
    RIGHT,
    SIGN,
    TREE,
    UP,
    Color,
    Painter,
    Place,
    scale,
)

# The palettes overlap on purpose: a color alone must not identify the class.
GRAYS = [(70, 70, 72), (105, 105, 105), (140, 140, 142), (175, 174, 170), (120, 125, 135)]
WALLS = [(150, 84, 62), (122, 72, 58), (168, 118, 84), (205, 188, 152), (222, 216, 200)]
WALLS += [(160, 150, 130), (128, 120, 110), (96, 100, 108), (186, 196, 196), (112, 118, 96)]
ROOFS = [(92, 58, 48), (70, 66, 68), (110, 72, 54), (58, 60, 66), (90, 88, 82)]
LEAVES = [(66, 92, 40), (48, 72, 36), (92, 108, 48), (118, 108, 52), (58, 84, 56), (128, 92, 50)]
METALS = [(62, 66, 68), (120, 124, 124), (168, 170, 168), (40, 44, 42), (58, 78, 64)]
WOODS = [(112, 86, 62), (92, 78, 66), (140, 128, 110), (66, 84, 62), (60, 60, 62), (200, 198, 190)]
PAINTS = [(196, 198, 200), (232, 232, 228), (40, 42, 46), (110, 114, 120), (150, 32, 34)]
PAINTS += [(38, 62, 118), (46, 84, 66), (166, 150, 118), (84, 34, 40), (96, 132, 160)]
CLOTHES = [(38, 40, 48), (60, 66, 90), (110, 40, 44), (140, 136, 128), (86, 92, 70)]
CLOTHES += [(190, 186, 180), (96, 74, 58), (52, 84, 120), (170, 120, 60), (150, 150, 156)]
SKINS = [(214, 170, 142), (168, 120, 90), (110, 76, 58)]
BOARDS = [(40, 74, 150), (32, 98, 66), (226, 226, 220), (176, 38, 40), (212, 170, 44), (52, 52, 56)]

GLASS = (52, 60, 70)
RUBBER = (28, 28, 30)
RED = (190, 34, 34)
WHITE = (228, 228, 224)


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with that probability."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, palette: Sequence[Color], spread: float = 10) -> Color:
    """Pick one of the colors and vary it a little."""
    color = palette[int(rng.integers(len(palette)))]
    red, green, blue = (
        max(0.0, c + spread * d) for c, d in zip(color, rng.normal(size=3).tolist(), strict=True)
    )
    return red, green, blue


def turned(across: float, ahead: float, heading: float) -> Callable[..., Place]:
    """Return the frame of a thing on the ground that faces `heading` radians right of ahead.

    The frame is a function that maps (forward, up, aside) in meters to a place.
    """
    sine, cosine = math.sin(heading), math.cos(heading)

    def at(forward: float, up: float, aside: float = 0.0) -> Place:
        return (
            across + forward * sine + aside * cosine,
            up,
            ahead + forward * cosine - aside * sine,
        )

    return at


def tree(p: Painter, rng: np.random.Generator, across: float, ahead: float, height: float) -> None:
    """Draw a tree: a trunk, branches and a crown of clumps, lighter above, thin or dense."""
    bark = pick(rng, [(74, 62, 52), (96, 88, 78), (58, 54, 48)])
    leaves = pick(rng, LEAVES, 8)
    crown = height * rng.uniform(0.26, 0.4)
    middle = height - crown
    p.stroke([(across, 0, ahead), (across, middle, ahead)], 0.04 * height, bark, TREE)
    for angle in rng.uniform(0.2, 2.9, size=5).tolist():
        x, y = 0.8 * crown * math.cos(angle), 0.8 * crown * math.sin(angle)
        branch = [(across, 0.6 * middle, ahead), (across + x, middle + y, ahead)]
        p.stroke(branch, 0.012 * height, bark, TREE)
    detail = 2.0 if ahead < 14 else 1.0 if ahead < 30 else 0.5
    count = int(rng.uniform(14, 28) * detail)
    angles, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count))
    aside, up = reach * np.cos(angles), reach * np.sin(angles)
    order = np.argsort(up)  # lower clumps first: the light ones on top stay in sight
    aside, up = aside[order], up[order]
    places = np.full((count, 3), ahead)
    places[:, 0] = across + crown * aside
    places[:, 1] = middle + 0.9 * crown * up
    radii = crown * rng.uniform(0.26, 0.42) / detail**0.4 * rng.uniform(0.5, 1.3, count)
    gains = (0.85 + 0.3 * up) * rng.uniform(0.8, 1.2, count)
    tones = [scale(leaves, gain) for gain in gains.tolist()]
    p.clumps(places, radii, tones, TREE, rng)


def bush(p: Painter, rng: np.random.Generator, across: float, ahead: float, height: float) -> None:
    """Draw a distant wood."""
    leaves = pick(rng, LEAVES, 8)
    places = np.full((4, 3), ahead)
    places[:, 0] = across + 0.4 * height * rng.normal(size=4)
    places[:, 1] = height * rng.uniform(0.1, 0.6, 4)
    tones = [scale(leaves, gain) for gain in rng.uniform(0.8, 1.1, 4).tolist()]
    p.clumps(places, height * rng.uniform(0.4, 0.7, 4), tones, TREE, rng)


def hedge(
    p: Painter, rng: np.random.Generator, across: float, near: float, far: float, height: float
) -> None:
    """Draw a row of bushes along the street."""
    leaves = pick(rng, LEAVES, 8)
    near = max(near, NEAR)
    body = [(across, 0, near), (across, 0, far), (across, height, far), (across, height, near)]
    p.fill(body, scale(leaves, 0.75), TREE, UP)
    ahead = np.arange(far, near + 1, -(0.8 if near < 30 else 1.8))
    count = len(ahead)
    up = height * rng.uniform(0.55, 0.95, count)
    tones = [scale(leaves, gain) for gain in rng.uniform(0.7, 1.1, count).tolist()]
    places = np.stack([np.full(count, across), up, ahead], axis=1)
    p.clumps(places, rng.uniform(0.4, 0.8, count), tones, TREE, rng)


def fence(
    p: Painter, rng: np.random.Generator, side: int, across: float, near: float, far: float
) -> None:
    """Draw boards, a low wall or railings along the street."""
    near = max(near, NEAR)
    height = rng.uniform(1.0, 1.9)
    color = pick(rng, WOODS + WALLS + METALS)
    facing = LEFT if side > 0 else RIGHT
    foot, top = rng.uniform(0, 0.12), height

    def panel(z0: float, z1: float, y0: float, y1: float, tone: Color) -> None:
        corners = [(across, y0, z0), (across, y0, z1), (across, y1, z1), (across, y1, z0)]
        p.fill(corners, tone, FENCE, facing)

    panel(near, far, foot, top, color)
    pitch, gap = float(rng.choice([0.35, 0.7, 2.0])), rng.uniform(0.2, 0.6)
    tone = scale(color, float(rng.choice([0.45, 0.7, 1.35])))
    for z in np.arange(near, min(far, 45), pitch).tolist():
        panel(z, z + gap * pitch, foot + 0.1, top - 0.1, tone)
    panel(near, far, top - 0.08, top, scale(color, 0.8))


def lamp_post(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw a tall thin post with an arm over the road."""
    height, metal = rng.uniform(5, 9), pick(rng, METALS)
    reach = -math.copysign(rng.uniform(0.5, 1.8), across)
    top = (across, height, ahead)
    p.stroke([(across, 0, ahead), top], rng.uniform(0.09, 0.14), metal, POLE)
    head = (across + reach, height + 0.3, ahead)
    p.stroke([top, head], 0.07, metal, POLE)
    p.stroke([(head[0] - 0.3, head[1], ahead), (head[0] + 0.3, head[1], ahead)], 0.16, metal, POLE)


def sign_post(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw a road sign on a post: round, triangular or rectangular."""
    up, size = rng.uniform(2.0, 3.0), rng.uniform(0.3, 0.48)
    rim, face = (RED, WHITE) if chance(rng, 0.5) else (WHITE, pick(rng, BOARDS))
    p.stroke([(across, 0, ahead), (across, up, ahead)], 0.08, pick(rng, METALS), POLE)
    shape = rng.integers(3)
    for radius, color in ((size, rim), (0.75 * size, face)):
        if shape == 0:
            p.disc((across, up, ahead), radius, color, SIGN)
            continue
        corners = [(-1.0, -0.6), (1.0, -0.6), (0.0, 1.1)]
        if shape == 1:
            corners = [(-1.0, -1.2), (1.0, -1.2), (1.0, 1.2), (-1.0, 1.2)]
        p.fill([(across + radius * x, up + radius * y, ahead) for x, y in corners], color, SIGN)


def sign_board(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw a direction board or a poster on two posts."""
    half, low, high = rng.uniform(0.6, 1.3), rng.uniform(1.0, 2.2), rng.uniform(1.0, 1.8)
    for foot in (across - 0.7 * half, across + 0.7 * half):
        p.stroke([(foot, 0, ahead), (foot, low + high, ahead)], 0.08, pick(rng, METALS), POLE)
    board = pick(rng, BOARDS, 20)
    for inset, tone in ((0.0, WHITE), (0.08, board)):
        left, right = across - half + inset, across + half - inset
        p.board(left, low + inset, right, low + high - inset, ahead, tone, SIGN)
    text = scale(board, 0.4) if sum(board) > 450 else WHITE
    for line in np.arange(low + 0.3, low + high - 0.2, 0.35).tolist():
        end = across + half * rng.uniform(-0.2, 0.75)
        start = across - 0.75 * half
        p.board(start, line, end, line + 0.12, ahead, text, SIGN)


def traffic_light(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw three lamps in a dark case on a post, one of them lit."""
    up = rng.uniform(2.3, 3.0)
    p.stroke([(across, 0, ahead), (across, up + 1.0, ahead)], 0.11, pick(rng, METALS), POLE)
    p.board(across - 0.24, up, across + 0.24, up + 1.05, ahead, (38, 40, 42), SIGN)
    lit = rng.integers(3)
    for lamp, color in enumerate([(60, 240, 130), (255, 180, 40), (255, 50, 40)]):
        glow = scale(color, 1.6 if lamp == lit else 0.3)
        p.disc((across, up + 0.2 + 0.32 * lamp, ahead), 0.12, glow, SIGN)


def bin_box(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw a bin or a box; street furniture is void."""
    half, height = rng.uniform(0.25, 0.5), rng.uniform(0.8, 1.4)
    color = pick(rng, BOARDS + METALS, 15)
    p.board(across - half, 0, across + half, height, ahead, color, VOID)
