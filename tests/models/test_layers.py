import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from segjax.models import flops
from segjax.models.layers import BatchNorm, Conv, ConvBlock
from support.errors import refusal

SHAPE, FEATURES = (4, 5, 7, 3), 6


def arrays(kernel_size=3, seed=0):
    """Draw an image, and all variables of a block."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SHAPE)
    params = {
        "conv": {
            "kernel": rng.normal(size=(kernel_size, kernel_size, SHAPE[-1], FEATURES)),
            "bias": rng.normal(size=FEATURES),
        },
        "bn": {"scale": rng.normal(size=FEATURES), "bias": rng.normal(size=FEATURES)},
    }
    stats = {"bn": {"mean": rng.normal(size=FEATURES), "var": rng.uniform(0.5, 2, FEATURES)}}
    return jax.tree.map(
        lambda leaf: leaf.astype(np.float32), (x, {"params": params, "batch_stats": stats})
    )


def convolve(x, conv):
    kernel = conv["kernel"]
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return np.asarray(y) + conv["bias"]


def normalize(y, bn, mean, var):
    return (y - mean) / np.sqrt(var + 1e-5) * bn["scale"] + bn["bias"]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_convolution_then_running_statistics_then_relu(kernel_size, relu):
    x, variables = arrays(kernel_size)
    found = jax.jit(lambda v, x: ConvBlock(FEATURES, kernel_size, relu).apply(v, x, train=False))(
        variables, x
    )
    params, stats = variables["params"], variables["batch_stats"]["bn"]
    expected = normalize(convolve(x, params["conv"]), params["bn"], stats["mean"], stats["var"])
    assert expected.min() < 0
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_training_uses_the_batchs_statistics_and_moves_the_running_ones_a_tenth():
    x, variables = arrays()
    block = ConvBlock(FEATURES, 3, relu=False)
    found, updates = jax.jit(lambda v, x: block.apply(v, x, train=True, mutable="batch_stats"))(
        variables, x
    )
    y = convolve(x, variables["params"]["conv"]).astype(np.float64)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    expected = normalize(y, variables["params"]["bn"], mean, var)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for name, batch in (("mean", mean), ("var", var)):
        before, after = (v["batch_stats"]["bn"][name] for v in (variables, updates))
        np.testing.assert_allclose(after, 0.9 * before + 0.1 * batch, rtol=1e-4)


def test_statistics_are_those_of_the_batch_on_all_devices():
    x, variables = arrays()
    options = {"train": True, "mutable": "batch_stats"}
    whole, stats = jax.jit(lambda v, x: ConvBlock(FEATURES, 3).apply(v, x, **options))(variables, x)

    def on_two(block):
        halves = jnp.reshape(x, (2, 2, *SHAPE[1:]))
        apply = jax.vmap(lambda x: block.apply(variables, x, **options), axis_name="devices")
        return jax.jit(apply)(halves)

    found, found_stats = on_two(ConvBlock(FEATURES, 3, axis_name="devices"))
    np.testing.assert_allclose(found.reshape(whole.shape), whole, rtol=1e-4, atol=1e-5)
    for half in range(2):
        part = jax.tree.map(lambda leaf, half=half: leaf[half], found_stats)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), part, stats)
    apart, _ = on_two(ConvBlock(FEATURES, 3))
    assert np.abs(apart.reshape(whole.shape) - whole).max() > 0.1


@pytest.mark.parametrize("size", [(8, 6), (5, 7)])
def test_a_stride_keeps_every_second_value_from_the_first(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    variables = {"params": {"kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32)}}
    every, second = (Conv(4, 3, stride=n, use_bias=False).apply(variables, x) for n in (1, 2))
    np.testing.assert_allclose(second, every[:, ::2, ::2], rtol=1e-4, atol=1e-4)


class Pooled(nn.Module):
    """Batch normalization of the mean of an image, as in the image pooling of DeepLab v3."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        x = jnp.mean(image, (1, 2), keepdims=True)
        return BatchNorm(axis_name=self.axis_name, name="bn")(x, train=train)


def test_a_channel_of_one_value_is_not_normalized_in_training():
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    variables = Pooled().init(jax.random.key(0), image[:1], train=False)

    def train(image, axis_name=None):
        network = Pooled(axis_name)
        return network.apply(variables, image, train=True, mutable="batch_stats")[0]

    said = "the batch normalization bn has one value per channel in a training step"
    assert said in refusal(jax.jit(train), image[:1])
    both = jax.jit(train)(image)
    assert np.abs(both).min() > 0.1
    shared = jax.vmap(functools.partial(train, axis_name="devices"), axis_name="devices")
    np.testing.assert_allclose(shared(image[:, None])[:, 0], both, rtol=1e-6)
    assert flops.forward_macs(Pooled(), (4, 5, 3), train=True) == 0  # of one image
