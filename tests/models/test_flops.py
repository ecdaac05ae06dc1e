"""Parameters and MACs against numbers worked by hand."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from segjax import models
from segjax.data import datasets
from segjax.models import flops
from segjax.ops.cpu_convolution import NHWC
from segjax.ops.platform import shapes_only
from segjax.ops.upsampling import bilinear_conv_transpose, conv_transpose
from segjax.sweep import costs
from support.runs import OneLayer, tiny_config
from support.windows import macs


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    with shapes_only():
        return flops.macs(jax.make_jaxpr(function)(*arrays).jaxpr)


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | options
    return lax.conv_general_dilated(x, kernel, **options)


@pytest.mark.parametrize(
    ("options", "kernel", "expected"),
    [
        ({}, (3, 5, 4, 6), 2 * (8 * 10) * (3 * 5) * 4 * 6),
        ({"padding": "VALID"}, (3, 5, 4, 6), 2 * (6 * 6) * (3 * 5) * 4 * 6),
        ({"window_strides": (2, 2)}, (3, 3, 4, 6), 2 * (4 * 5) * (3 * 3) * 4 * 6),
        ({"rhs_dilation": (2, 2)}, (3, 3, 4, 6), 2 * (8 * 10) * (3 * 3) * 4 * 6),
        (
            {"rhs_dilation": (2, 2), "padding": "VALID"},
            (3, 3, 4, 6),
            2 * (4 * 6) * (3 * 3) * 4 * 6,
        ),
        ({"feature_group_count": 2}, (3, 3, 2, 6), 2 * (8 * 10) * (3 * 3) * 2 * 6),
        ({"feature_group_count": 4}, (3, 3, 1, 4), 2 * (8 * 10) * (3 * 3) * 4),  # one a channel
    ],
)
def test_a_convolution(options, kernel, expected):
    assert count(lambda x, k: conv(x, k, **options), (2, 8, 10, 4), kernel) == expected


def test_a_transposed_convolution_is_counted_by_its_inputs():
    def up(x, kernel):
        return conv_transpose(x, kernel, stride=2, padding=1)

    shapes = (2, 5, 7, 6), (4, 4, 3, 6)  # from 6 channels to 3
    assert count(up, *shapes) == 2 * (5 * 7) * (4 * 4) * 6 * 3
    # The convolution that it is the transpose of costs the same.
    down = {"window_strides": (2, 2), "padding": [(1, 1), (1, 1)]}
    assert count(lambda x, k: conv(x, k, **down), (2, 10, 14, 3), (4, 4, 3, 6)) == count(
        up, *shapes
    )

    def step(x, kernel):
        return jax.grad(lambda *arguments: jnp.sum(up(*arguments)), (0, 1))(x, kernel)

    assert count(step, *shapes) == 3 * count(up, *shapes)


def test_products_of_matrices():
    assert count(lambda x, w: x @ w, (7, 20), (20, 30)) == 7 * 20 * 30
    assert count(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (4, 2, 3), (4, 3, 5)) == 4 * 30
    # As it is computed: 12 x 6 rows, then 16 x 8 columns, whichever comes first.
    found = count(lambda x: bilinear_conv_transpose(x, size=4, stride=2, padding=1), (1, 6, 8, 3))
    assert found in (3 * (12 * 6 * 8 + 12 * 16 * 8), 3 * (6 * 16 * 8 + 12 * 6 * 16))


def test_operations_inside_others():
    x, w = (4, 4), (4, 4)

    def looped(x, w):
        return lax.scan(lambda carry, _: (carry @ w, None), x, length=5)[0]

    def branched(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

    def endless(x, w):
        return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

    assert count(jax.jit(lambda x, w: jnp.tanh(x @ w)), x, w) == 64
    assert count(jax.checkpoint(lambda x, w: x @ w), x, w) == 64
    assert count(looped, x, w) == 5 * 64
    assert count(branched, x, w) == 64
    with pytest.raises(ValueError, match="unknown number of iterations"):
        count(endless, x, w)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(image.reshape(1, -1))
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(x))


def test_a_model():
    shape = (3, 4, 2)
    assert flops.forward_macs(Dense(), shape) == 24 * 10
    assert flops.forward_macs(Dense(), shape, train=True) == 24 * 10
    assert flops.parameters(Dense(), shape) == 24 * 10 + 10 + 2 * 24
    # 3x3 from 3 to 4 channels, then 1x1 to 11.
    assert flops.forward_macs(OneLayer(11), (24, 32, 3)) == 24 * 32 * (9 * 3 * 4 + 4 * 11)


def test_segnet_is_the_trunk_of_vgg_16_and_its_mirror_image():
    """The thirteen convolutions of VGG-16 at 224x224 have the known 15.3 G MACs."""
    layers = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256)]
    layers += [(56, 256, 256)] * 2 + [(28, 256, 512)] + [(28, 512, 512)] * 2 + [(14, 512, 512)] * 3
    encoder = sum(side**2 * 9 * inner * outer for side, inner, outer in layers)
    assert encoder == 15_346_630_656
    # The decoder is its mirror image, except that the last layer goes to the classes.
    mirrored = [(side, outer, inner) for side, inner, outer in layers[1:]]
    decoder = sum(side**2 * 9 * inner * outer for side, inner, outer in mirrored)
    decoder += 224**2 * 9 * 64 * 11
    model = models.create("segnet", 11)
    assert flops.forward_macs(model, (224, 224, 3)) == encoder + decoder


def test_a_model_of_patches_trains_on_patches_and_labels_whole_images():
    model = models.create("patch_cnn", 11, width=4, fc_width=8)
    side = model.patch_size
    windows, at_once = macs(model, (20, 30))
    assert flops.forward_macs(model, (20, 30, 3)) == at_once
    assert flops.forward_macs(model, (side, side, 3), train=True) == windows // (20 * 30)
    config = tiny_config("", model__name="patch_cnn", data__patches=7, steps=5)
    config.model.options = {"width": 4, "fc_width": 8}
    assert costs.training_cost(config).macs == 3 * 7 * 4 * 5 * windows // (20 * 30)


def test_training_costs_three_passes_over_each_image_of_each_step(monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)
    config = tiny_config("", model__name="one_layer", steps=40)
    del config.model.options.width
    image = 24 * 32 * (9 * 3 * 4 + 4 * 11)
    found = costs.training_cost(config)
    assert found == costs.Cost(9 * 3 * 4 + 4 + 2 * 4 + 4 * 11 + 11, 3 * 4 * 40 * image)
    config.augment.crop = (12, 16)
    assert costs.training_cost(config).macs == found.macs // 4
    config.data.dataset, config.augment.crop = "isbi2012", ()  # gray, and two classes
    assert costs.training_cost(config).parameters == 9 * 1 * 4 + 4 + 2 * 4 + 4 * 2 + 2
    assert datasets.shape("camvid") == (3, 11)


def test_counting_initializes_no_device():
    script = (
        "from segjax.sweep import costs\n"
        "from segjax.config import default\n"
        "config = default()\n"
        "config.model.options.width = 2\n"
        "assert costs.training_cost(config).macs > 0\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
