"""The layout of a scene in meters, before it is drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from segjax.data.streetscenes import buildings, objects, traffic
from segjax.data.streetscenes.objects import chance
from segjax.data.streetscenes.painter import NEAR, Camera, Light, Place, mix

FAR = 100.0
"""Meters to the end of the street."""


@dataclass
class Scene:
    """A street: the road, a pavement on each side, and the things on and beside them.

    `things` are (meters ahead, a function of `buildings`, `objects` or `traffic`, its arguments
    after the painter and the random numbers).
    """

    camera: Camera
    light: Light
    road: float  # meters from the middle of the road to its edge
    pavements: dict[int, float]  # side -> width; the left is -1, the right 1
    junctions: list[tuple[int, float, float]] = field(default_factory=list)  # side, near, far
    things: list[tuple[float, Callable[..., None], tuple[float, ...]]] = field(default_factory=list)
    shadows: list[list[Place]] = field(default_factory=list)

    def put(self, ahead: float, draw: Callable[..., None], *arguments: float) -> None:
        """Add a thing; things farther ahead are drawn first."""
        self.things.append((ahead, draw, arguments))

    def cast(self, across: float, near: float, far: float, height: float) -> None:
        """Add the shadow on the ground of a wall along the street, if there is sun."""
        if self.light.direct:
            slope = height / self.light.sun[1]
            x, z = -self.light.sun[0] * slope, -self.light.sun[2] * slope
            shadow = [(across, 0.0, near), (across, 0.0, far)]
            self.shadows.append([*shadow, (across + x, 0.0, far + z), (across + x, 0.0, near + z)])


def lay_out(rng: np.random.Generator, aspect: float) -> Scene:
    """Lay out a random scene for images whose width is `aspect` times their height."""
    road = rng.uniform(3.6, 6.0)
    pavements = {side: rng.uniform(1.8, 5.0) for side in (-1, 1)}
    scene = Scene(_camera(rng, aspect, road), _light(rng), road, pavements)
    _horizon(scene, rng)
    urban = rng.random()
    for side in (-1, 1):
        _frontage(scene, rng, side, urban)
        _curbside(scene, rng, side)
    _traffic(scene, rng)
    return scene


def _camera(rng: np.random.Generator, aspect: float, road: float) -> Camera:
    return Camera(
        height=rng.uniform(1.25, 1.7),
        across=-road * rng.uniform(0.15, 0.5),  # traffic keeps left, as in CamVid
        focal=rng.uniform(0.95, 1.3),
        horizon=rng.uniform(0.44, 0.57),
        center=aspect * rng.uniform(0.37, 0.63),
        bend=rng.normal() / 600,
    )


def _light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.1)
    flat = math.cos(elevation)
    sun = (flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth))
    direct = rng.uniform(0.4, 0.9) if chance(rng, 0.6) else 0.0
    ambient = rng.uniform(0.85, 1.05) - 0.45 * direct
    haze = mix((206, 214, 222), (236, 222, 204), rng.random())
    return Light(sun, direct, ambient, haze, visibility=rng.uniform(120, 500))


def _horizon(scene: Scene, rng: np.random.Generator) -> None:
    """Close the view with a row of distant houses and woods, sometimes a house across the end."""
    for across in np.arange(-140.0, 141, 20).tolist():
        ahead = rng.uniform(FAR + 5, FAR + 60)
        if chance(rng, 0.5):
            scene.put(ahead, objects.bush, across, ahead, rng.uniform(5, 13))
        else:
            scene.put(ahead, buildings.end_building, across, ahead, 24, rng.uniform(5, 16))
    if chance(rng, 0.3):
        across, ahead = rng.normal(0, 6), rng.uniform(60, FAR)
        width, height = rng.uniform(15, 40), rng.uniform(7, 16)
        scene.put(ahead, buildings.end_building, across, ahead, width, height)


def _frontage(scene: Scene, rng: np.random.Generator, side: int, urban: float) -> None:
    """Line one side of the street with plots: houses, gardens, parks and side roads.

    A plot's houses and trees are drawn as if at its far end, then its boundary, then the things
    before it on the pavement and the road.
    """
    edge = side * (scene.road + scene.pavements[side])
    near, height = rng.uniform(-8, 0), rng.uniform(6, 16)
    while near < FAR:
        far = near + rng.uniform(7, 22)
        kind = rng.random()
        if near > 8 and chance(rng, 0.12):
            far = near + rng.uniform(7, 11)
            scene.junctions.append((side, near, far))
        elif kind < 0.4 + 0.6 * urban:
            height = max(4.5, height + rng.normal() * 2)
            setback = 0.0 if chance(rng, 0.35 + 0.5 * urban) else rng.uniform(3, 7)
            if far > NEAR:
                scene.put(far, buildings.building, side, edge + side * setback, near, far, height)
                scene.cast(edge + side * setback, max(near, NEAR), far, height)
            if setback:
                _boundary(scene, rng, side, near, far)
        else:
            _park(scene, rng, side, near, far)
            _boundary(scene, rng, side, near, far)
        near = far


def _park(scene: Scene, rng: np.random.Generator, side: int, near: float, far: float) -> None:
    """Put trees on a plot, drawn as a wood where they are far away."""
    edge = side * (scene.road + scene.pavements[side])
    for ahead in np.arange(far, max(near, 5), -rng.uniform(4, 7)).tolist():
        across, height = edge + side * rng.uniform(2, 10), rng.uniform(5, 12)
        order = far + ahead / 1000
        if ahead > 35:
            scene.put(order, objects.bush, across + 4 * side, ahead, 0.7 * height)
        else:
            scene.put(order, objects.tree, across, ahead, height)
            scene.cast(across, ahead - 0.2 * height, ahead + 0.2 * height, 0.8 * height)


def _boundary(scene: Scene, rng: np.random.Generator, side: int, near: float, far: float) -> None:
    """Put a fence, a hedge or nothing between the pavement and a plot."""
    if far < NEAR + 1:
        return
    edge = side * (scene.road + scene.pavements[side])
    kind = rng.random()
    if kind < 0.42:
        scene.put(far - 0.01, objects.fence, side, edge, near, far)
    elif kind < 0.65:
        scene.put(far - 0.01, objects.hedge, edge + 0.5 * side, near, far, rng.uniform(0.8, 2.2))


def _curbside(scene: Scene, rng: np.random.Generator, side: int) -> None:
    """Put posts, signs, trees and people on a pavement, and parked cars beside it."""
    curb, width = side * (scene.road + 0.4), scene.pavements[side]
    if chance(rng, 0.75):
        for ahead in np.arange(rng.uniform(8, 24), 100, rng.uniform(14, 26)).tolist():
            scene.put(ahead, objects.lamp_post, curb, ahead)
            scene.cast(curb, ahead - 0.08, ahead + 0.08, 7)
    for draw, rate, nearest in (
        (objects.sign_post, 2.2, 7),
        (objects.traffic_light, 0.8, 8),
        (objects.sign_board, 0.5, 9),
        (objects.bin_box, 0.7, 6),
    ):
        for _ in range(rng.poisson(rate)):
            ahead = nearest + 45 * rng.random() ** 1.5
            scene.put(ahead, draw, curb + side * rng.uniform(0, 0.4 * width), ahead)
    if chance(rng, 0.25):
        for ahead in np.arange(rng.uniform(6, 14), 60, rng.uniform(8, 16)).tolist():
            height = rng.uniform(4, 8)
            scene.put(ahead, objects.tree, curb + 0.5 * side, ahead, height)
            scene.cast(curb, ahead - 0.2 * height, ahead + 0.2 * height, 0.8 * height)
    for _ in range(rng.poisson(2.0)):
        ahead = 6 + 30 * rng.random() ** 1.5
        scene.put(ahead, traffic.pedestrian, curb + side * rng.uniform(0.1, 0.8 * width), ahead)
    if chance(rng, 0.45):
        for ahead in np.arange(rng.uniform(5, 18), rng.uniform(20, 55), 6.2).tolist():
            if chance(rng, 0.7):
                across, heading = side * (scene.road - 1.0), 0.0 if side < 0 else math.pi
                scene.put(ahead, traffic.car, across, ahead, rng.normal(heading, 0.02))


def _traffic(scene: Scene, rng: np.random.Generator) -> None:
    """Put cars, cyclists and pedestrians on the road."""
    lane, quarter = 0.45 * scene.road, math.pi / 2
    if chance(rng, 0.6):
        ahead = 6.5 + 25 * rng.random() ** 1.5
        scene.put(ahead, traffic.car, rng.normal(-lane, 0.3), ahead, rng.normal(0, 0.04))
    ahead = rng.uniform(7, 30)
    while ahead < 80 and chance(rng, 0.6):
        scene.put(ahead, traffic.car, rng.normal(lane, 0.2), ahead, rng.normal(math.pi, 0.04))
        ahead += rng.uniform(9, 30)
    for side, near, far in scene.junctions:
        if chance(rng, 0.3):
            across, ahead = side * rng.uniform(2, 9), (near + far) / 2
            scene.put(ahead, traffic.car, across, ahead, quarter if chance(rng, 0.5) else -quarter)
    if chance(rng, 0.45):
        across, ahead = scene.road * rng.uniform(-0.9, 0.9), 5.5 + 15 * rng.random()
        heading = 0.0 if across < 0 else math.pi
        if chance(rng, 0.4):  # crossing the road
            heading += quarter
        scene.put(ahead, traffic.cyclist, across, ahead, rng.normal(heading, 0.3))
    if chance(rng, 0.15):
        across, ahead = scene.road * rng.uniform(-0.8, 0.8), rng.uniform(9, 30)
        scene.put(ahead, traffic.pedestrian, across, ahead)
