"""FC-DenseNet: parameters, logits against PyTorch's, and the connections of the way up."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from support import variables

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "densenet.npz")
LAYERS = (1, 2, 3)


@functools.cache
def narrow():
    return models.create("fc_densenet56", 3, layers=LAYERS, growth=2, width=4)


@functools.cache
def gradient():
    """Return f(params) -> the gradient of a weighting of the logits."""
    model, state = narrow(), variables.seeded(narrow())
    weight = np.random.default_rng(1).normal(size=(*GOLDEN["logits"].shape,)).astype(np.float32)

    def loss(params):
        logits = model.apply(state | {"params": params}, GOLDEN["image"], train=False)
        return jnp.sum(logits * weight)

    return jax.jit(jax.grad(loss))


def silenced(*names):
    """Return the parameters with the convolutions of these layers set to zero."""
    params = variables.seeded(narrow())["params"]
    return {
        name: jax.tree.map(jnp.zeros_like, layer) if name in names else layer
        for name, layer in params.items()
    }


def reached(params):
    """Return the names of the layers that the logits depend on."""
    return {
        name
        for name, layer in gradient()(params).items()
        if any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(layer))
    }


@pytest.mark.parametrize(
    ("name", "convolutions", "trainable"),
    [
        ("fc_densenet56", 1_355_627, 1_376_795),
        ("fc_densenet67", 3_423_563, 3_463_243),
        ("fc_densenet103", 9_219_019, 9_322_091),
    ],
)
def test_parameters(name, convolutions, trainable):
    model = models.create(name, 11)
    state = variables.abstract(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state["batch_stats"]))
    assert count == trainable
    assert count - statistics == convolutions  # as many scales and shifts as means and variances


def test_the_depth_is_in_the_name():
    for depth in (56, 67, 103):
        shapes = variables.shapes(models.create(f"fc_densenet{depth}", 11))
        assert sum(path.endswith("kernel") for path in shapes) == depth


def test_logits_are_those_of_pytorch():
    apply = jax.jit(functools.partial(narrow().apply, train=False))
    logits = apply(variables.seeded(narrow()), jnp.asarray(GOLDEN["image"]))
    assert np.abs(GOLDEN["logits"]).max() > 0.1
    np.testing.assert_allclose(logits, GOLDEN["logits"], atol=1e-4)


def test_all_layers_are_reached():
    params = variables.seeded(narrow())["params"]
    assert reached(params) == set(params)


def test_the_way_up_takes_the_new_maps_of_the_bottleneck_alone():
    silent = [f"bottleneck_{n}" for n in (1, 2, 3)]
    names = reached(silenced(*silent))
    # What enters the bottleneck ends there; block 2 is reached over its skip.
    assert "transition_down2" not in names
    assert {"down2_1", "down2_2", "transition_down1", "transition_up2"} <= names


def test_without_the_transition_up_the_skip_remains():
    names = reached(silenced("transition_up1"))
    assert {"conv1", "down1_1", "up1_1", "classifier"} <= names
    assert not {name for name in names if "2" in name.partition("_")[0] or "bottle" in name}
    assert "transition_down1" not in names
