"""Properties of every architecture, at a narrow width.

Sizes and types are asked of each by `jax.eval_shape`, which computes nothing; what must be computed
is computed for a few that stand for their families.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.errors import UserError
from support.errors import refusal
from support.variables import abstract

# The options that make each architecture narrow.
NARROW = {
    "segnet": {"width": 4},
    "segnet_basic": {"width": 4},
    "segnet_basic_encoder_addition": {"width": 4},
    "segnet_basic_single_channel_decoder": {"width": 4},
    "bilinear_interpolation": {"width": 4},
    "fcn_basic": {"width": 4},
    "fcn_basic_no_addition": {"width": 4},
    "fcn_basic_no_dim_reduction": {"width": 4},
    "fcn_basic_no_addition_no_dim_reduction": {"width": 4},
    "bayesian_segnet": {"width": 4},
    "bayesian_segnet_basic": {"width": 4},
    "fcn32s": {"width": 2, "fc_width": 4},
    "fcn16s": {"width": 2, "fc_width": 4},
    "fcn8s": {"width": 2, "fc_width": 4},
    "fcn4s": {"width": 2, "fc_width": 4},
    "deconvnet": {"width": 2, "fc_width": 4, "fc_kernel": 2},
    "unet": {"width": 2},
    "unet_resnet": {"width": 2, "trunk": "resnet18"},
    "deeplab_aspp": {"width": 2, "fc_width": 4},
    "deeplab_largefov": {"width": 2, "fc_width": 4},
    "deeplab_v2": {"width": 2, "trunk": "resnet18"},
    "deeplab_v3": {"width": 2, "aspp_width": 4, "trunk": "resnet18"},
    "dilation8": {"width": 2, "fc_width": 4},
    "fc_densenet56": {"layers": (1, 2, 2), "growth": 2, "width": 4},
    "fc_densenet67": {"growth": 2, "width": 4},
    "fc_densenet103": {"layers": (1, 2, 3), "growth": 2, "width": 4},
    "patch_cnn": {"kernel_sizes": (4, 4, 4), "width": 2, "fc_width": 4},
}
# Side of the smallest square image that an architecture accepts, if it is not one pixel.
LEAST = {"deconvnet": 33, "fc_densenet56": 4, "fc_densenet67": 32, "fc_densenet103": 4}
COMPILED = ["segnet", "segnet_basic"]

MODELS = sorted(models.MODELS)
CLASSES = 5
SIZES = [(360, 480), (361, 481), (97, 131), (7, 5), (1, 1)]
SHAPE = (2, 45, 61, 3)  # odd at every level of a pyramid of halves: 45, 23, 12, 6, 3, 2


def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def narrow(name, num_classes=CLASSES, **options):
    return models.create(name, num_classes, **NARROW[name], **options)


def side_of(name):
    """Return the side of an image that the architecture accepts."""
    return max(16, LEAST.get(name, 1))


def test_every_model_is_checked():
    assert set(NARROW) == set(MODELS)
    assert set(COMPILED) | set(LEAST) <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_size_of_the_input(name):
    model = narrow(name, 11)
    for channels, sizes in ((3, SIZES), (1, SIZES[:1])):
        variables = abstract(model, channels, side_of(name))
        for size in sizes:
            if min(size) < LEAST.get(name, 1):
                continue
            image = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
            logits = jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
            assert (logits.shape, logits.dtype) == ((2, *size, 11), jnp.float32)


@pytest.mark.parametrize("name", sorted(LEAST))
def test_an_image_that_is_too_small_is_refused(name):
    model, least = narrow(name), LEAST[name]
    variables = abstract(model, side=side_of(name))
    for size in ((least - 1, least), (least, least - 1), (1, 1)):
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        apply = functools.partial(model.apply, train=False)
        assert f"{size[0]}x{size[1]}" in refusal(jax.eval_shape, apply, variables, image)


@pytest.mark.parametrize("name", MODELS)
def test_no_class_or_an_unknown_option_is_refused(name):
    with pytest.raises(UserError, match=f"^model {name} is asked for 0 classes, expected at least"):
        models.create(name, 0)
    known = f"unknown option 'widht' of model {name}; known: .*{next(iter(NARROW[name]))}"
    with pytest.raises(UserError, match=f"^{known}"):
        models.create(name, 11, widht=1)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computes_low_and_stores_float32(name):
    model = narrow(name, dtype=jnp.bfloat16)
    side = max(45, LEAST.get(name, 1))
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)

    def train(image):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init_with_output(
            keys, image, train=True, mutable=True, capture_intermediates=True
        )

    with jax.numpy_dtype_promotion("standard"):  # Flax's batch normalization relies on it
        logits, variables = jax.eval_shape(train, image)
    inner = variables.pop("intermediates")
    del inner["__call__"]  # the logits again
    for tree, dtype in ((logits, jnp.float32), (variables, jnp.float32), (inner, jnp.bfloat16)):
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
    assert {"params"} <= set(variables) <= {"params", "batch_stats"}


@functools.cache
def filled(name):
    """Return a narrow model and random variables."""
    model, rng = narrow(name), np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            values = rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
        elif path[-1].key in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return model, jax.tree.map_with_path(fill, abstract(model, side=side_of(name)))


@functools.cache
def infer(name):
    """Return logits, and the gradients of the first image's by the parameters and all images."""
    model, variables = filled(name)

    def loss(params, images):
        logits = model.apply(variables | {"params": params}, images, train=False)
        return jnp.mean(jnp.square(logits[0] - 1)), logits

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, logits = jax.jit(gradient)(variables["params"], images())
    return np.asarray(logits), *gradients


