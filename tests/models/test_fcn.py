"""The FCNs: parameters, sizes, crops and skips, and the logits of an independent implementation."""

import functools
import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax import models
from segjax.errors import UserError
from segjax.models import fcn
from support import variables

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8, "fcn4s": 4}
GOLDEN = Path(__file__).parents[1] / "golden" / "fcn.npz"
NARROW = {"width": 2, "fc_width": 6}
DEPTHS = (2, 2, 3, 3, 3)
TRUNK = [f"conv{stage}_{n + 1}" for stage, depth in enumerate(DEPTHS, 1) for n in range(depth)]
BLOCKS = [*TRUNK, "fc6", "fc7"]


def count(name, num_classes, **options):
    return variables.count(models.create(name, num_classes, **options))


@pytest.mark.parametrize(
    ("name", "num_classes", "fixed", "learned"),
    [
        # VGG16 14,714,688; fc6 7*7*512*4096 + 4096; fc7 4096^2 + 4096; the scores 4097, 513, 257
        # and 129 per class. With learned upsampling, k^2 per pair of classes.
        ("fcn32s", 11, 134_305_611, 134_801_227),
        ("fcn16s", 11, 134_311_254, 134_437_094),
        ("fcn8s", 11, 134_314_081, 134_348_929),
        ("fcn8s", 21, 134_362_751, 134_489_759),
        ("fcn4s", 11, 134_314_081 + 129 * 11, 134_315_500 + (3 * 4**2 + 8**2) * 11**2),
    ],
)
def test_parameters(name, num_classes, fixed, learned):
    assert count(name, num_classes) == fixed
    assert count(name, num_classes, upsampling="nearest", padding="same") == fixed
    assert count(name, num_classes, upsampling="learnt") == learned
    # A scale and a shift for each of VGG16's 4,224 features and of fc6's and fc7's 8,192.
    assert count(name, num_classes, batch_norm=True) == fixed + 2 * (4_224 + 8_192)


def test_names_are_those_of_the_authors_files():
    found = variables.shapes(models.create("fcn8s", 21, upsampling="learnt"))
    convolutions = [f"{name}/conv" for name in BLOCKS]
    scores = ["score_fr", "score_pool4", "score_pool3"]
    kernels = [f"{name}/kernel" for name in (*convolutions, *scores)]
    biases = [f"{name}/bias" for name in (*convolutions, *scores)]
    upscores = {"upscore2/kernel": 4, "upscore_pool4/kernel": 4, "upscore8/kernel": 16}
    assert set(found) == {*kernels, *biases, *upscores}
    for path, size in upscores.items():
        assert found[path] == (size, size, 21, 21)
    assert found["fc6/conv/kernel"] == (7, 7, 512, 4096)
    assert found["fc7/conv/kernel"] == (1, 1, 4096, 4096)
    assert found["score_pool3/kernel"] == (1, 1, 256, 21)


def test_fcn32s_has_no_pools_to_scale():
    with pytest.raises(UserError, match=r"^unknown option 'at_once' of model fcn32s; known: "):
        models.create("fcn32s", 11, at_once=True)


