"""Bayesian SegNet: the places of its dropout, and samples."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax import models
from segjax.errors import UserError
from segjax.inference import dropout
from segjax.models import segnet
from segjax.models.layers import ConvBlock
from support.variables import abstract

# Blocks whose maps are dropped, as in the authors' files: by the block that sees a pool (its first
# convolution sees what was dropped), and by the block itself in the decoder.
PLACES = {
    "bayesian_segnet": ["pool3", "pool4", "pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D"],
    "bayesian_segnet_basic": ["pool3", "pool4", "conv_decode4", "conv_decode3"],
}


def order_of_layers(name, **options):
    """Return the blocks, poolings and dropouts of a network in the order of their calls."""
    called, pool = [], segnet.max_pool_with_indices

    def pooled(x):
        called.append(f"pool{sum(layer.startswith('pool') for layer in called) + 1}")
        return pool(x)

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.name:
            layer = context.module
            if isinstance(layer, nn.Dropout):
                called.append(f"dropout {layer.rate}")
            elif len(layer.path) == 1:
                called.append(layer.name)
        return result

    model = models.create(name, 2, width=1, **options)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with pytest.MonkeyPatch.context() as patch, nn.intercept_methods(watch):
        patch.setattr(segnet, "max_pool_with_indices", pooled)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        jax.eval_shape(functools.partial(model.init, train=True), keys, image)
    return called


@pytest.mark.parametrize("name", PLACES)
def test_half_is_dropped_after_the_published_places(name):
    layers = order_of_layers(name)
    found = [before for before, layer in itertools.pairwise(layers) if layer == "dropout 0.5"]
    assert found == PLACES[name]
    plain = order_of_layers(name.removeprefix("bayesian_"))
    assert [x for x in layers if "drop" not in x] == [x for x in plain if "drop" not in x]
    assert not [x for x in plain if x == "dropout 0.5"]
    assert "dropout 0.25" in order_of_layers(name.removeprefix("bayesian_"), dropout=0.25)


@pytest.mark.parametrize("name", PLACES)
def test_the_parameters_are_those_of_the_network_without_dropout(name):
    plain = models.create(name.removeprefix("bayesian_"), 11)
    assert abstract(models.create(name, 11)) == abstract(plain)


CLASSES, SAMPLES = 3, 4


class Dropping(nn.Module):
    """A minimal network with normalization and dropout, `active` in training or always."""

    num_classes: int = CLASSES
    rate: float = 0.5
    active: bool = False

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvBlock(8, 3, name="block")(image, train=train)
        x = nn.Dropout(self.rate)(x, deterministic=not (train or self.active))
        return nn.Conv(self.num_classes, (1, 1), name="classifier")(x)


IMAGES = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)


@functools.cache
def variables():
    """Draw random variables, running statistics too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (
            rng.uniform(0.1, 1, leaf.shape) if leaf.ndim == 1 else rng.normal(size=leaf.shape)
        ).astype(np.float32),
        abstract(Dropping()),
    )


@jax.jit
def sample(images, keys):
    return dropout.sample(Dropping(), variables(), images, keys, SAMPLES)


def keys(*numbers):
    return jnp.stack([jax.random.key(number) for number in numbers])


def test_an_image_has_the_same_samples_in_any_batch_and_others_by_another_key():
    estimate = sample(IMAGES, keys(5, 6))
    swapped = sample(IMAGES[::-1], keys(6, 5))
    other = sample(IMAGES, keys(5, 7))
    for ours, theirs, changed in zip(estimate, swapped, other, strict=True):
        np.testing.assert_allclose(ours, theirs[::-1], atol=1e-6)
        np.testing.assert_allclose(ours[0], changed[0], atol=1e-6)
        assert np.abs(ours[1] - changed[1]).max() > 0.01


def test_mean_and_variance_are_those_of_single_samples_with_running_statistics():
    @jax.jit
    def one(image, key):
        model = Dropping(active=True)
        logits = model.apply(variables(), image[None], train=False, rngs={"dropout": key})
        return jax.nn.softmax(logits[0])

    drawn = np.array(
        [
            [
                one(image, jax.random.fold_in(key, n))
                for image, key in zip(IMAGES, keys(1, 2), strict=True)
            ]
            for n in range(SAMPLES)
        ],
        np.float64,
    )
    estimate = sample(IMAGES, keys(1, 2))
    np.testing.assert_allclose(estimate.mean, drawn.mean(0), atol=1e-5)
    np.testing.assert_allclose(estimate.variance, drawn.var(0), atol=1e-5)
    assert drawn.std(0).max() > 0.1

    likely = drawn.mean(0).argmax(-1)[None, ..., None]
    expected = np.take_along_axis(drawn, likely, -1)[..., 0]
    np.testing.assert_allclose(dropout.confidence(estimate), expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(dropout.deviation(estimate), expected.std(0), atol=1e-3)


@pytest.mark.parametrize("model", [Dropping(rate=0.0), models.create("segnet_basic", 2, width=1)])
def test_a_network_without_dropout_cannot_be_sampled(model):
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    message = f"^{type(model).__name__} has no dropout, so all its samples are the same"
    run = functools.partial(dropout.sample, model, samples=2)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(run, abstract(model), image, keys(0))


@pytest.mark.parametrize("name", ["bayesian_segnet", "fcn8s", "unet", "deeplab_aspp"])
def test_published_networks_with_dropout_can_be_sampled(name):
    model, image = models.create(name, CLASSES), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    run = functools.partial(dropout.sample, model, samples=1)
    estimate = jax.eval_shape(run, abstract(model), image, keys(0, 1))
    assert estimate.mean.shape == estimate.variance.shape == (2, 64, 64, CLASSES)
