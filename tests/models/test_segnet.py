"""The SegNet family: its parameters, their names and first values."""

import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax import models
from segjax.models import segnet
from segjax.models.segnet import Level, SegNetBasic
from segjax.ops.pooling import max_pool_with_indices
from support import variables

# Name, kernel side, input and output channels, in the order of the authors' Caffe files.
SEGNET = """
conv1_1   3   3  64 | conv5_3_D 3 512 512
conv1_2   3  64  64 | conv5_2_D 3 512 512
conv2_1   3  64 128 | conv5_1_D 3 512 512
conv2_2   3 128 128 | conv4_3_D 3 512 512
conv3_1   3 128 256 | conv4_2_D 3 512 512
conv3_2   3 256 256 | conv4_1_D 3 512 256
conv3_3   3 256 256 | conv3_3_D 3 256 256
conv4_1   3 256 512 | conv3_2_D 3 256 256
conv4_2   3 512 512 | conv3_1_D 3 256 128
conv4_3   3 512 512 | conv2_2_D 3 128 128
conv5_1   3 512 512 | conv2_1_D 3 128  64
conv5_2   3 512 512 | conv1_2_D 3  64  64
conv5_3   3 512 512 | conv1_1_D 3  64  11
"""
SEGNET_BASIC = """
conv1     7   3  64 | conv_decode4    7 64 64
conv2     7  64  64 | conv_decode3    7 64 64
conv3     7  64  64 | conv_decode2    7 64 64
conv4     7  64  64 | conv_decode1    7 64 64
                    | conv_classifier 1 64 11
"""


def shapes(name, num_classes=11, channels=3, **options):
    return variables.shapes(models.create(name, num_classes, **options), channels)


def count(parameters, *ends):
    return sum(math.prod(shape) for path, shape in parameters.items() if path.endswith(ends))


@pytest.mark.parametrize(
    ("name", "table", "classifier"),
    [("segnet", SEGNET, "conv1_1_D"), ("segnet_basic", SEGNET_BASIC, "conv_classifier")],
)
def test_names_and_shapes_are_those_of_the_authors_files(name, table, classifier):
    expected = {}
    for row in table.replace("|", "\n").split("\n"):
        if not row.strip():
            continue
        block, side, c_in, c_out = row.split()
        conv = block if block == classifier else f"{block}/conv"
        expected[f"{conv}/kernel"] = tuple(map(int, (side, side, c_in, c_out)))
        expected[f"{conv}/bias"] = (int(c_out),)
        if block != classifier:
            expected[f"{block}/bn/scale"] = expected[f"{block}/bn/bias"] = (int(c_out),)
    assert shapes(name) == expected


def test_segnets_parameters():
    # Kernels: VGG16's 13 convolutions have 14,710,464; the decoder mirrors them but for its last,
    # 3x3x64x11 = 6,336 for the encoder's first, 3x3x3x64 = 1,728:
    # 2 * 14,710,464 - 1,728 + 6,336 = 29,425,536.
    # Biases: the encoder's 4,224 = 2*64 + 2*128 + 3*256 + 6*512, and the decoder's 3,723 =
    # 5*512 + 3*256 + 2*128 + 2*64 + 11: 7,947, and 29,433,483 with the kernels.
    # Batch normalization: scale and shift of 7,936 = 7,947 - 11 channels: 15,872.
    parameters = shapes("segnet")
    assert count(parameters, "kernel") == 29_425_536
    assert count(parameters, "kernel", "conv/bias", "conv1_1_D/bias") == 29_433_483
    assert count(parameters, "bn/scale", "bn/bias") == 15_872
    assert count(parameters, "") == 29_449_355
    # With a bias on the last convolution alone: 29,449,355 - 7,936.
    assert count(parameters, "") - count(parameters, "conv/bias") == 29_441_419


@pytest.mark.parametrize(
    ("num_classes", "weights", "total"),
    [
        # Each class has 3*3*64 + 1 = 577 in the last convolution.
        (12, 29_434_060, 29_449_932),  # 29,449,355 + 577
        (21, 29_439_253, 29_455_125),  # 29,449,355 + 10 * 577
        (37, 29_448_485, 29_464_357),  # 29,449,355 + 26 * 577
    ],
)
def test_segnets_parameters_at_other_numbers_of_classes(num_classes, weights, total):
    parameters = shapes("segnet", num_classes)
    assert count(parameters, "") == total
    assert count(parameters, "") - count(parameters, "bn/scale", "bn/bias") == weights


def test_segnet_basics_parameters():
    # Kernels: 7x7x3x64 = 9,408, seven of 7x7x64x64 = 200,704, and 64x11 = 704: 1,415,040.
    # Biases: 8 * 64 + 11 = 523, and 1,415,563 with the kernels.
    # Batch normalization: 8 * 2 * 64 = 1,024.
    parameters = shapes("segnet_basic")
    assert count(parameters, "kernel") == 1_415_040
    assert count(parameters, "kernel", "conv/bias", "conv_classifier/bias") == 1_415_563
    assert count(parameters, "bn/scale", "bn/bias") == 1_024
    assert count(parameters, "") == 1_416_587
    assert (
        count(parameters, "") - count(parameters, "conv/bias", "conv_classifier/bias") == 1_416_064
    )


