"""U-Net: sizes, parameters, borders, tiles, reach of each skip, logits against PyTorch's."""

import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden.make_unet import CLASSES, WIDTH, parameters
from segjax import models
from segjax.models import unet
from support.errors import refusal
from support.variables import abstract

GOLDEN = Path(__file__).parents[1] / "golden" / "unet.npz"
LEVELS = range(4)
# In the order of the network, going down and up again.
DOWN = [f"conv_d{k}{step}" for k in range(5) for step in ("a-b", "b-c")]
UP = [
    *("upconv_d4c_u3a", "conv_u3b-c", "conv_u3c-d", "upconv_u3d_u2a", "conv_u2b-c", "conv_u2c-d"),
    *("upconv_u2d_u1a", "conv_u1b-c", "conv_u1c-d", "upconv_u1d_u0a", "conv_u0b-c", "conv_u0c-d"),
]
UPCONV = ("upconv_u1d_u0a", "upconv_u2d_u1a", "upconv_u3d_u2a", "upconv_d4c_u3a")  # by level
# Figure 1: (568 - 392) / 2, (280 - 200) / 2, (136 - 104) / 2, (64 - 56) / 2.
CROPS = (88, 40, 16, 4)


@pytest.mark.parametrize(
    ("channels", "num_classes", "options", "count"),
    [
        (1, 2, {}, 31_030_658),
        (1, 1, {}, 31_030_593),
        (3, 11, {}, 31_032_395),
        (3, 11, {"padding": "same"}, 31_032_395),
        # Scale and shift of 2 (64 + ... + 1024) + 2 (512 + ... + 64) = 5,888 channels.
        (3, 11, {"padding": "same", "batch_norm": True}, 31_032_395 + 11_776),
    ],
)
def test_parameters_are_as_many_as_in_the_paper(channels, num_classes, options, count):
    params = abstract(models.create("unet", num_classes, **options), channels)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
    assert set(params) == {*DOWN, *UP, "conv_u0d-score"}  # 23 convolutions
    normalized = [name for name in params if "bn" in params[name]]
    assert len(normalized) == (18 if "batch_norm" in options else 0)


def test_the_papers_sizes():
    model = models.create("unet", 2)
    variables = abstract(model, 1)
    inner = functools.partial(model.apply, train=False, method="unmirrored")
    for side, result in ((572, 388), (188, 4), (444, 260)):
        image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        assert jax.eval_shape(inner, variables, image).shape == (1, result, result, 2)
    image = jax.ShapeDtypeStruct((1, 556, 668, 1), jnp.float32)  # for 360x480
    assert jax.eval_shape(inner, variables, image).shape == (1, 372, 484, 2)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(572, 571), (172, 188), (180, 188), (8, 16), (0, 0)])
def test_a_size_that_does_not_fit_is_refused_without_mirroring(padding, size):
    model = models.create("unet", 2, width=2, padding=padding)
    image = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    inner = functools.partial(model.apply, train=False, method="unmirrored")
    said = refusal(jax.eval_shape, inner, abstract(model, 1), image)
    assert f"{size[0]}x{size[1]}, expected sides of " in said


def variables_of(layers):
    """Convert PyTorch's layers to Flax's names and layout."""
    names = [*DOWN, *UP, "conv_u0d-score"]
    params, statistics = {}, {}
    for name, layer in zip(names, layers, strict=True):
        transposed = name.startswith("upconv")
        kernel = layer["weight"].transpose((2, 3, 1, 0))  # (in, out, 2, 2), or (out, in, 3, 3)
        made = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(layer["bias"])}
        if transposed or name.endswith("score"):
            params[name] = made
            continue
        params[name] = {"conv": made}
        if "bn" in layer:
            scale, shift, mean, variance = map(jnp.asarray, layer["bn"])
            params[name]["bn"] = {"scale": scale, "bias": shift}
            statistics[name] = {"bn": {"mean": mean, "var": variance}}
    return {"params": params} | ({"batch_stats": statistics} if statistics else {})


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_logits_are_those_of_pytorch(padding):
    with np.load(GOLDEN) as arrays:
        image, logits = (
            arrays[f"{padding}/{name}"].transpose(0, 2, 3, 1) for name in ("image", "logits")
        )
    image = image.astype(np.float32) / 4
    model = models.create(
        "unet", CLASSES, width=WIDTH, padding=padding, batch_norm=padding == "same"
    )
    variables = variables_of(parameters(image.shape[-1], padding == "same"))
    apply = jax.jit(functools.partial(model.apply, train=False, method="unmirrored"))
    found = apply(variables, image)
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-4)


