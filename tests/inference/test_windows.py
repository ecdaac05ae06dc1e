"""The output of images of any size: windows against a float64 reference, resizing, strips."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.data import images
from segjax.errors import UserError
from segjax.inference import windows
from segjax.inference.windows import Windows
from segjax.ops import upsampling


def values_of(image, scale, xp):
    """Return values that depend on each pixel, on its place in the window and on the whole."""
    height, width = image.shape[-3:-1]
    ramp = np.linspace(-1, 1, height)[:, None] * np.linspace(0, 2, width)
    ramp = np.broadcast_to(ramp[..., None], image.shape).astype(image.dtype)
    mean = xp.broadcast_to(image.mean((-3, -2), keepdims=True), image.shape)
    return xp.concatenate([image, ramp, image * mean], -1) * scale


def network(variables, image, places):
    return values_of(image, variables, jnp)


def constant(variables, image, places):
    return jnp.broadcast_to(variables, (*image.shape[:3], len(variables)))


SCALE = np.float32(1.5)
sides = st.integers(1, 40)


def draw_image(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def run(strips, image, variables=SCALE):
    return np.concatenate([*strips(variables, image, 0)])


def weighted_mean(image, size, tops, lefts):
    """Return the mean over windows by float64 sums of values and weights at each pixel."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    gaussian = np.exp(
        -((y - (height - 1) / 2) ** 2) / 2 / (height / 8) ** 2
        - (x - (width - 1) / 2) ** 2 / 2 / (width / 8) ** 2
    )[..., None]
    values, sums = np.zeros((*image.shape[:2], 9)), np.zeros((*image.shape[:2], 1))
    for top in tops:
        for left in lefts:
            part = np.s_[top : top + height, left : left + width]
            values[part] += gaussian * values_of(image[part] / 255, SCALE, np)
            sums[part] += gaussian
    assert (sums > 0).all()
    return values / sums


@settings(max_examples=25)
@given(sides, sides, st.integers(4, 16), st.integers(4, 16), st.sampled_from([0, 0.25, 0.5, 0.9]))
def test_windows_equal_a_float64_reference(height, width, tall, wide, overlap):
    image = draw_image(height, width)
    made = run(windows.sliding(network, Windows((tall, wide), overlap)), image)
    size = (min(tall, height), min(wide, width))
    places = [
        windows.starts(length, side, overlap)
        for length, side in zip((height, width), size, strict=True)
    ]
    assert (made.shape, made.dtype) == ((height, width, 9), np.float32)
    np.testing.assert_allclose(made, weighted_mean(image, size, *places), rtol=1e-5, atol=1e-5)


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 700), st.floats(0, 0.99))
def test_windows_reach_from_border_to_border_and_overlap_enough(length, side, overlap):
    side = min(side, length)
    found = windows.starts(length, side, overlap)
    assert (found[0], found[-1]) == (0, length - side)
    steps = np.diff(found)
    assert (steps > 0).all()
    assert (steps <= max(1, side * (1 - overlap))).all()
    if len(found) > 2:  # one fewer would not do
        assert length - side > (len(found) - 2) * int(side * (1 - overlap))


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 90), st.floats(0, 0.9))
def test_weights_are_positive_and_sum_to_one_at_each_pixel(length, side, overlap):
    side = min(side, length)
    starts = windows.starts(length, side, overlap)
    found = windows.weights(starts, length, side)
    assert (found > 0).all()
    total, alone = np.zeros(length), np.zeros(length, int)
    for start, own in zip(starts, found, strict=True):
        total[start : start + side] += own
        alone[start : start + side] += 1
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(total[alone == 1], 1)


@settings(max_examples=10)
@given(sides, sides, st.integers(0, 9), st.integers(0, 9))
def test_a_window_as_large_as_the_image_gives_the_output_of_the_whole(height, width, more, wider):
    image = draw_image(height, width)
    made = run(windows.sliding(network, Windows((height + more, width + wider))), image)
    native = windows.build_strips(experiment((8, 8)), network, "native")
    np.testing.assert_array_equal(made, run(native, image))
    np.testing.assert_allclose(made, values_of(image / 255, SCALE, np), rtol=1e-5, atol=1e-5)


def test_windows_of_constant_logits_give_constants():
    logits = np.array([0.1, -7, 3e4], np.float32)
    made = run(windows.sliding(constant, Windows((9, 7), 0.7)), draw_image(50, 31), logits)
    np.testing.assert_allclose(made, np.broadcast_to(logits, made.shape), rtol=1e-6)


def test_strips_are_no_higher_than_a_window():
    strips = windows.sliding(network, Windows((16, 16)))(SCALE, draw_image(100, 40), 0)
    heights = [len(strip) for strip in strips]
    assert sum(heights) == 100
    assert max(heights) <= 16


