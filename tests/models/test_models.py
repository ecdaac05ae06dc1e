"""What every architecture promises, at a narrow width."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import jit_once
from segjax import models
from segjax.errors import UserError

MODELS = sorted(models.MODELS)
CLASSES, WIDTH = 5, 4
SHAPE = (2, 45, 61, 3)  # odd at every level of a pyramid of halves: 45, 23, 12, 6, 3, 2


def images(shape=SHAPE):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@functools.cache
def narrow(name):
    """A model and its variables."""
    model = models.create(name, CLASSES, width=WIDTH)
    return model, jit_once(functools.partial(model.init, train=False))(jax.random.key(0), images())


@functools.cache
def infer(name):
    model, variables = narrow(name)
    return np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images()))


@functools.cache
def gradient_in_training(name):
    """Gradient of a random weighting of the logits, the logits and the new statistics."""
    model, variables = narrow(name)
    weight = np.random.default_rng(1).normal(size=(*SHAPE[:3], CLASSES)).astype(np.float32)

    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params}, images(), train=True, mutable="batch_stats"
        )
        return jnp.sum(logits * weight), (logits, updates["batch_stats"])

    return jit_once(jax.grad(loss, has_aux=True))(variables["params"])


def leaves(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(360, 480), (45, 61), (33, 16), (7, 5), (1, 1)])
def test_logits_have_the_size_of_the_input(name, size, channels):
    model, image = models.create(name, 11), jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)

    def run(image):
        return model.init_with_output(jax.random.key(0), image, train=False)[0]

    logits = jax.eval_shape(run, image)
    assert (logits.shape, logits.dtype) == ((2, *size, 11), jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_an_odd_size_use_all_of_it(name):
    logits = infer(name)
    assert logits.shape == (*SHAPE[:3], CLASSES)
    assert np.isfinite(logits).all()
    for edge in (logits[:, 0], logits[:, -1], logits[:, :, 0], logits[:, :, -1]):
        assert edge.std() > 0.05 * logits.std()


@pytest.mark.parametrize("name", MODELS)
def test_images_of_a_batch_do_not_mix_at_inference(name):
    model, variables = narrow(name)
    alone = jit_once(functools.partial(model.apply, train=False))(variables, images()[1:])
    np.testing.assert_allclose(alone[0], infer(name)[1], atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("name", MODELS)
def test_jit_is_eager(name):
    model, variables = narrow(name)
    eager = np.asarray(model.apply(variables, images(), train=False))
    np.testing.assert_allclose(infer(name), eager, atol=1e-5 * np.abs(eager).max())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    gradient, _ = gradient_in_training(name)
    found = leaves(gradient)
    assert found.keys() == leaves(narrow(name)[1]["params"]).keys()
    largest = max(np.abs(leaf).max() for leaf in found.values())
    for path, leaf in found.items():
        assert np.isfinite(leaf).all(), path
        # Batch normalisation takes away the mean, and with it the bias of the convolution before.
        if path.endswith("/conv/bias"):
            assert np.abs(leaf).max() < 1e-5 * largest, path
        else:
            assert np.abs(leaf).max() > 1e-4 * largest, path


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_with_running_statistics(name):
    model, variables = narrow(name)

    def loss(params):
        logits = model.apply(variables | {"params": params}, images(), train=False)
        return jnp.mean(jnp.square(logits - 1))

    for path, leaf in leaves(jit_once(jax.grad(loss))(variables["params"])).items():
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


@pytest.mark.parametrize("name", MODELS)
def test_training_changes_the_statistics_and_inference_does_not(name):
    model, variables = narrow(name)
    before = leaves(variables["batch_stats"])
    _, (logits, updated) = gradient_in_training(name)
    for path, leaf in leaves(updated).items():
        assert not np.array_equal(leaf, before[path]), path
    assert not np.allclose(logits, infer(name), rtol=0.1)
    apply = jit_once(functools.partial(model.apply, train=False, mutable="batch_stats"))
    _, kept = apply(variables, images())
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computes_low_and_keeps_high(name):
    model = models.create(name, CLASSES, width=WIDTH, dtype=jnp.bfloat16)

    def train(image):
        return model.init_with_output(
            jax.random.key(0), image, train=True, mutable=True, capture_intermediates=True
        )

    with jax.numpy_dtype_promotion("standard"):  # Flax's batch normalisation relies on it
        logits, variables = jax.eval_shape(train, images())
    inner = variables.pop("intermediates")
    del inner["__call__"]  # the logits again
    for tree, dtype in ((logits, jnp.float32), (variables, jnp.float32), (inner, jnp.bfloat16)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_agrees_with_float32(name):
    model = models.create(name, CLASSES, width=WIDTH, dtype=jnp.bfloat16)
    apply = jit_once(functools.partial(model.apply, train=False))
    with jax.numpy_dtype_promotion("standard"):
        logits = np.asarray(apply(narrow(name)[1], images()))
    # Rounding moves a maximum here and there, so the maps agree as a whole and not everywhere.
    assert np.corrcoef(logits.ravel(), infer(name).ravel())[0, 1] > 0.9
    assert not np.array_equal(logits, infer(name))


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match=f"^unknown model 'segnett'; known: {', '.join(MODELS)}$"):
        models.create("segnett", 11)


@pytest.mark.parametrize("option", ["widht", "num_classes", "parent", "name"])
def test_an_unknown_option_is_refused(option):
    message = f"^unknown option '{option}' of model segnet; known: width$"
    with pytest.raises(UserError, match=message):
        models.create("segnet", 11, **{option: 1})


def test_options_are_the_models_fields():
    model = models.create("segnet_basic", 7, width=3, dtype=jnp.bfloat16)
    assert (model.num_classes, model.width, model.dtype) == (7, 3, jnp.bfloat16)
