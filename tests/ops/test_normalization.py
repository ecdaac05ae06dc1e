import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.normalization import batch_norm, local_response_normalization, normalize
from segjax.ops.platform import shapes_only


def loop(x):
    """Compute the formula in float64, channel by channel."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    channels = x.shape[-1]
    for c in range(channels):
        energy = np.zeros(x.shape[:-1])
        for k in range(c - 2, c + 3):
            if 0 <= k < channels:
                energy += x[..., k] ** 2
        y[..., c] = x[..., c] / (1 + 1e-4 / 5 * energy) ** 0.75
    return y


def pixels(channels, shape=(2, 4, 5)):
    values = np.random.default_rng(0).uniform(0, 255, (*shape, channels))
    return jnp.asarray(values, jnp.float32)


def test_a_pixel_by_hand():
    # 100^2 + 200^2 = 50000; 1 + 1e-4 / 5 * 50000 = 2; 2^0.75 = 1.681793.
    y = local_response_normalization(jnp.array([[100.0, 200.0, 0.0]]))
    np.testing.assert_allclose(y, [[59.46036, 118.92071, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 11])
def test_the_formula(channels):
    x = pixels(channels)
    y = local_response_normalization(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, loop(x), rtol=2e-6)


def test_three_channels_share_one_divisor():
    # The window of 5 holds all of RGB, so the hue stays.
    x = pixels(3)
    ratio = np.asarray(local_response_normalization(x) / x)
    np.testing.assert_allclose(ratio, ratio[..., :1].repeat(3, -1), rtol=1e-6)
    assert ratio.std() > 0.05


def test_gradient_of_the_formula():
    pixel, step = pixels(3, (6,)), 1e-3
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(local_response_normalization(x))))(pixel)
    x = np.asarray(pixel, np.float64)
    reference = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        shift = np.zeros(x.shape)
        shift[at] = step
        above, below = (np.square(loop(x + s * shift)).sum() for s in (1, -1))
        reference[at] = (above - below) / (2 * step)
    np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-3)


def test_black_stays_black():
    np.testing.assert_array_equal(local_response_normalization(jnp.zeros((2, 3))), 0)


@pytest.fixture(params=["on a CPU", "elsewhere"])
def platform(request):
    """Run a test with the operations for a CPU, and with those for other platforms."""
    if request.param == "on a CPU":
        yield
    else:
        with shapes_only():
            yield


def test_a_batch_by_hand(platform):
    x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
    y, mean, var = batch_norm(x, jnp.array([2.0, 1.0]), jnp.array([1.0, -1.0]), epsilon=3.0)
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(var, [1.0, 0.0])
    # 2 (x - 2) / sqrt(1 + 3) + 1 and (x - 5) / sqrt(3) - 1.
    np.testing.assert_allclose(y, [[0.0, -1.0], [2.0, -1.0]], atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 100.0, 1e4])
def test_the_variance_is_exact_for_a_mean_far_from_zero(mean, platform):
    x = np.random.default_rng(0).normal(mean, 1, (4, 40, 40, 3)).astype(np.float32)
    _, found_mean, found = batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3), epsilon=1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found, exact.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found_mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)


def test_no_gradient_passes_a_relu_at_zero(platform):
    """As in `jax.nn.relu`; a constant channel is at zero as long as its bias is."""
    x, ones = jnp.ones((2, 3, 3, 4)), jnp.ones(4)

    def trained(bias):
        return jnp.sum(batch_norm(x, ones, bias, epsilon=1e-5, relu=True)[0])

    def given(bias):
        return jnp.sum(normalize(x, ones, ones, ones, bias, epsilon=1e-5, relu=True))

    for loss in (trained, given):
        np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros(4)), 0)
        np.testing.assert_array_equal(jax.grad(loss)(ones), 18)


def test_parameters_of_bfloat16_are_those_rounded(platform):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
    scale, bias = jnp.array([2.0, 1.0, 0.5]), jnp.array([1.0, -1.0, 3.0])  # exact in bfloat16
    halves = scale.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)

    def loss(scale, bias):
        return jnp.sum(batch_norm(x, scale, bias, epsilon=1e-5)[0] ** 2)

    expected = batch_norm(x, scale, bias, epsilon=1e-5)[0]
    np.testing.assert_array_equal(batch_norm(x, *halves, epsilon=1e-5)[0], expected)
    for ours, exact in zip(
        jax.grad(loss, (0, 1))(*halves), jax.grad(loss, (0, 1))(scale, bias), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=1e-2)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_parameters_of_another_length_are_refused(name, platform):
    given = {"scale": jnp.ones(3), "bias": jnp.zeros(3), name: jnp.ones(1)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(1,\), expected \(3,\)"):
        batch_norm(jnp.ones((2, 3)), **given, epsilon=1e-5)