def experiment(resolution):
    data = types.SimpleNamespace(resolution=resolution, fit="resize")
    config, info = types.SimpleNamespace(data=data), types.SimpleNamespace(mean=(0.5,))
    return types.SimpleNamespace(config=config, info=info)


@pytest.mark.parametrize(
    ("fit", "compiled"),
    [("resolution", 1), (Windows((20, 24)), 1), ("aspect", 3), ("native", 7)],
)
def test_one_compilation_serves_many_sizes(fit, compiled):
    shapes = []

    def traced(variables, image, places):
        shapes.append(image.shape)
        return network(variables, image, places)

    strips = windows.build_strips(experiment((20, 24)), traced, fit)
    # Of three aspect ratios.
    sizes = [(20, 24), (40, 48), (60, 72), (30, 30), (50, 50), (20, 40), (45, 90)]
    for size in sizes:
        assert run(strips, draw_image(*size)).shape == (*size, 9)
    assert len(shapes) == compiled


def test_images_are_shown_as_the_fit_says():
    shown = []

    def noting(variables, image, places):
        shown.append(image.shape[1:3])
        return network(variables, image, places)

    for fit in ("aspect", "resolution", "native", Windows((30, 70))):
        run(windows.build_strips(experiment((20, 24)), noting, fit), draw_image(40, 60))
    assert shown == [(20, 30), (20, 24), (40, 60), (30, 60)]


@settings(max_examples=50)
@given(sides, sides, st.integers(1, 600), sides)
def test_outputs_are_resized_as_on_the_device(height, width, tall, wide):
    values = np.random.default_rng(height).normal(size=(height, width, 2)).astype(np.float32)
    made = np.concatenate([*windows.resize(values, (tall, wide))])
    # By NumPy's interpolation between centers of pixels, along one axis and then the other.
    rows = [
        np.interp((np.arange(tall) + 0.5) * height / tall - 0.5, np.arange(height), column)
        for column in values.reshape(height, -1).T
    ]
    rows = np.array(rows).T.reshape(tall, width, 2)
    expected = [
        np.interp((np.arange(wide) + 0.5) * width / wide - 0.5, np.arange(width), line)
        for line in rows.transpose(0, 2, 1).reshape(-1, width)
    ]
    expected = np.array(expected).reshape(tall, 2, wide).transpose(0, 2, 1)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=0, atol=5e-6)


def test_resizing_is_that_of_the_operation():
    values = np.random.default_rng(0).normal(size=(7, 9, 3)).astype(np.float32)
    made = np.concatenate([*windows.resize(values, (300, 20))])
    np.testing.assert_allclose(made, upsampling.bilinear(values, (300, 20)), rtol=0, atol=2e-6)


def test_images_are_resized_as_datasets_do():
    from PIL import Image

    image = draw_image(31, 47)
    expected = Image.fromarray(image).resize((20, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images.resize(image, (10, 20)), np.asarray(expected))
    gray = images.resize(image[..., :1], (10, 20))
    np.testing.assert_array_equal(gray[..., 0], np.asarray(expected)[..., 0])
    assert images.resize(image, (31, 47)) is image


def test_softmax_is_that_of_each_pixel():
    image = draw_image(30, 20)
    strips = windows.sliding(network, Windows((8, 8)))
    expected = jax.nn.softmax(run(strips, image))
    np.testing.assert_allclose(run(windows.softmax(strips), image), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"native": True, "squash": True}, "native, squash and window exclude each other"),
        ({"native": True, "window": (8, 8)}, "native, squash and window exclude each other"),
        ({"overlap": 0.5}, "overlap is that of windows, expected a window too"),
        ({"window": (8, 8), "overlap": 1}, "overlap 1, expected at least 0 and less than 1"),
        ({"window": (8, 8), "overlap": -0.1}, "overlap -0.1, expected at least 0"),
        ({"window": (8, 8), "overlap": float("nan")}, "overlap nan, expected at least 0"),
        ({"window": (8, 0)}, r"window \(8, 0\), expected \(height, width\) in whole pixels"),
        ({"window": (8, 8.0)}, r"window \(8, 8.0\), expected \(height, width\) in whole pixels"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        windows.choose_fit(**options)


def test_options_choose_the_fit():
    assert windows.choose_fit() == "aspect"
    assert windows.choose_fit(native=True) == "native"
    assert windows.choose_fit(squash=True) == "resolution"
    assert windows.choose_fit(window=(8, 9)) == Windows((8, 9), 0.5)
    assert windows.choose_fit(window=[8, 9], overlap=0) == Windows((8, 9), 0)
