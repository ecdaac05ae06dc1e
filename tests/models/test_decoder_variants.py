"""The networks of the SegNet paper's Table 1: logits against PyTorch, and their connections."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.models import decoder_variants
from segjax.ops.upsampling import conv_transpose
from support.variables import abstract, shapes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "decoder_variants.npz")
NAMES = sorted({name.partition("/")[0] for name in GOLDEN.files} - {"image"})


@functools.cache
def golden(name):
    """Return a small network with the weights of the golden one, and the golden logits."""
    logits, weights = GOLDEN[f"{name}/logits"], GOLDEN[f"{name}/weights"]
    model = models.create(name, logits.shape[-1], width=2 if name == "segnet" else 3)
    leaves, tree = jax.tree.flatten(abstract(model))
    sizes = [leaf.size for leaf in leaves]
    assert sum(sizes) == weights.size
    parts = np.split(weights, np.cumsum(sizes)[:-1])
    arrays = [
        jnp.asarray(part.reshape(leaf.shape), leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return model, jax.tree.unflatten(tree, arrays), logits


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_an_independent_network(name):
    model, variables, expected = golden(name)
    found = jax.jit(functools.partial(model.apply, train=False))(variables, GOLDEN["image"])
    assert expected.std((0, 1, 2)).min() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_variants_are_the_table():
    table = set(models.MODELS) & {
        name for name in models.MODELS if "basic" in name or name == "bilinear_interpolation"
    }
    assert table - {"bayesian_segnet_basic"} == set(NAMES) - {"segnet"}
    assert len(NAMES) == 1 + 8


# Kernels, other convolutions' biases and the parameters of batch normalization at 11 classes. The
# encoder has kernels of 49 (3 * 64 + 3 * 64 * 64) = 611,520, 256 biases and 512 of normalization.
ENCODER = 611_520
COUNTS = {
    # Decoder: 4 * 49 * 64 * 64 and 64 * 11.
    "segnet_basic_encoder_addition": (1_415_040, 523, 1024),
    # Decoder: 4 * 49 * 64 and 64 * 11.
    "segnet_basic_single_channel_decoder": (624_768, 523, 1024),
    "bilinear_interpolation": (ENCODER + 704, 267, 512),
    # Four reductions of 64 * 11 and four upsamplings of 8 * 8 * 11 * 11.
    "fcn_basic": (645_312, 300, 512),
    "fcn_basic_no_addition": (643_200, 267, 512),  # one reduction
    # Four upsamplings of 8 * 8 * 64 * 64 and a classifier.
    "fcn_basic_no_dim_reduction": (1_660_800, 267, 512),
    "fcn_basic_no_addition_no_dim_reduction": (1_660_800, 267, 512),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_table(name):
    sizes = {path: math.prod(shape) for path, shape in shapes(models.create(name, 11)).items()}
    kernels = sum(size for path, size in sizes.items() if path.endswith("kernel"))
    normalization = sum(size for path, size in sizes.items() if "/bn/" in path)
    assert (kernels, sum(sizes.values()) - kernels - normalization, normalization) == COUNTS[name]
    total = f"{sum(sizes.values()):,} parameters"
    assert total in " ".join(models.MODELS[name].__doc__.split())


@functools.cache
def gradient(name):
    """Return f(variables) -> the gradients of one logit by the variables and by the image."""
    model, _, _ = golden(name)

    def logit(variables, image):
        return model.apply(variables, image, train=False)[0, 14, 11, 0]

    compiled = jax.jit(jax.grad(logit, argnums=(0, 1)))
    return lambda variables: compiled(variables, GOLDEN["image"])


def cut(name, *blocks):
    """Return the variables of a network with some blocks set to zero."""
    _, variables, _ = golden(name)
    params = {
        block: jax.tree.map(jnp.zeros_like, parts) if block in blocks else parts
        for block, parts in variables["params"].items()
    }
    return variables | {"params": params}


def felt(name, *blocks):
    """Return what one logit depends on, blocks and image, if some blocks are zero."""
    of_variables, of_image = gradient(name)(cut(name, *blocks))

    def any_of(tree):
        return any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))

    found = {block: any_of(parts) for block, parts in of_variables["params"].items()}
    return found | {"image": any_of(of_image)}


ADDING = ["fcn_basic", "fcn_basic_no_dim_reduction", "segnet_basic_encoder_addition"]


@pytest.mark.parametrize("name", ADDING)
def test_a_logit_depends_on_every_block(name):
    assert all(felt(name).values())


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("name", ["fcn_basic", "fcn_basic_no_dim_reduction"])
def test_each_addition_of_fcn_basic_passes_by_the_levels_below_it(name, level):
    # Without the upsampling from the level below, what is left was added at this level or above.
    found = felt(name, f"upsample{level + 1}")
    assert found["image"]
    for number in range(1, 5):
        assert found[f"conv{number}"] == (number <= level), number
        if f"conv_reduce{number}" in found:
            assert found[f"conv_reduce{number}"] == (number <= level), number


@pytest.mark.parametrize("level", [1, 2, 3])
def test_without_addition_all_passes_through_the_deepest_level(level):
    assert all(felt("fcn_basic_no_addition").values())
    found = felt("fcn_basic_no_addition", f"upsample{level + 1}")
    assert not found["image"]
    assert not any(found[f"conv{number}"] for number in range(1, 5))


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_each_addition_of_the_encoder_passes_by_the_levels_below_it(level):
    # Where a block of the decoder gives zero, the encoder's map of its level is left.
    found = felt("segnet_basic_encoder_addition", f"conv_decode{level}")
    assert found["image"]
    for number in range(1, 5):
        assert found[f"conv{number}"] == (number <= level), number
        if number != level:
            assert found[f"conv_decode{number}"] == (number < level), number
    assert not felt("segnet_basic", f"conv_decode{level}")["image"]


def test_the_encoders_map_is_added_from_before_the_pool():
    model, *_ = golden("segnet_basic_encoder_addition")
    variables = cut("segnet_basic_encoder_addition", "conv_decode1")
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    logits, inner = jax.jit(apply)(variables, GOLDEN["image"])
    encoded = inner["intermediates"]["conv1"]["__call__"][0]
    classifier = variables["params"]["conv_classifier"]
    expected = np.einsum("bhwc,ck->bhwk", encoded, classifier["kernel"][0, 0])
    np.testing.assert_allclose(
        logits - classifier["bias"].reshape(1, 1, 1, -1), expected, atol=1e-4
    )


def test_single_channel_decoders_keep_channels_apart():
    model, variables, _ = golden("segnet_basic_single_channel_decoder")

    def last(shift):
        params = variables["params"]
        bn = params["conv_decode2"]["bn"]
        changed = params | {"conv_decode2": params["conv_decode2"] | {"bn": bn | {"bias": shift}}}
        _, inner = model.apply(
            variables | {"params": changed},
            GOLDEN["image"],
            train=False,
            capture_intermediates=True,
        )
        return jnp.sum(inner["intermediates"]["conv_decode1"]["__call__"][0], (0, 1, 2))

    jacobian = jax.jit(jax.jacobian(last))(
        variables["params"]["conv_decode2"]["bn"]["bias"],
    )
    np.testing.assert_array_equal(jacobian != 0, np.eye(len(jacobian), dtype=bool))


def test_learned_upsampling_starts_as_interpolation_within_channels():
    kernel = decoder_variants.interpolating(jax.random.key(0), (8, 8, 3, 3))
    tent = np.array([1, 3, 5, 7, 7, 5, 3, 1]) / 16  # sums to 2, so to 1 at stride 2
    for c, d in np.ndindex(3, 3):
        np.testing.assert_allclose(kernel[..., c, d], np.outer(tent, tent) * (c == d), atol=1e-7)
    flat = conv_transpose(jnp.ones((1, 6, 7, 3)), kernel, stride=2, padding=3)
    assert flat.shape == (1, 12, 14, 3)
    np.testing.assert_allclose(flat[:, 3:-3, 3:-3], 1, rtol=1e-6)
    model = models.create("fcn_basic", 3, width=1)

    def first(key):
        params = model.init(key, jnp.zeros((1, 16, 16, 3)), train=False)["params"]
        return [params[f"upsample{level}"]["kernel"] for level in range(1, 5)]

    for found in jax.jit(first)(jax.random.key(0)):
        np.testing.assert_allclose(found, kernel, rtol=1e-6)
