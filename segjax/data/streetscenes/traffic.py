"""Cars, pedestrians and cyclists, drawn as in `objects`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segjax.data.streetscenes.objects import (
    BOARDS,
    CLOTHES,
    GLASS,
    METALS,
    PAINTS,
    RED,
    RUBBER,
    SKINS,
    WHITE,
    chance,
    pick,
    turned,
)
from segjax.data.streetscenes.painter import (
    BICYCLIST,
    CAR,
    PEDESTRIAN,
    ROAD,
    UP,
    Color,
    Painter,
    Place,
    mix,
    scale,
)

# Clockwise as seen from the right side of the vehicle.
CIRCLE = [(math.cos(turn * math.pi / 6), -math.sin(turn * math.pi / 6)) for turn in range(12)]

# Side views from the tail over the roof to the nose: (share of the length, meters up).
HATCHBACK = [(0.0, 0.3), (0.0, 0.8), (0.03, 0.95), (0.1, 1.42), (0.55, 1.45), (0.74, 0.95)]
HATCHBACK += [(0.97, 0.78), (1.0, 0.6), (1.0, 0.28)]
SEDAN = [(0.0, 0.3), (0.0, 0.75), (0.02, 0.95), (0.16, 1.0), (0.28, 1.4), (0.58, 1.4)]
SEDAN += [(0.74, 0.95), (0.97, 0.8), (1.0, 0.6), (1.0, 0.28)]
VAN = [(0.0, 0.35), (0.0, 1.1), (0.01, 1.2), (0.03, 2.0), (0.72, 2.05), (0.85, 1.2)]
VAN += [(0.98, 1.0), (1.0, 0.7), (1.0, 0.3)]
BUS = [(0.0, 0.35), (0.0, 1.75), (0.01, 3.0), (0.98, 3.0), (1.0, 1.75), (1.0, 0.35)]
BODIES = [(HATCHBACK, 4.0, 1.7), (SEDAN, 4.5, 1.75), (VAN, 5.2, 1.95), (BUS, 9.5, 2.5)]
BODY_SHARES = [0.48, 0.32, 0.16, 0.04]

SHADOW_ON_ROAD: Color = (34, 35, 38)
BUMPER: Color = (58, 60, 62)
HUB: Color = (136, 138, 140)
PLATE: Color = (222, 206, 120)


@dataclass(frozen=True)
class _Body:
    """A car: its profile, extruded over its width, at a place and heading."""

    profile: list[tuple[float, float]]
    length: float
    width: float
    across: float
    ahead: float
    heading: float

    @cached_property
    def roof(self) -> float:
        return max(up for _, up in self.profile)

    @cached_property
    def belt(self) -> float:
        """Height of the windows' lower edge in meters; above it the sides lean inward."""
        return 0.62 * self.roof

    @cached_property
    def frame(self) -> Callable[..., Place]:
        return turned(self.across, self.ahead, self.heading)

    def point(self, share: float, up: float, side: float) -> Place:
        """Return a place on the car: share of the length from the tail, meters up, side -1 to 1."""
        lean = 1 - 0.16 * max(0.0, up - self.belt) / (self.roof - self.belt)
        forward, aside = (share - 0.5) * self.length, side * lean * self.width / 2
        return self.frame(forward, up, aside)

    def direction(self, forward: float, up: float, aside: float) -> Place:
        """Return a direction of the car in the street."""
        return turned(0, 0, self.heading)(forward, up, aside)


def car(
    p: Painter, rng: np.random.Generator, across: float, ahead: float, heading: float = 0.0
) -> None:
    """Draw a car, van or bus centered at a place, facing `heading` radians right of ahead."""
    profile, length, width = BODIES[rng.choice(len(BODIES), p=BODY_SHARES)]
    body = _Body(profile, length * rng.uniform(0.94, 1.06), width, across, ahead, heading)
    paint = pick(rng, PAINTS, 12)
    ground = [body.point(share, 0, side) for share, side in ((0, -1), (0, 1), (1, 1), (1, -1))]
    p.fill(ground, SHADOW_ON_ROAD, ROAD, UP)
    _skin(p, body, paint)
    if ahead < 35:
        _ends(p, rng, body)
    for side in (-1, 1):
        _flank(p, body, side, paint)


