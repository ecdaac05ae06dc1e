"""SegNet's decoder puts values where the encoder's maxima were, on small networks."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax import models
from segjax.models import segnet
from segjax.ops.pooling import max_unpool
from support.variables import abstract

WIDTH, CLASSES, SIZE = 3, 2, (13, 11)  # sides that halve to odd ones
# Of the last unpooling: the encoder's block before its pooling, the decoder's block before it, and
# the decoder's blocks after it.
LAST_LEVEL = {
    "segnet": ("conv1_2", "conv2_1_D", ["conv1_2_D", "conv1_1_D"]),
    "segnet_basic": ("conv1", "conv_decode2", ["conv_decode1", "conv_classifier"]),
}
ENCODER_START = {"segnet": ["conv1_1", "conv1_2"], "segnet_basic": ["conv1"]}
NAMES = sorted(LAST_LEVEL)
OPEN = 50.0  # a shift so far from zero that a ReLU after it is the identity


@functools.cache
def small(name):
    """Return a model and variables: random kernels and scales, no bias, statistics 0 and 1."""
    model = models.create(name, CLASSES, width=WIDTH)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape)
        return np.full(leaf.shape, path[-1].key == "var")

    variables = jax.tree.map_with_path(fill, abstract(model))
    return model, jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)


def edited(variables, changes):
    """Replace some parameters, named by their paths."""

    def edit(path, leaf):
        value = changes.get("/".join(key.key for key in path), leaf)
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), leaf.shape)

    return variables | {"params": jax.tree.map_with_path(edit, variables["params"])}


def passing(kernel, mix=None):
    """Return a kernel of this shape that keeps each pixel at its place, channels mixed or kept."""
    side, _, c_in, c_out = kernel.shape
    through = np.zeros_like(kernel)
    through[side // 2, side // 2] = np.eye(c_in, c_out) if mix is None else mix
    return through


def transparent(name):
    """Return a small model whose first and last level keep pixels, and its classifier's mix."""
    model, variables = small(name)
    _, before, (decoder, classifier) = LAST_LEVEL[name]
    params = variables["params"]
    mix = np.array([[1.0, -2.0], [3.0, 0.5], [-1.5, 4.0]], np.float32)
    changes = {f"{classifier}/kernel": passing(params[classifier]["kernel"], mix)}
    for block in (*ENCODER_START[name], decoder):
        changes[f"{block}/conv/kernel"] = passing(params[block]["conv"]["kernel"])
        changes[f"{block}/bn/scale"] = 1.0
    changes[f"{before}/bn/bias"] = OPEN
    return model, edited(variables, changes), mix


def scene(seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, (1, *SIZE, 3)).astype(np.float32)


