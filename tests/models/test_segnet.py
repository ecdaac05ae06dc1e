"""The SegNet family: its parameters, their names and first values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import jit_once
from segjax import models

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
    """{parameter path: shape}, without computing anything."""
    model = models.create(name, num_classes, **options)
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), image)["params"]
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }


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
    # Batch normalisation: scale and shift of 7,936 = 7,947 - 11 channels: 15,872.
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
    # Batch normalisation: 8 * 2 * 64 = 1,024.
    parameters = shapes("segnet_basic")
    assert count(parameters, "kernel") == 1_415_040
    assert count(parameters, "kernel", "conv/bias", "conv_classifier/bias") == 1_415_563
    assert count(parameters, "bn/scale", "bn/bias") == 1_024
    assert count(parameters, "") == 1_416_587
    assert (
        count(parameters, "") - count(parameters, "conv/bias", "conv_classifier/bias") == 1_416_064
    )


def test_grey_images_and_width():
    # 3x3x2x64 and 7x7x2x64 fewer in the first kernel.
    assert count(shapes("segnet", channels=1), "") == 29_449_355 - 1_152
    assert count(shapes("segnet_basic", channels=1), "") == 1_416_587 - 6_272
    narrow = shapes("segnet", width=2)
    assert narrow["conv5_1/conv/kernel"] == (3, 3, 16, 16)
    assert narrow["conv3_1_D/conv/kernel"] == (3, 3, 8, 4)
    # 49 (3*32 + 7*32*32) + 32*11, 8*32 + 11 and 16*32: the size of the small CamVid experiment.
    assert count(shapes("segnet_basic", width=32), "") == 355_936 + 352 + 267 + 512


def test_initialisation():
    model = models.create("segnet_basic", 11, width=16)
    init = jit_once(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    params = variables["params"]
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