@functools.cache
def train(name):
    """Return the gradient of a weighting of the logits, the logits and the new statistics."""
    model, variables = filled(name)
    weight = np.random.default_rng(1).normal(size=(*SHAPE[:3], CLASSES)).astype(np.float32)

    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params},
            images(),
            train=True,
            mutable="batch_stats",
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.sum(logits * weight), (logits, updates.get("batch_stats", {}))

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def leaves(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", COMPILED)
def test_logits_of_an_odd_size_depend_on_all_pixels(name):
    logits, _, of_images = infer(name)
    assert np.isfinite(logits).all()
    seen = np.abs(of_images[0]).sum(-1) > 0
    for edge in (logits[:, 0], logits[:, -1], logits[:, :, 0], logits[:, :, -1]):
        assert edge.std() > 0.05 * logits.std()
    for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]):
        assert edge.mean() > 0.5


@pytest.mark.parametrize("name", COMPILED)
def test_images_of_a_batch_do_not_mix_at_inference(name):
    _, _, of_images = infer(name)
    assert np.abs(of_images[0]).max() > 0
    np.testing.assert_array_equal(of_images[1], 0)


@pytest.mark.parametrize("name", COMPILED)
def test_every_parameter_has_a_gradient(name):
    _, inference, _ = infer(name)
    gradient, _ = train(name)
    found = leaves(gradient)
    assert found.keys() == leaves(filled(name)[1]["params"]).keys()
    largest = max(np.abs(leaf).max() for leaf in found.values())
    for path, leaf in found.items():
        assert np.isfinite(leaf).all(), path
        # Batch normalization takes away the mean, and with it the bias of the convolution before.
        if path.endswith("/conv/bias") and path.replace("conv/bias", "bn/bias") in found:
            assert np.abs(leaf).max() < 1e-4 * largest, path
        else:
            assert np.abs(leaf).max() > 1e-4 * largest, path
    for path, leaf in leaves(inference).items():
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


@pytest.mark.parametrize("name", COMPILED)
def test_training_changes_the_statistics(name):
    _, (logits, updated) = train(name)
    for path, leaf in leaves(updated).items():
        assert not np.array_equal(leaf, leaves(filled(name)[1]["batch_stats"])[path]), path
    assert not np.allclose(logits, infer(name)[0], rtol=0.1)


def test_jit_is_eager_and_inference_changes_no_statistics():
    model, variables = filled("segnet_basic")
    eager, kept = model.apply(variables, images(), train=False, mutable="batch_stats")
    expected, *_ = infer("segnet_basic")
    np.testing.assert_allclose(eager, expected, atol=1e-5 * np.abs(expected).max())
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("name", COMPILED)
def test_bfloat16_agrees_with_float32(name):
    model = narrow(name, dtype=jnp.bfloat16)
    apply = jax.jit(functools.partial(model.apply, train=False))
    with jax.numpy_dtype_promotion("standard"):
        logits = np.asarray(apply(filled(name)[1], images()))
    expected, *_ = infer(name)
    # Rounding moves some maxima, so the maps agree as a whole but not at every pixel.
    slope, offset = np.polyfit(expected.ravel(), logits.ravel(), 1)
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.9
    assert abs(slope - 1) < 0.15
    assert abs(offset) < 0.1 * expected.std()
    assert not np.array_equal(logits, expected)


def test_an_unknown_model_is_refused():
    known = f"; did you mean 'segnet'.; known: {', '.join(MODELS)}$"
    with pytest.raises(UserError, match=f"^unknown model 'segnett'{known}"):
        models.create("segnett", 11)


def test_a_field_that_is_not_an_option_is_refused():
    with pytest.raises(UserError, match=r"^unknown option 'parent' of model segnet; known: "):
        models.create(name="segnet", num_classes=11, parent=1)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("segnet", "width", [0, -1, 2.0, "4", True]),
        ("fcn8s", "padding", ["valid"]),
        ("fcn8s", "upsampling", ["cubic"]),
        ("unet", "padding", ["zero"]),
        ("dilation8", "context", ["huge"]),
        ("deeplab_largefov", "output_stride", [4]),
        ("deeplab_largefov", "rate", [0]),
        ("deeplab_aspp", "output_stride", [4]),
        ("deeplab_aspp", "rates", [(), (0, 6), (6, 1.5), 6]),
        ("deeplab_v2", "output_stride", [64]),
        ("deeplab_v2", "rates", [()]),
        ("deeplab_v3", "output_stride", [4]),
        ("deeplab_v3", "blocks", [8]),
        ("deeplab_v3", "multi_grid", [(1, 2), (1, 2, 0)]),
        ("deeplab_v3", "trunk", ["vgg16"]),
    ],
)
def test_a_value_that_an_option_does_not_allow_is_refused(name, option, values):
    for value in values:
        said = refusal(models.create, name, 11, **{option: value})
        assert said.startswith(f"option '{option}' of model {name} is {value!r}, expected ")


def test_options_are_the_models_fields():
    model = models.create("segnet_basic", 7, width=3, dtype=jnp.bfloat16)
    assert (model.num_classes, model.width, model.dtype) == (7, 3, jnp.bfloat16)
