"""Fully connected CRF of Kraehenbuehl & Koltun (NIPS 2011), by mean-field inference.

Each pair of pixels with different labels costs
w1 exp(-|p|^2 / 2 a^2 - |I|^2 / 2 b^2) + w2 exp(-|p|^2 / 2 g^2): p the distance in pixels, I the
difference of the colors, 0 to 255. An iteration sums over all pairs by filtering: exactly for the
second kernel, on a permutohedral lattice (Adams, Baek & Davis 2010) for the first.

As in the authors' code, and unlike the paper, the kernels are normalized symmetrically, k(i, j) /
sqrt(sum_j k(i, j) sum_i k(i, j)), and the message to a pixel includes its own label. Unlike the
code, the lattice also holds the neighbors of its occupied points: without them the blur loses what
passes through a missing point, and the kernel is not symmetric.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import UserError

ITERATIONS = 10


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Weights and widths of the two kernels."""

    pos_w: float  # of the smoothness kernel
    pos_std: float  # g, pixels
    bi_w: float  # of the appearance kernel
    bi_xy: float  # a, pixels
    bi_rgb: float  # b, of 0 to 255


# DeepLab's first and second version, for VOC images of about 500x375.
PRESETS = {"v1": Parameters(3, 3, 4, 121, 5), "v2": Parameters(3, 1, 4, 67, 3)}


def parse(text: str) -> Parameters:
    """Return the preset of a name, or the parameters of five comma-separated numbers.

    Raises:
      UserError: it is neither, a weight is negative, or a width is not positive.
    """
    if text in PRESETS:
        return PRESETS[text]
    names = [field.name for field in dataclasses.fields(Parameters)]
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(names):
        raise UserError(
            f"CRF {text!r}, expected {', '.join(PRESETS)} or five numbers {','.join(names)}"
        )
    for name, value in zip(names, values, strict=True):
        weight = name.endswith("_w")
        if not math.isfinite(value) or value < 0 or (value == 0 and not weight):
            least = "of at least 0" if weight else "above 0"
            raise UserError(f"CRF {name} is {value:g}, expected a number {least}")
    return Parameters(*values)


def describe(parameters: Parameters) -> str:
    """Return the name of the preset or the five numbers, the inverse of `parse`."""
    for name, preset in PRESETS.items():
        if parameters == preset:
            return name
    return ",".join(f"{value:g}" for value in dataclasses.astuple(parameters))