def test_gray_images_and_width():
    # 3x3x2x64 and 7x7x2x64 fewer in the first kernel.
    assert count(shapes("segnet", channels=1), "") == 29_449_355 - 1_152
    assert count(shapes("segnet_basic", channels=1), "") == 1_416_587 - 6_272
    narrow = shapes("segnet", width=2)
    assert narrow["conv5_1/conv/kernel"] == (3, 3, 16, 16)
    assert narrow["conv3_1_D/conv/kernel"] == (3, 3, 8, 4)
    # 49 (3*32 + 7*32*32) + 32*11, 8*32 + 11 and 16*32: the size of the small CamVid experiment.
    assert count(shapes("segnet_basic", width=32), "") == 355_936 + 352 + 267 + 512


def test_initialization():
    model = models.create("segnet_basic", 11, width=16)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    for block in (f"conv_decode{level}" for level in range(1, 5)):
        kernel = np.asarray(params[block]["conv"]["kernel"])
        fan_in = 7 * 7 * 16
        assert kernel.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)  # of 12,544 numbers
        assert abs(kernel.mean()) < 4 * math.sqrt(2 / fan_in / kernel.size)
        # Gaussian and not cut off: of so many, some lie beyond 3 deviations.
        assert np.abs(kernel).max() > 3 * kernel.std()
        np.testing.assert_array_equal(params[block]["conv"]["bias"], 0)
        np.testing.assert_array_equal(params[block]["bn"]["scale"], 1)
        np.testing.assert_array_equal(params[block]["bn"]["bias"], 0)
    np.testing.assert_array_equal(params["conv_classifier"]["bias"], 0)


class Upsampling(SegNetBasic):
    """A single step of the decoder."""

    @nn.compact
    def __call__(self, x, level):
        return self._upsample(x, level, "up")


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
@pytest.mark.parametrize("upsampling", get_args(segnet.Upsampling))
def test_the_upsampling_of_the_decoder(upsampling, size):
    """Between two levels of one channel, against a reference of its own for each."""
    rng = np.random.default_rng(0)
    encoded = jnp.asarray(rng.normal(size=(2, *size, 1)), jnp.float32)
    pooled, indices = max_pool_with_indices(encoded)
    level = Level(encoded, pooled, indices)
    step = Upsampling(3, width=1, upsampling=upsampling)
    x, state = step.init_with_output(jax.random.key(0), pooled, level)
    assert x.shape == encoded.shape
    height, width = size
    blocks = np.asarray(pooled).repeat(2, 1).repeat(2, 2)[:, :height, :width]
    if upsampling == "unpool":
        expected = np.where(np.asarray(encoded) == blocks, blocks, 0)
    elif upsampling == "bed_of_nails":
        rows, columns = np.ogrid[:height, :width]
        top_left = (rows % 2 == 0) & (columns % 2 == 0)
        expected = np.where(top_left[..., None], blocks, 0)
    elif upsampling == "nearest":
        expected = blocks
        if size == (5, 7):  # the middle of the pixel decides, not the place in a window
            expected = np.asarray(pooled)[:, [0, 0, 1, 2, 2]][:, :, [0, 0, 1, 2, 2, 3, 3]]
    else:
        # Three quarters of the pixel that it lies in and a quarter of the next, along each axis.
        h, w = pooled.shape[1:3]
        weights = []
        for old, new in ((h, height), (w, width)):
            matrix = np.zeros((2 * old, old))
            for k in range(2 * old):
                matrix[k, k // 2] += 0.75
                near = k // 2 + (1 if k % 2 else -1)
                if 0 <= near < old:
                    matrix[k, near] += 0.25
                elif upsampling == "bilinear":  # repeats the edge; learned: zeros beyond
                    matrix[k, k // 2] += 0.25
            if upsampling == "bilinear" and new != 2 * old:  # other centers
                place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
                low = np.minimum(place.astype(int), old - 2)
                matrix = np.zeros((new, old))
                matrix[np.arange(new), low] = 1 - (place - low)
                matrix[np.arange(new), low + 1] = place - low
            weights.append(matrix[:new])
        expected = np.einsum("Hh,bhwc,Ww->bHWc", weights[0], pooled, weights[1])
    np.testing.assert_allclose(x, expected, atol=1e-6)
    if upsampling == "learnt":
        assert state["params"]["up"]["kernel"].shape == (4, 4, 1, 1)
    else:
        assert state == {}


def test_learned_upsampling_adds_a_kernel_to_each_level():
    # 4 x 4x4x64x64.
    assert count(shapes("segnet_basic", upsampling="learnt"), "") == 1_416_587 + 262_144
    for upsampling in ("bed_of_nails", "nearest", "bilinear"):
        assert count(shapes("segnet_basic", upsampling=upsampling), "") == 1_416_587