def argmax_mask(x):
    """Return the place of the first maximum of each 2x2 window of (H, W, C)."""
    mask = np.zeros(x.shape, bool)
    for i, j, c in np.ndindex(-(-x.shape[0] // 2), -(-x.shape[1] // 2), x.shape[2]):
        patch = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = np.unravel_index(patch.argmax(), patch.shape)
        mask[2 * i + row, 2 * j + column, c] = True
    return mask


def output_moves_with_the_maximum(name):
    """Move a maximum within its window, the pooled map unchanged: the output moves with it."""
    model, variables, _ = transparent(name)
    apply = jax.jit(functools.partial(model.apply, train=False))
    window = [(6, 4), (6, 5), (7, 4), (7, 5)]
    image = scene()
    for row, column in window:
        image[0, row, column] *= 0.1  # so that the maximum is the one we place
    logits = {}
    for place in window:
        moved = image.copy()
        moved[0, *place] = 3.0, 4.0, 5.0  # the maximum of every channel
        logits[place] = np.asarray(apply(variables, moved))[0]
    value = logits[6, 4][6, 4]
    outside = np.ones(SIZE, bool)
    outside[6:8, 4:6] = False
    for place, other in itertools.product(window, window):
        # At its new place is what was at the old one, which is empty now, and nothing else moved.
        expected = value if place == other else np.zeros(CLASSES)
        np.testing.assert_allclose(logits[place][other], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(logits[place][outside], logits[other][outside])
    assert np.abs(value).min() > 1


def gradient_lies_where_the_maxima_were(name):
    """Raise one channel before the last unpooling: the logits change only at its maxima."""
    model, variables, mix = transparent(name)
    image = scene(1)
    _, before, _ = LAST_LEVEL[name]

    def logits(shift):
        changed = edited(variables, {f"{before}/bn/bias": shift})
        return model.apply(changed, image, train=False)[0]

    shift = jnp.full(WIDTH, OPEN, jnp.float32)
    jacobian = np.asarray(jax.jit(jax.jacrev(logits))(shift))  # (H, W, K, C)
    # The first level hands the image on, so the maxima are the image's own.
    maxima = argmax_mask(image[0])
    assert maxima.mean() < 0.31  # one in four, and more where windows are cut
    expected = maxima[:, :, None, :] * mix.T / math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-4, atol=1e-5)


def reach_is_the_kernel_around_each_maximum(name):
    """Check that a logit depends only on values whose maxima were within the kernels' reach."""
    model, variables = small(name)
    encoder, _, (decoder, _) = LAST_LEVEL[name]
    reach = {"segnet": 2, "segnet_basic": 3}[name]  # pixels: two 3x3 kernels, one of 7x7
    variables = edited(variables, {f"{decoder}/bn/bias": OPEN})
    image, pixel = scene(2), (5, 6)
    pooled = (-(-SIZE[0] // 2), -(-SIZE[1] // 2), WIDTH)
    unpool = segnet.max_unpool

    def logit(shift):
        def shifted(y, indices, shape):
            return unpool(y + shift if y.shape[1:] == pooled else y, indices, shape)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segnet, "max_unpool", shifted)
            logits, state = model.apply(
                variables, image, train=False, mutable="intermediates", capture_intermediates=True
            )
        return logits[0, *pixel, 0], state["intermediates"][encoder]["__call__"][0]

    gradient, encoded = jax.jit(jax.grad(logit, has_aux=True))(jnp.zeros((1, *pooled)))
    maxima = argmax_mask(np.asarray(encoded)[0])
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    near = (abs(rows - pixel[0]) <= reach) & (abs(columns - pixel[1]) <= reach)
    felt = maxima & near[..., None]
    padded = np.pad(felt, [(0, -side % 2) for side in SIZE] + [(0, 0)])
    expected = padded.reshape(pooled[0], 2, pooled[1], 2, WIDTH).any((1, 3))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(np.asarray(gradient)[0] != 0, expected)


PROPERTIES = [
    output_moves_with_the_maximum,
    gradient_lies_where_the_maxima_were,
    reach_is_the_kernel_around_each_maximum,
]


@pytest.mark.parametrize("holds", PROPERTIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_depends_on_where_the_maxima_were(name, holds):
    holds(name)


def nearest(y, indices, shape):
    """Upsample by repetition."""
    return y.repeat(2, axis=1).repeat(2, axis=2)[:, : shape[1], : shape[2]]


def bed_of_nails(y, indices, shape):
    """Upsample by putting each value in the corner of its window."""
    return max_unpool(y, jnp.zeros_like(indices), shape)


@pytest.mark.parametrize("upsample", [nearest, bed_of_nails])
@pytest.mark.parametrize("holds", PROPERTIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_without_indices_fails_the_same_checks(name, holds, upsample, monkeypatch):
    monkeypatch.setattr(segnet, "max_unpool", upsample)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        holds(name)


# Encoder's block before each pooling and decoder's block after the matching unpooling, from the
# deepest, and the block whose map is unpooled (none: the pooled map itself).
LEVELS = {
    "segnet": [
        ("conv5_3", "conv5_3_D", None),
        ("conv4_3", "conv4_3_D", "conv5_1_D"),
        ("conv3_3", "conv3_3_D", "conv4_1_D"),
        ("conv2_2", "conv2_2_D", "conv3_1_D"),
        ("conv1_2", "conv1_2_D", "conv2_1_D"),
    ],
    "segnet_basic": [
        ("conv4", "conv_decode4", None),
        ("conv3", "conv_decode3", "conv_decode4"),
        ("conv2", "conv_decode2", "conv_decode3"),
        ("conv1", "conv_decode1", "conv_decode2"),
    ],
}


@functools.cache
def inside(name):
    """Return variables, and the output of each block of a small model, (1, H, W, C)."""
    model, variables = small(name)
    image = np.random.default_rng(3).normal(size=(1, 45, 61, 3)).astype(np.float32)
    apply = functools.partial(
        model.apply, train=False, mutable="intermediates", capture_intermediates=True
    )
    return variables, jax.jit(apply)(variables, image)[1]["intermediates"]


@pytest.mark.parametrize("name", NAMES)
def test_basics_decoder_alone_is_linear(name):
    _, inner = inside(name)
    for block in inner:
        if block.startswith("conv") and "bn" in inner[block]:
            least = np.min(inner[block]["__call__"][0])
            assert (least < 0) == block.startswith("conv_decode"), block


@pytest.mark.parametrize("name", NAMES)
def test_every_level_unpools_with_the_maxima_of_its_own_pooling(name):
    variables, inner = inside(name)
    for encoder, decoder, unpooled in LEVELS[name]:
        x = np.asarray(inner[encoder]["__call__"][0])[0]
        maxima = argmax_mask(x)
        if unpooled is None:
            expected = np.where(maxima, x, 0)
        else:
            y = np.asarray(inner[unpooled]["__call__"][0])[0]
            spread = y.repeat(2, axis=0).repeat(2, axis=1)[: x.shape[0], : x.shape[1]]
            expected = np.where(maxima, spread, 0)
        conv = variables["params"][decoder]["conv"]
        convolved = lax.conv_general_dilated(
            expected[None],
            conv["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        found = np.asarray(inner[decoder]["conv"]["__call__"][0])
        assert found.std() > 0
        np.testing.assert_allclose(
            found - conv["bias"], convolved, atol=1e-5 * np.abs(found).max(), err_msg=decoder
        )
