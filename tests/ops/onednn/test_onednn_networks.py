"""Whole networks have the same logits, gradients and statistics by oneDNN and by XLA."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.ops.platform import shapes_only

NETWORKS = {
    "segnet": {"width": 4},
    "segnet_basic_single_channel_decoder": {"width": 8},
    "unet": {"width": 4, "padding": "same", "batch_norm": True, "dropout": 0.0},
    "fcn8s": {"width": 4, "fc_width": 8, "padding": "pad100", "dropout": 0.0},
    "deeplab_largefov": {"width": 4, "fc_width": 8, "dropout": 0.0},
    "deconvnet": {"width": 4, "fc_width": 8, "fc_kernel": 1},
    "fc_densenet56": {"growth": 4, "width": 8, "dropout": 0.0},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_step_equals_xlas(name):
    model = models.create(name, 5, **NETWORKS[name])
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((2, 32, 32, 3), np.float32))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def fill(x):
        if x.ndim > 1:  # a kernel, which keeps the scale of its input
            values = rng.normal(0, math.sqrt(2 / math.prod(x.shape[:-1])), x.shape)
        else:
            values = rng.uniform(0.1, 0.4, x.shape)
        return jnp.asarray(values, x.dtype)

    variables = jax.tree.map(fill, shapes)
    weight = jnp.asarray(rng.standard_normal((2, 32, 32, 5), np.float32))

    def loss(params):
        logits, changed = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.tanh(logits) * weight), (logits, changed)

    def step(params):
        return jax.value_and_grad(loss, has_aux=True)(params)

    def step_of_xla(params):
        with shapes_only():
            return step(params)

    texts = [str(jax.make_jaxpr(f)(variables["params"])) for f in (step, step_of_xla)]
    assert ["ffi_call" in text for text in texts] == [True, False]
    found, expected = (jax.jit(f)(variables["params"]) for f in (step, step_of_xla))
    # Gradients that are zero up to rounding, such as that of a bias before a normalization, are
    # compared on the scale of the others.
    least = 0.01 * max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * max(float(jnp.abs(b).max()), least))