def _skin(p: Painter, body: _Body, paint: Color) -> None:
    """Draw tail, rear window, roof, windshield, hood and nose; high and steep faces are glass."""
    glass = mix(GLASS, p.light.haze, 0.15)
    edges = list(zip(body.profile, body.profile[1:], strict=False))
    if body.point(0, 0, 0)[2] < body.point(1, 0, 0)[2]:
        edges.reverse()  # far faces first: a profile is not convex
    for (s0, y0), (s1, y1) in edges:
        facing = body.direction(y0 - y1, (s1 - s0) * body.length, 0)
        facing = scale(facing, 1 / math.hypot(*facing))
        is_glass = min(y0, y1) > 0.9 * body.belt and abs(y1 - y0) > 0.3
        for half, color in ((1.0, paint), (0.86, glass)):
            face = [body.point(s0, y0, -half), body.point(s1, y1, -half)]
            face += [body.point(s1, y1, half), body.point(s0, y0, half)]
            if color is paint or is_glass:
                p.fill(face, color, CAR, facing, one_sided=True)


def _ends(p: Painter, rng: np.random.Generator, body: _Body) -> None:
    """Draw lamps, bumper, plate and the wheels below, at the tail and at the nose."""
    for share, turn, lamp in ((0, 1, RED), (1, -1, (240, 236, 214))):
        lit = scale(lamp, 1.5 if chance(rng, 0.3) else 1.0)
        patches = [(-0.95, -0.65, 0.62, 0.8, lit), (0.65, 0.95, 0.62, 0.8, lit)]
        patches += [(-0.98, 0.98, 0.3, 0.46, BUMPER), (-0.3, 0.3, 0.5, 0.61, PLATE)]
        patches += [(-0.95, -0.72, 0.0, 0.3, RUBBER), (0.72, 0.95, 0.0, 0.3, RUBBER)]
        for x0, x1, y0, y1, color in patches:
            corners = [body.point(share, y0, x0), body.point(share, y1, x0)]
            corners += [body.point(share, y1, x1), body.point(share, y0, x1)]
            facing = body.direction(-turn, 0, 0)
            if not p.fill(corners[::turn], color, CAR, facing, one_sided=True):
                break


def _flank(p: Painter, body: _Body, side: int, paint: Color) -> None:
    """Draw one side: its wall, the windows and two wheels."""

    def fill(shape: list[tuple[float, float]], color: Color) -> bool:
        # Shapes are given clockwise as seen from the right.
        places = [body.point(share, up, side) for share, up in shape[::side]]
        return p.fill(places, color, CAR, body.direction(0, 0, side), one_sided=True)

    if not fill(body.profile, paint):
        return
    top = [share for share, up in body.profile if up > 0.95 * body.roof]
    low, high, start, end = 1.03 * body.belt, 0.95 * body.roof, top[0], top[-1]
    glass = mix(GLASS, p.light.haze, 0.1)
    fill([(start - 0.02, low), (start + 0.03, high), (end - 0.02, high), (end + 0.1, low)], glass)
    for pillar in ((start + end) / 2 - 0.02, end - 0.04):
        frame = [(pillar, low), (pillar, high), (pillar + 0.015, high), (pillar + 0.015, low)]
        fill(frame, paint)
    for axle in (0.19, 0.81):
        for radius, color in ((0.33, RUBBER), (0.19, HUB)):
            stretch = radius / body.length
            fill([(axle + stretch * x, 0.33 + radius * y) for x, y in CIRCLE], color)