@functools.cache
def gray():
    """Return the published network at a narrow width, for one channel, with random weights."""
    model = models.create("unet", CLASSES, width=WIDTH)
    return model, variables_of(parameters(1, batch_norm=False))


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(24, 32), (1, 40)])
def test_borders_are_mirrored_and_cropped_again(size):
    model, variables = gray()
    image = noise(1, *size, 1)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, image)
    assert logits.shape == (1, *size, CLASSES)
    # Up to an output of 4 mod 16: 36 of 24, 32 or 40 -> 52, and 4 of a single row.
    outputs = [{24: 36, 32: 36, 40: 52, 1: 4}[side] for side in size]
    spare = [large - side for large, side in zip(outputs, size, strict=True)]
    margins = [(92 + extra // 2, 92 + extra - extra // 2) for extra in spare]
    padded = np.pad(image, [(0, 0), *margins, (0, 0)], mode="reflect")
    inner = functools.partial(model.apply, train=False, method="unmirrored")
    whole = jax.jit(inner)(variables, padded)
    assert whole.shape == (1, *outputs, CLASSES)
    top, left = (extra // 2 for extra in spare)
    expected = whole[:, top : top + size[0], left : left + size[1]]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def by_tiles(model, variables, image, tile):
    """Return the logits computed tile by tile: the paper's overlap-tile strategy.

    Tiles start at multiples of 16 pixels, so that pooling cuts each as it cuts the whole.
    """
    mirrored = unet._mirrored(image, "valid")
    whole = tuple(side - 2 * unet.MARGIN for side in mirrored.shape[1:3])
    logits = np.zeros((len(image), *whole, model.num_classes), np.float32)
    apply = jax.jit(functools.partial(model.apply, train=False, method="unmirrored"))
    tops, lefts = (sorted({*range(0, n - tile, tile - 4), n - tile}) for n in whole)
    for top, left in itertools.product(tops, lefts):
        bottom, right = top + tile, left + tile
        seen = mirrored[:, top : bottom + 2 * unet.MARGIN, left : right + 2 * unet.MARGIN]
        logits[:, top:bottom, left:right] = apply(variables, seen)
    return unet._center(logits, image.shape)


def test_tiles_give_the_same_as_the_whole_image():
    model, variables = gray()
    image = noise(1, 61, 90, 1)
    whole = jax.jit(functools.partial(model.apply, train=False))(variables, image)
    tiled = by_tiles(model, variables, image, 36)  # 2 x 3 tiles on 68 x 100
    assert tiled.shape == whole.shape
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@functools.cache
def gradient():
    """Return f(params, image) -> gradients of one logit, at (1, 2) of the 4x4 that 188x188 give."""
    model, _ = gray()

    def logit(params, image):
        logits = model.apply({"params": params}, image, train=False, method="unmirrored")
        return logits[0, 1, 2, 0]

    return jax.jit(jax.grad(logit, argnums=(0, 1)))


def positive():
    """Return parameters with which no ReLU is zero and nothing cancels."""
    return jax.tree.map(jnp.abs, gray()[1]["params"])


def cut_from_below(params, level):
    """Disconnect a level from the one below, so that it sees only its skip."""
    return params | {UPCONV[level]: jax.tree.map(jnp.zeros_like, params[UPCONV[level]])}


def cut_skip(params, level):
    """Disconnect a level's skip, the second half of the input of its first convolution."""
    name = f"conv_u{level}b-c"
    conv = params[name]["conv"]
    half = conv["kernel"].shape[2] // 2
    kernel = conv["kernel"].at[:, :, half:].set(0)
    return params | {name: {"conv": conv | {"kernel": kernel}}}


def window(level, place):
    """Return the first and last pixel that a logit at `place` sees through one skip, by hand."""
    first = last = place
    for _ in range(level):
        first, last = first // 2, (last + 4) // 2  # two convolutions, and the up-convolution
    first, last = first + CROPS[level], last + 4 + CROPS[level]
    for _ in range(level):
        first, last = 2 * first, 2 * (last + 4) + 1  # two convolutions, and the pooling
    return first, last + 4


@pytest.mark.parametrize("level", LEVELS)
def test_a_skip_alone_reaches_its_window_and_no_deeper_level(level):
    params = cut_from_below(positive(), level)
    for above in range(level):
        params = cut_skip(params, above)
    image = np.abs(noise(1, 188, 188, 1)) + 1
    by_params, by_image = gradient()(params, image)
    rows, columns = np.nonzero(np.asarray(by_image)[0, :, :, 0])
    assert (rows.min(), rows.max()) == window(level, 1)
    assert (columns.min(), columns.max()) == window(level, 2)
    assert window(level, 1)[0] < 93 < window(level, 1)[1]  # around the pixel that is classified
    for name, below in by_params.items():
        reached = any(np.any(leaf) for leaf in jax.tree.leaves(below))
        going_down = name.startswith("conv_d") and int(name[6]) <= level
        coming_up = name.startswith("conv_u") and int(name[6]) <= level
        between = name in UPCONV[: level + 1]
        assert reached == (going_down or coming_up or between), name


@pytest.mark.parametrize("level", LEVELS)
def test_without_one_skip_the_others_still_reach(level):
    params = cut_skip(positive(), level)
    by_params, _ = gradient()(params, np.abs(noise(1, 188, 188, 1)) + 1)
    half = params[f"conv_u{level}b-c"]["conv"]["kernel"].shape[2] // 2
    for name, leaves in by_params.items():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(leaves)), name
    # What the skip carries is still there to be used.
    assert np.any(by_params[f"conv_u{level}b-c"]["conv"]["kernel"][:, :, half:])
    lone = params
    for other in LEVELS:
        lone = cut_skip(lone, other)
    by_params, _ = gradient()(cut_from_below(lone, level), np.ones((1, 188, 188, 1), np.float32))
    for name in DOWN:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_params[name])), name