def refine(parameters: Parameters, image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the marginals after ITERATIONS of mean field; unary energies -log(probabilities).

    Args:
      parameters: of the kernels.
      image: uint8 (H, W, C).
      probabilities: float32 (H, W, K).

    Returns:
      float32 (H, W, K).

    Raises:
      UserError: the widths are too small for a lattice.
    """
    height, width, channels = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float32) / parameters.bi_xy
    color = image.reshape(-1, channels).astype(np.float32) / parameters.bi_rgb
    features = np.column_stack([y.ravel(), x.ravel(), color]).astype(np.float32)
    try:
        lattice = build_lattice(features)
    except OverflowError:
        raise UserError(
            f"CRF bi_xy {parameters.bi_xy:g} and bi_rgb {parameters.bi_rgb:g} are too small for "
            f"an image of {height}x{width}"
        ) from None
    gaussians = [_normalized_gaussian(size, parameters.pos_std) for size in (height, width)]
    scores = jnp.log(jnp.maximum(probabilities, np.finfo(np.float32).tiny))
    scale = jax.lax.rsqrt(_filter(lattice, jnp.ones((len(features), 1), jnp.float32)))
    weights = np.float32(parameters.pos_w), np.float32(parameters.bi_w)
    marginals = jax.nn.softmax(scores)
    for _ in range(ITERATIONS):
        smooth = _smooth(gaussians, marginals)
        alike = _alike(lattice, scale, marginals)
        marginals = _update(scores, smooth, alike, weights)
    return np.asarray(marginals)


# Compiled separately: in one program the compiler recomputes the sums wherever they are read.


@jax.jit
def _smooth(gaussians, marginals):
    """Filter by the smoothness kernel, over rows, then over columns: (H, W, K)."""
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    over_rows = product("hi,iwk->hwk", gaussians[0], marginals)
    return product("vw,hwk->hvk", gaussians[1], over_rows)


@jax.jit
def _alike(lattice, scale, marginals):
    """Filter by the appearance kernel: (H, W, K)."""
    values = marginals.reshape(-1, marginals.shape[-1])
    return (scale * filter_lattice(lattice, scale * values)).reshape(marginals.shape)


@jax.jit
def _update(scores, smooth, alike, weights):
    """Return the new marginals: (H, W, K); equal labels gain what different ones cost."""
    return jax.nn.softmax(scores + weights[0] * smooth + weights[1] * alike)


def _normalized_gaussian(size, std):
    """Return exp(-d^2 / 2 std^2) over the root of its row sum and column sum: (size, size)."""
    place = np.arange(size)
    kernel = np.exp(-((place[:, None] - place) ** 2) / (2 * std**2))
    root = np.sqrt(kernel.sum(1))
    return (kernel / root[:, None] / root).astype(np.float32)


Lattice = tuple[jax.Array, jax.Array, jax.Array]


def build_lattice(features: np.ndarray) -> Lattice:
    """Build the permutohedral lattice that filters by exp(-|f_i - f_j|^2 / 2), up to a factor.

    Args:
      features: float32 (N, d), of N points.

    Returns:
      corners: int32 (N, d + 1), the lattice points of the simplex around each point.
      shares: float32 (N, d + 1), barycentric weights of the corners.
      neighbors: int32 (d + 1, 2, M), of each lattice point along each axis; M - 1, whose value is
        always zero, where there is none.

    Raises:
      OverflowError: a feature is above 1e4, or the lattice too large to number in 63 bits.
    """
    if np.abs(features).max() > 1e4:  # float32 could not resolve positions in a simplex
        raise OverflowError("the features are too large")
    corners, shares = _simplices(features)
    count, axes, dimensions = corners.shape

    # Lattice points are numbered so that a step along an axis adds the same number everywhere; in
    # this order neighbors are close in memory.
    margin = 3 * axes  # neighbors are at most two steps away
    low = corners.min((0, 1)) - margin
    sizes = (corners.max((0, 1)) + margin - low + 1).tolist()
    if math.prod(sizes) >= 2**63:
        raise OverflowError("the lattice has too many points")
    places = np.array([math.prod(sizes[:k]) for k in range(dimensions)], np.int64)
    steps = axes * np.append(places, 0) - places.sum()

    numbers = (corners - low).astype(np.int64) @ places
    occupied, which = np.unique(numbers, return_inverse=True)
    beside = [occupied + sign * step for step in steps for sign in (1, -1)]
    points = np.unique(np.concatenate([occupied, *beside]))
    index = np.searchsorted(points, occupied)[which.reshape(count, axes)]

    total = _rounded_up(len(points) + 1)
    neighbors = np.full((axes, 2, total), total - 1, np.int32)
    for axis, step in enumerate(steps):
        place = np.minimum(np.searchsorted(points, points + step), len(points) - 1)
        found = np.flatnonzero(points[place] == points + step)
        neighbors[axis, 0, found] = place[found]
        neighbors[axis, 1, place[found]] = found
    return jnp.asarray(index, jnp.int32), jnp.asarray(shares), jnp.asarray(neighbors)


def _rounded_up(count):
    """Round up to one of four sizes an octave, so that few programs are compiled."""
    quarter = 2 ** max(0, count.bit_length() - 3)
    return -(-count // quarter) * quarter


def _simplices(features):
    """Return the first d coordinates of corners, int32 (N, d + 1, d), and shares (N, d + 1)."""
    count, dimensions = features.shape
    axes = dimensions + 1
    # Splatting, blurring and slicing spread a point with a variance of 2 (d + 1)^2 / 3.
    ranks = np.arange(1, axes, dtype=np.float32)
    scaled = features * (axes * np.sqrt(2 / 3 / (ranks * (ranks + 1)))).astype(np.float32)

    # Embed in the hyperplane of R^(d + 1) where the coordinates sum to 0.
    elevated = np.zeros((count, axes), np.float32)
    elevated[:, :-1] = np.cumsum(scaled[:, ::-1], 1)[:, ::-1]
    elevated[:, 1:] -= ranks * scaled

    # The nearest point whose coordinates are multiples of d + 1, and the order of the residuals.
    nearest = np.rint(elevated / axes).astype(np.int32)
    residual = elevated - nearest * axes
    rank = np.repeat(nearest.sum(1, keepdims=True), axes, 1)
    for i in range(axes):
        for j in range(i + 1, axes):
            less = residual[:, i] < residual[:, j]
            rank[:, i] += less
            rank[:, j] += ~less
    # Where the sum is not 0, the coordinates that were rounded most are rounded the other way.
    turn = (rank < 0).astype(np.int32) - (rank > dimensions)
    nearest = (nearest + turn) * axes
    rank += turn * axes

    ascending = np.empty((count, axes), np.float32)
    np.put_along_axis(ascending, dimensions - rank, (elevated - nearest) / axes, 1)
    shares = np.empty((count, axes), np.float32)
    shares[:, 1:] = np.diff(ascending)
    shares[:, 0] = 1 - shares[:, 1:].sum(1)

    corner = np.arange(axes, dtype=np.int32)[:, None]
    offset = np.where(rank[:, None, :-1] <= dimensions - corner, corner, corner - axes)
    return nearest[:, None, :-1] + offset, shares


def filter_lattice(lattice: Lattice, values: jax.Array) -> jax.Array:
    """Return the kernel-weighted sums of values over the points: (N, K) to (N, K)."""
    corners, shares, neighbors = lattice
    points = jnp.zeros((neighbors.shape[-1], values.shape[-1]), values.dtype)
    for corner in range(corners.shape[1]):
        share = shares[:, corner, None]
        points = points.at[corners[:, corner]].add(share * values)

    def blur(points, beside):
        return points + 0.5 * (points[beside[0]] + points[beside[1]]), None

    # A scan: unrolled, the compiler recomputes an axis for every point that reads it.
    points, _ = jax.lax.scan(blur, points, neighbors)
    sliced = [
        shares[:, corner, None] * points[corners[:, corner]] for corner in range(corners.shape[1])
    ]
    return sum(sliced[1:], sliced[0])


_filter = jax.jit(filter_lattice)
