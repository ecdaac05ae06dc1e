"""The dense CRF against its definition, summed over all pairs of pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from segjax.errors import UserError
from segjax.inference import crf
from support.errors import refusal

HEIGHT, WIDTH, CLASSES = 16, 20, 4


def pair_kernel(features):
    """Return exp(-|f_i - f_j|^2 / 2) of all pairs, float64 (N, N)."""
    features = features.astype(np.float64)
    return np.exp(-((features[:, None] - features) ** 2).sum(-1) / 2)


def normalized(kernel):
    """Divide each entry by the root of its row sum and column sum."""
    root = np.sqrt(kernel.sum(1))
    return kernel / root[:, None] / root


def pair_features(image, width, color_width):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    color = image.reshape(-1, image.shape[2]) / color_width
    return np.column_stack([y.ravel() / width, x.ravel() / width, color]).astype(np.float32)


def exact(parameters, image, probabilities):
    """Run ten iterations of mean field with the kernels as matrices, O(N^2)."""
    appearance = normalized(pair_kernel(pair_features(image, parameters.bi_xy, parameters.bi_rgb)))
    smoothness = normalized(pair_kernel(pair_features(image, parameters.pos_std, np.inf)))
    scores = np.log(probabilities.reshape(-1, probabilities.shape[-1]).astype(np.float64))
    marginals = softmax(scores, -1)
    for _ in range(10):
        # The cost w k(i, j) of different labels is a gain for equal ones, up to a constant.
        gain = parameters.bi_w * appearance @ marginals + parameters.pos_w * smoothness @ marginals
        marginals = softmax(scores + gain, -1)
    return marginals.reshape(probabilities.shape)


def scene(seed, noise):
    """Return a noisy image of three areas, and class probabilities that are often wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    label = np.where(y < 6, 0, np.where(x < 9 + y // 4, 1, 2))
    colors = rng.uniform(40, 215, (CLASSES, 3))
    image = colors[label] + rng.normal(0, noise, (HEIGHT, WIDTH, 3))
    logits = 2.0 * np.eye(CLASSES)[label] + rng.normal(0, 1.2, (HEIGHT, WIDTH, CLASSES))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image, label, softmax(logits, -1).astype(np.float32)


# The lattice's kernel is a Gaussian to about a tenth. Where the published weights leave a pixel
# between two labels, they amplify a small difference: hence bounds on the mean for them, and on
# every marginal for weaker ones.
@pytest.mark.parametrize(
    ("parameters", "noise", "mean", "most"),
    [
        ("v1", 4, 0.001, None),
        ("v2", 4, 0.001, None),
        ("v1", 20, 0.01, None),
        ("v2", 20, 0.01, None),
        ("0.5,1,1,8,10", 4, 0.003, 0.03),
        ("0.5,1,1,3,40", 20, 0.003, 0.03),
        ("1,2,0,8,10", 20, 1e-6, 1e-5),  # the smoothness kernel alone, which is exact
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_marginals_match_sum_over_all_pairs(seed, parameters, noise, mean, most):
    image, label, probabilities = scene(seed, noise)
    expected = exact(crf.parse(parameters), image, probabilities)
    made = crf.refine(crf.parse(parameters), image, probabilities)
    assert (made.shape, made.dtype) == (probabilities.shape, np.float32)
    np.testing.assert_allclose(made.sum(-1), 1, atol=1e-5)
    difference = np.abs(made - expected)
    assert difference.mean() < mean
    assert most is None or difference.max() < most
    assert np.mean(made.argmax(-1) == expected.argmax(-1)) >= 0.98
    # The CRF corrects many labels, so the comparison is not trivial.
    before = np.mean(probabilities.argmax(-1) == label)
    assert np.mean(made.argmax(-1) == label) > before + 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_lattice_filters_by_unit_gaussian(channels):
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 60, (HEIGHT, WIDTH, channels)).astype(np.uint8)
    features = pair_features(image, 6, 25)
    lattice = crf.build_lattice(features)
    made = crf.filter_lattice(lattice, jnp.eye(HEIGHT * WIDTH, dtype=jnp.float32))
    made = normalized(np.asarray(made, np.float64))

    def error(width):
        expected = normalized(pair_kernel(features / width))
        return np.linalg.norm(made - expected) / np.linalg.norm(expected)

    assert error(1.0) < 0.18
    assert error(1.0) < min(error(0.85), error(1.25))
    assert np.abs(made - made.T).max() < 0.05 * made.max()


def test_barycentric_weights_of_simplex_corners():
    image, _, _ = scene(0, 20)
    corners, shares, neighbors = map(np.asarray, crf.build_lattice(pair_features(image, 8, 10)))
    assert corners.shape == shares.shape == (HEIGHT * WIDTH, 6)
    assert shares.min() > -1e-5
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    # Corners of a simplex differ from each other; a neighbor's neighbor is the point itself.
    assert all(len(set(row)) == 6 for row in corners.tolist())
    nowhere = neighbors.shape[-1] - 1
    for one, other in neighbors:
        there = np.flatnonzero(one != nowhere)
        assert len(there)
        np.testing.assert_array_equal(other[one[there]], there)


def test_zero_weights_change_nothing():
    image, _, probabilities = scene(0, 20)
    made = crf.refine(crf.parse("0,1,0,8,10"), image, probabilities)
    np.testing.assert_allclose(made, probabilities, rtol=1e-5)


def test_no_class_is_preferred():
    image, _, probabilities = scene(0, 20)
    order = np.array([2, 0, 3, 1])
    made = crf.refine(crf.PRESETS["v2"], image, probabilities)
    turned = crf.refine(crf.PRESETS["v2"], image, probabilities[..., order])
    np.testing.assert_allclose(turned, made[..., order], atol=1e-3)


def test_probabilities_of_zero_and_one_stay_finite():
    image, label, _ = scene(0, 4)
    certain = np.eye(CLASSES, dtype=np.float32)[label]
    made = crf.refine(crf.PRESETS["v1"], image, certain)
    np.testing.assert_allclose(made, certain, atol=1e-6)


def test_few_lattice_sizes_are_compiled():
    sizes = {crf._rounded_up(count) for count in range(1 << 16, 1 << 17)}
    assert len(sizes) == 5  # the last begins the next octave
    assert all(count <= crf._rounded_up(count) < 1.26 * count for count in range(8, 5000))


@pytest.mark.parametrize("text", ["v1", "v2", "1,0.5,2,30,8.25"])
def test_describe_inverts_parse(text):
    assert crf.describe(crf.parse(text)) == text


def test_presets_have_names():
    assert crf.describe(crf.parse("3,3,4,121,5")) == "v1"
    assert crf.describe(crf.parse("3,1,4,67,3")) == "v2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v3", "CRF 'v3', expected v1, v2 or five numbers pos_w,pos_std,bi_w,bi_xy,bi_rgb"),
        ("", "CRF ''"),
        ("3,1,4,67", "CRF '3,1,4,67', expected"),
        ("3,1,4,67,three", "expected v1"),
        ("-1,1,4,67,3", "CRF pos_w is -1, expected a number of at least 0"),
        ("3,0,4,67,3", "CRF pos_std is 0, expected a number above 0"),
        ("3,1,4,67,nan", "CRF bi_rgb is nan, expected a number above 0"),
        ("3,1,inf,67,3", "CRF bi_w is inf, expected a number of at least 0"),
    ],
)
def test_invalid_parameters_are_an_error(text, said):
    assert said in refusal(crf.parse, text)


def test_tiny_widths_are_an_error():
    image, _, probabilities = scene(0, 20)
    with pytest.raises(UserError, match="bi_rgb 1e-06 are too small for an image of 16x20"):
        crf.refine(crf.parse("3,1,4,1e-6,1e-6"), image, probabilities)
