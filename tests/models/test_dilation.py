"""Dilation8: parameters, logits against PyTorch's, and initialization as the identity."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.models.dilation import identity
from support import variables

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dilation.npz")
CONTEXTS = ("none", "basic", "large")


def narrow(context, **options):
    return models.create("dilation8", 2, context=context, width=2, fc_width=4, **options)


@functools.cache
def run(context):
    """Return f(variables, image) -> the logits, and the output of each layer without a ReLU."""

    def apply(variables, image):
        logits, state = narrow(context).apply(
            variables, image, train=False, capture_intermediates=True
        )
        inner = state["intermediates"]
        return logits, {name: inner[name]["__call__"][0] for name in inner if "final" in name}

    return jax.jit(apply)


@pytest.mark.parametrize(
    ("num_classes", "context", "parameters"),
    [
        # 14,714,688 of VGG16's convolutions; fc6 49*512*4096 + 4096, fc7 4096*4096 + 4096, and
        # 4097 a class.
        (11, "none", 134_305_611),
        # Seven layers of 9*11*11 + 11 and one of 11*11 + 11: 7,832.
        (11, "basic", 134_313_443),
        (21, "large", 141_149_720),
    ],
)
def test_parameters(num_classes, context, parameters):
    model = models.create("dilation8", num_classes, context=context)
    assert variables.count(model) == parameters


def test_names_and_shapes_are_those_of_the_authors_files():
    shapes = variables.shapes(models.create("dilation8", 11))
    assert shapes["conv1_1/conv/kernel"] == (3, 3, 3, 64)
    assert shapes["fc6/conv/kernel"] == (7, 7, 512, 4096)
    assert shapes["final/kernel"] == (1, 1, 4096, 11)
    assert {path for path in shapes if path.startswith("ctx") and path.endswith("kernel")} == {
        f"ctx_{name}/kernel"
        for name in ("conv1_1", "conv1_2", *(f"conv{n}_1" for n in range(2, 6)), "fc1", "final")
    }
    large = variables.shapes(models.create("dilation8", 21, context="large"))
    maps = [shape[-1] for path, shape in large.items() if path.startswith("ctx_conv")]
    assert sorted(set(maps)) == [42, 84, 168, 336, 672]


def test_360x480_leaves_the_front_end_as_45x60():
    image = jax.ShapeDtypeStruct((1, 360, 480, 3), jnp.float32)
    logits, maps = jax.eval_shape(run("basic"), variables.abstract(narrow("basic")), image)
    assert maps["final"].shape == maps["ctx_final"].shape == (1, 45, 60, 2)
    assert logits.shape == (1, 360, 480, 2)


@pytest.mark.parametrize("context", CONTEXTS)
def test_logits_are_those_of_pytorch(context):
    logits, _ = run(context)(variables.seeded(narrow(context)), jnp.asarray(GOLDEN["image"]))
    assert np.abs(GOLDEN[context]).max() > 0.05
    np.testing.assert_allclose(logits, GOLDEN[context], atol=1e-4)


@pytest.mark.parametrize("context", ["basic", "large"])
def test_the_context_module_starts_as_the_identity(context):
    model = narrow(context, noise=0.0)
    image = jnp.asarray(GOLDEN["image"])
    initialized = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), image)
    front_end = variables.seeded(narrow("none"))["params"]
    front_end["final"]["bias"] = jnp.asarray([4.0, 5.0])  # ReLU must find nothing to take away
    logits, maps = run(context)({"params": initialized["params"] | front_end}, image)
    assert maps["final"].min() > 0
    assert maps["final"].std() > 0.01
    np.testing.assert_allclose(maps["ctx_final"], maps["final"], rtol=1e-5)
    expected, _ = run("none")({"params": front_end}, image)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_noise_is_around_the_identity_and_optional():
    key, shape = jax.random.key(0), (3, 3, 12, 24)
    exact, noisy = (np.asarray(identity(6, noise)(key, shape)) for noise in (0.0, 0.01))
    # Two maps a class enter, four leave: each of the four has half the mean of the two.
    expected = np.zeros(shape, np.float32)
    for a in range(12):
        expected[1, 1, a, a // 2 * 4 : a // 2 * 4 + 4] = 6 / 24
    np.testing.assert_array_equal(exact, expected)
    np.testing.assert_array_equal(noisy[expected > 0], exact[expected > 0])
    assert noisy[expected == 0].std() == pytest.approx(0.01, rel=0.05)  # of 2,544 numbers


def test_noise_of_the_large_module_is_divided_by_the_multiple_of_maps():
    image = jnp.zeros((1, 8, 8, 3))
    params = narrow("large").init(jax.random.key(0), image, train=False)["params"]
    for name, multiple in (("ctx_conv1_1", 2), ("ctx_fc1", 32)):
        around = np.delete(np.asarray(params[name]["kernel"]).reshape(9, -1), 4, axis=0)
        assert around.std() == pytest.approx(0.01 / multiple, rel=0.3)  # at least 64 numbers


def test_the_context_module_widens_the_field_of_view_by_66_scores():
    # A score sees 380 rows from 8 i - 186 of the image on; 67 scores 66 * 8 more.
    i = 57
    model = narrow("basic")
    for name, first, last in (
        ("final", 8 * i - 186, 8 * i + 193),
        ("ctx_final", 8 * i - 186 - 264, 8 * i + 193 + 264),
    ):
        image = variables.lit(1001, first, last)
        _, maps = run("basic")(variables.positive(model), image)
        variables.assert_sees(maps[name][:, i, 0], name)