def test_dropout_is_at_the_end_of_the_contracting_path():
    model = models.create("unet", CLASSES, width=WIDTH, padding="same")
    image = np.abs(noise(1, 32, 32, 1))

    @jax.jit
    def logits(params, key):
        return model.apply({"params": params}, image, train=True, rngs={"dropout": key})

    keys = jax.random.key(0), jax.random.key(1)
    # Level 3 drops before its skip leaves, the levels above never.
    for level, random in ((3, True), (2, False)):
        params = cut_from_below(positive(), level)
        one, other = (np.asarray(logits(params, key)) for key in keys)
        assert np.array_equal(one, other) != random
    one, other = (np.asarray(logits(cut_skip(positive(), 3), key)) for key in keys)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(logits(positive(), keys[0]), logits(positive(), keys[0]))


def test_initialization():
    model = models.create("unet", 2, width=4, padding="same")
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]
    for kernel, fan_in in (
        (params["conv_d4b-c"]["conv"]["kernel"], 9 * 64),
        (params["conv_u3b-c"]["conv"]["kernel"], 9 * 64),
        (params["upconv_d4c_u3a"]["kernel"], 4 * 64),
    ):
        assert np.std(kernel) == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
    assert not np.any(params["upconv_d4c_u3a"]["bias"])
