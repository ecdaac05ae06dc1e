"""PatchCNN: the same logits by sliding window and fully convolutionally, at different cost."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.config import default
from segjax.data import loader
from segjax.errors import UserError
from segjax.models import flops
from segjax.runs import experiment
from support import variables
from support.errors import refusal
from support.windows import sliding_window

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "patches.npz")


def narrow(kernel_sizes=(4, 3)):
    return models.create("patch_cnn", 3, kernel_sizes=kernel_sizes, width=4, fc_width=5)


@functools.cache
def label(kernel_sizes=(4, 3)):
    return jax.jit(functools.partial(narrow(kernel_sizes).apply, train=False))


def test_the_papers_network():
    model = models.create("patch_cnn", 11)
    assert model.patch_size == 95
    # 16*3*48 + 48, 25*48*48 + 48, twice 16*48*48 + 48, 9*48*200 + 200, 200*11 + 11.
    assert variables.count(model) == 2_352 + 57_648 + 2 * 36_912 + 86_600 + 2_211
    assert set(variables.shapes(model)) == {
        *(
            f"{name}/conv/{kind}"
            for name in ("conv1", "conv2", "conv3", "conv4", "fc1")
            for kind in ("kernel", "bias")
        ),
        *("fc2/kernel", "fc2/bias"),
    }


def test_logits_are_those_of_pytorch():
    state = variables.seeded(narrow())
    logits = narrow().apply(state, jnp.asarray(GOLDEN["patches"]), train=True)
    assert logits.shape == (6, 1, 1, 3)
    np.testing.assert_allclose(logits[:, 0, 0], GOLDEN["logits"], atol=1e-4)


# Windows of 19, 20 and 14 pixels, with and without a pixel in the middle, wider than the image.
@pytest.mark.parametrize("kernel_sizes", [(4, 3), (3, 4), (9,)])
def test_sliding_window_and_fully_convolutional_are_the_same(kernel_sizes):
    model = narrow(kernel_sizes)
    image = np.random.default_rng(0).normal(size=(2, 10, 13, 3)).astype(np.float32)
    state = variables.seeded(model)
    dense = np.asarray(label(kernel_sizes)(state, image))
    slid = np.asarray(sliding_window(model, state, jnp.asarray(image)))
    assert dense.shape == slid.shape == (2, 10, 13, 3)
    assert dense.std((1, 2)).min() > 0.05
    np.testing.assert_allclose(dense, slid, atol=1e-5)
    np.testing.assert_array_equal(dense.argmax(-1), slid.argmax(-1))


def test_a_pixel_sees_its_window_and_nothing_else():
    model, center = narrow(), 30
    half = model.patch_size // 2
    image = variables.lit(61, center - half, center + half)
    variables.assert_sees(label()(variables.positive(model), image)[:, center, 0])


def test_training_and_inference_agree():
    """A patch has the logits of its center in the whole image."""
    model, size = narrow(), (9, 12)
    state = variables.seeded(model)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32),
        "label": jnp.arange(2 * 9 * 12, dtype=jnp.uint8).reshape(2, *size),  # which pixel it is
    }
    drawn = loader.patch_batch(batch, 0, jnp.int32(3), 0, 8, model.patch_size)
    logits = model.apply(state, drawn["image"], train=True)
    whole = np.asarray(label()(state, batch["image"])).reshape(-1, 3)
    place = np.asarray(drawn["label"])[:, 0, 0]
    assert logits.shape == (16, 1, 1, 3)
    assert len(set(place.tolist())) > 8
    assert (place[:8] < 108).all()
    assert (place[8:] >= 108).all()
    np.testing.assert_allclose(logits[:, 0, 0], whole[place], atol=1e-5)


def test_the_redundancy_of_the_papers_window():
    model = models.create("patch_cnn", 11)
    window = flops.forward_macs(model, (95, 95, 3), train=True)
    dense = flops.forward_macs(model, (360, 480, 3))
    assert round(360 * 480 * window / dense) == 499


def test_other_sizes_than_the_window_are_refused_in_training():
    with pytest.raises(UserError, match=r"^patch_cnn trains on patches of 19x19 \(data\.patches\)"):
        narrow().apply(variables.seeded(narrow()), jnp.zeros((1, 24, 32, 3)), train=True)


@pytest.mark.parametrize(
    ("model", "patches", "said"),
    [
        ("patch_cnn", 0, "'data.patches' is 0, but model patch_cnn trains on patches, expected at"),
        ("segnet", 4, "'data.patches' is 4, but model segnet trains on whole images, expected 0"),
    ],
)
def test_patches_and_whole_images_are_not_confused(model, patches, said):
    config = default()
    config.model.name, config.data.patches = model, patches
    assert said in refusal(experiment.check_names, config)