def _head(p: Painter, rng: np.random.Generator, place: Place, label: int) -> None:
    """Draw a head with hair, a cap or a helmet."""
    across, up, ahead = place
    p.disc((across, up + 0.03, ahead), 0.13, pick(rng, [*CLOTHES, WHITE, RED], 15), label, 1.2)
    p.disc((across, up - 0.04, ahead), 0.1, pick(rng, SKINS), label, 1.2)


def pedestrian(p: Painter, rng: np.random.Generator, across: float, ahead: float) -> None:
    """Draw a person who stands or walks, with or without a bag."""
    tall = rng.uniform(0.85, 1.08)  # times 1.75 m
    stride, lean = rng.uniform(-0.3, 0.3), rng.uniform(-0.06, 0.06)
    coat, trousers = pick(rng, CLOTHES, 20), pick(rng, CLOTHES, 15)

    def at(x: float, y: float) -> Place:
        return across + (x + lean * y) * tall, y * tall, ahead

    for foot in (-0.1 - stride, 0.1 + stride):
        p.stroke([at(0.25 * foot, 0.85), at(foot, 0.04)], 0.19, trousers, PEDESTRIAN)
    for hand in (-1, 1):
        tip = at(hand * 0.32 - 0.5 * stride, 0.82)
        p.stroke([at(hand * 0.2, 1.4), tip], 0.13, scale(coat, 0.85), PEDESTRIAN)
    hem = rng.uniform(0.55, 0.85)
    torso = [at(-0.2, hem), at(-0.24, 1.42), at(-0.1, 1.5), at(0.1, 1.5), at(0.24, 1.42)]
    p.fill([*torso, at(0.2, hem)], coat, PEDESTRIAN)
    if chance(rng, 0.3):
        bag = [at(0.2, 0.6), at(0.2, 1.0), at(0.45, 1.0), at(0.45, 0.6)]
        p.fill(bag, pick(rng, BOARDS), PEDESTRIAN)
    _head(p, rng, at(0, 1.62), PEDESTRIAN)


def cyclist(
    p: Painter, rng: np.random.Generator, across: float, ahead: float, heading: float
) -> None:
    """Draw a cyclist; `heading` 0 is seen from behind, a right angle from the side."""
    at = turned(across, ahead, heading)
    metal, coat = pick(rng, METALS + PAINTS), pick(rng, CLOTHES + BOARDS, 20)
    trousers = pick(rng, CLOTHES, 15)
    for axle in (-0.52, 0.52):
        for radius, color in ((0.36, RUBBER), (0.28, (104, 104, 104))):
            rim = [at(axle + radius * x, 0.36 + radius * y) for x, y in CIRCLE]
            p.fill(rim, color, BICYCLIST)
        p.stroke([at(axle, 0), at(axle, 0.72)], 0.05, RUBBER, BICYCLIST)
    saddle, crank, bar = at(-0.2, 0.95), at(-0.05, 0.32), at(0.4, 1.0)
    p.stroke([at(-0.52, 0.36), saddle, at(0.42, 0.85), crank, saddle], 0.06, metal, BICYCLIST)
    p.stroke([at(0.52, 0.36), bar], 0.06, metal, BICYCLIST)
    p.stroke([at(0.4, 1.02, -0.28), at(0.4, 1.02, 0.28)], 0.06, metal, BICYCLIST)
    for side, lift in ((-0.1, 0.15), (0.1, -0.05)):
        knee, foot = at(0.12, 0.68 + lift, side), at(-0.02, 0.25 + lift, side)
        p.stroke([at(-0.2, 0.98, side), knee, foot], 0.17, trousers, BICYCLIST)
    hip, neck = at(-0.2, 0.98), at(0.12, 1.46)
    p.stroke([hip, neck], 0.4, coat, BICYCLIST)
    for side in (-0.24, 0.24):
        p.stroke([at(0.1, 1.42, 0.8 * side), at(0.4, 1.05, side)], 0.11, coat, BICYCLIST)
    _head(p, rng, at(0.2, 1.66), BICYCLIST)
