"""DeepLab: parameters, logits against PyTorch's, and the field of view of each output stride."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from support import variables

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "deeplab.npz")
NARROW = {"width": 2, "fc_width": 4}
# The rows of the image that one score sees before fc6, and the pixels between two scores.
BEFORE_FC6 = {8: 227, 16: 243, 32: 243}


def narrow(name, num_classes=3, **options):
    return models.create(name, num_classes, **NARROW, **options)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        # 14,714,688 of VGG16's convolutions; fc6 9*512*1024 + 1024, fc7 1024*1024 + 1024, and
        # 1025 a class, once and four times.
        ("deeplab_largefov", 11, 20_495_179),
        ("deeplab_largefov", 21, 20_505_429),
        ("deeplab_aspp", 11, 37_836_652),
        ("deeplab_aspp", 21, 37_877_652),
    ],
)
def test_parameters(name, num_classes, parameters, output_stride):
    model = models.create(name, num_classes, output_stride=output_stride)
    assert variables.count(model) == parameters


def test_names_and_shapes_are_those_of_the_authors_files():
    shapes = variables.shapes(models.create("deeplab_largefov", 11))
    assert len(shapes) == 2 * 16
    assert shapes["conv1_1/conv/kernel"] == (3, 3, 3, 64)
    assert shapes["conv5_3/conv/kernel"] == (3, 3, 512, 512)
    assert shapes["fc6/conv/kernel"] == (3, 3, 512, 1024)
    assert shapes["fc7/conv/kernel"] == (1, 1, 1024, 1024)
    assert shapes["fc8/kernel"] == (1, 1, 1024, 11)
    shapes = variables.shapes(models.create("deeplab_aspp", 11))
    assert len(shapes) == 2 * (13 + 12)
    for branch in range(1, 5):
        assert shapes[f"fc6_{branch}/conv/kernel"] == (3, 3, 512, 1024)
        assert shapes[f"fc8_{branch}/kernel"] == (1, 1, 1024, 11)


def test_batch_normalization_is_an_option():
    model = models.create("deeplab_largefov", 11, batch_norm=True)
    # Scale and shift of VGG16's 4,224 features and of fc6's and fc7's.
    assert variables.count(model) == 20_495_179 + 2 * (4_224 + 2 * 1024)
    assert "fc8" not in variables.abstract(model)["batch_stats"]


@pytest.mark.parametrize("case", [name for name in GOLDEN.files if name != "image"])
def test_logits_are_those_of_pytorch(case):
    name, _, stride = case.rpartition("_")
    model = narrow(name, output_stride=int(stride))
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = apply(variables.seeded(model), jnp.asarray(GOLDEN["image"]))
    assert np.abs(GOLDEN[case]).max() > 0.1
    np.testing.assert_allclose(logits, GOLDEN[case], atol=1e-4)


@pytest.mark.parametrize(
    ("output_stride", "rate", "side"), [(8, 12, 435), (16, 6, 467), (32, 3, 499)]
)
def test_the_field_of_view_is_that_of_every_output_stride(output_stride, rate, side):
    after_pool5a = BEFORE_FC6[output_stride] + 2 * output_stride
    assert side == after_pool5a + 2 * rate * output_stride
    model = narrow("deeplab_largefov", output_stride=output_stride)
    apply = jax.jit(functools.partial(model.apply, train=False))
    center = 256
    image = variables.lit(513, center - side // 2, center + side // 2)
    variables.assert_sees(apply(variables.positive(model), image)[:, center, 0])


def test_each_branch_has_a_field_of_view_of_its_own():
    model = narrow("deeplab_aspp")
    apply = jax.jit(functools.partial(model.apply, train=False))
    params = variables.positive(model)["params"]
    for branch, rate in enumerate((6, 12, 18, 24), start=1):
        others = {f"fc8_{n}" for n in range(1, 5)} - {f"fc8_{branch}"}
        dark = jax.tree.map(jnp.zeros_like, {name: params[name] for name in others})
        half = (BEFORE_FC6[8] + 2 * 8 * rate) // 2
        image = variables.lit(705, 352 - half, 352 + half)
        logits = apply({"params": params | dark}, image)
        variables.assert_sees(logits[:, 352, 0], f"rate {rate}")


def test_dropout_is_only_in_training_and_scores_start_small():
    model = narrow("deeplab_largefov", num_classes=64)
    image = jnp.asarray(GOLDEN["image"])
    state = variables.seeded(model)

    @jax.jit
    def train(key):
        return model.apply(state, image, train=True, rngs={"dropout": key})

    one, other = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(one - other).max() > 1e-3
    init = jax.jit(functools.partial(narrow("deeplab_largefov", 500).init, train=False))
    params = init(jax.random.key(0), image)["params"]
    assert np.std(params["fc8"]["kernel"]) == pytest.approx(0.01, rel=0.1)  # of 2,000 numbers
    np.testing.assert_array_equal(params["fc8"]["bias"], 0)