def intermediates(model, size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def apply(variables, image):
        return model.apply(
            variables, image, train=False, mutable="intermediates", capture_intermediates=True
        )

    logits, state = jax.eval_shape(apply, variables.abstract(model), image)
    modules = {k: v for k, v in state["intermediates"].items() if isinstance(v, dict)}
    return logits.shape, {k: v["__call__"][0].shape for k, v in modules.items() if "__call__" in v}


def test_sizes_of_the_maps_for_camvid():
    model = models.create("fcn32s", 11, upsampling="learnt", **NARROW)
    logits, maps = intermediates(model, (360, 480))
    assert maps["conv1_1"][1:3] == (558, 678)
    assert maps["conv5_3"][1:3] == (35, 43)  # pooled to 18x22
    assert maps["fc6"][1:3] == maps["score_fr"][1:3] == (12, 16)
    assert maps["upscore32"][1:3] == (416, 544)
    assert logits == (1, 360, 480, 11)
    _, maps = intermediates(models.create("fcn32s", 11, padding="same", **NARROW), (360, 480))
    assert maps["fc6"][1:3] == (12, 15)


# Sides whose map with pad100 just divides by 32 (26, 58) or just does not (27, 59), and by 8.
@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("padding", get_args(fcn.Padding))
def test_any_size_fits(name, padding):
    for upsampling, size in [
        ("bilinear", (1, 33)),
        ("bilinear", (26, 59)),
        ("nearest", (27, 58)),
        ("bed_of_nails", (34, 35)),
    ]:
        model = models.create(name, 3, padding=padding, upsampling=upsampling, **NARROW)
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        init = functools.partial(model.init_with_output, train=False)
        logits, _ = jax.eval_shape(init, jax.random.key(0), image)
        assert (logits.shape, logits.dtype) == ((1, *size, 3), jnp.float32)


def test_the_published_crops_align_the_pixels():
    # Where in the image the middle of pixel 0 of each map lies.
    center, pools = Fraction(-99), {}
    for number in range(1, 6):
        center += Fraction(2 ** (number - 1), 2)  # between two pixels of the map above
        pools[number] = center
    center += 3 * 32  # fc6 is not padded
    assert fcn.OFFSETS[32] == Fraction(63, 2) - center
    stride = 32
    for number, (_, offset, _) in fcn.SKIPS.items():
        stride //= 2
        center -= stride * Fraction(3, 2)  # a kernel of 4 pixels
        assert offset == (center - pools[number]) / stride
        assert fcn.OFFSETS[stride] == Fraction(2 * stride - 1, 2) - center
    assert {32: 19, 16: 27, 8: 31}.items() <= fcn.OFFSETS.items()
    assert [offset for _, offset, _ in fcn.SKIPS.values()][:2] == [5, 9]


CASES = {
    "fcn32s": ("fcn32s", {}),
    "fcn16s_learnt": ("fcn16s", {"upsampling": "learnt"}),
    "fcn8s": ("fcn8s", {}),
    "fcn8s_at_once": ("fcn8s", {"at_once": True}),
    "fcn8s_same_learnt": ("fcn8s", {"upsampling": "learnt", "padding": "same"}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_an_independent_implementation(case):
    name, options = CASES[case]
    model = models.create(name, 3, **NARROW, **options)
    with np.load(GOLDEN) as golden:
        image, expected = golden[f"{case}/image"], golden[f"{case}/logits"]
    logits = jax.jit(functools.partial(model.apply, train=False))(variables.seeded(model), image)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


@functools.cache
def network(name, upsampling="bilinear", padding="same"):
    """Compile the logits and the gradient of one by the parameters; draw variables."""
    model = models.create(name, 2, upsampling=upsampling, padding=padding, **NARROW)
    image = np.random.default_rng(0).normal(size=(1, 40, 44, 3)).astype(np.float32)

    def logit(params):
        logits = model.apply({"params": params}, image, train=False)
        return logits[0, 17, 23, 1], logits

    return jax.jit(jax.grad(logit, has_aux=True)), variables.seeded(model)["params"]


# The finest convolution whose output each score sees first hand.
DEEPEST = {
    "score_fr": "fc7",
    "score_pool4": "conv4_3",
    "score_pool3": "conv3_3",
    "score_pool2": "conv2_2",
}


@pytest.mark.parametrize("name", STRIDES)
def test_each_score_sees_its_own_pool_and_the_layers_before(name):
    gradient_of, params = network(name)
    scores = [score for score in DEEPEST if score in params]
    assert len(scores) == 1 + len([s for s in fcn.SKIPS if 2**s >= STRIDES[name]])
    for alone in (*scores, None):
        changed = {
            score: params[score] if score == alone else jax.tree.map(np.zeros_like, params[score])
            for score in scores
        }
        gradient, logits = gradient_of({**params, **changed})
        assert (logits != 0).any() == (alone is not None)
        reached = [block for block in BLOCKS if np.any(gradient[block]["conv"]["kernel"] != 0)]
        expected = BLOCKS[: BLOCKS.index(DEEPEST[alone]) + 1] if alone else []
        assert reached == expected, alone
        # A score of zero can still learn: its gradient is what its pool holds.
        assert all(np.any(gradient[score]["kernel"] != 0) for score in scores)


def test_scores_are_zero_at_first():
    model = models.create("fcn8s", 3, upsampling="learnt", **NARROW)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for score in ("score_fr", "score_pool4", "score_pool3"):
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), params[score])
    line = np.array([0.25, 0.75, 0.75, 0.25])
    for label, other in itertools.product(range(3), repeat=2):
        kernel = params["upscore2"]["kernel"][:, :, label, other]
        np.testing.assert_array_equal(kernel, np.outer(line, line) * (label == other))
    kernel = params["conv3_1"]["conv"]["kernel"]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 4)), rel=0.2)


@pytest.mark.parametrize("padding", get_args(fcn.Padding))
@pytest.mark.parametrize("factor", [2, 8])
def test_upsampling_starts_as_interpolation_in_the_frame_of_caffe(padding, factor):
    class Upsample(fcn.FCN):
        @nn.compact
        def __call__(self, x):
            return self._upsample(x, factor, "up")

    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
    results = {}
    for upsampling in get_args(fcn.Upsampling):
        model = Upsample(2, padding=padding, upsampling=upsampling)
        results[upsampling] = np.asarray(model.init_with_output(jax.random.key(0), x)[0])[0]
    border = factor // 2 if padding == "pad100" else 0
    shape = (5 * factor + 2 * border, 4 * factor + 2 * border, 2)
    assert {y.shape for y in results.values()} == {shape}
    np.testing.assert_allclose(results["learnt"], results["bilinear"], rtol=1e-5, atol=1e-6)
    inside = np.s_[border : border + 5 * factor, border : border + 4 * factor]
    blocks = x[0].repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(results["nearest"][inside], blocks)
    # Nails stand at the corners of the blocks, bilinear between them.
    nails = results["bed_of_nails"][inside]
    np.testing.assert_allclose(nails[::factor, ::factor], x[0], rtol=1e-6)
    middle = nails[factor // 2 :: factor, ::factor]
    np.testing.assert_allclose(middle[:-1], (x[0, 1:] + x[0, :-1]) / 2, rtol=1e-5, atol=1e-6)


def test_dropout_follows_from_its_key():
    model = models.create("fcn8s", 2, dropout=0.5, **NARROW)
    state, image = variables.seeded(model), np.ones((1, 9, 9, 3), np.float32)

    @jax.jit
    def apply(key):
        return model.apply(state, image, train=True, rngs={"dropout": key})

    one, same, other = (apply(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
