"""DeconvNet: parameters, sizes, connections, and the logits of an independent implementation."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.errors import UserError
from segjax.models import deconvnet
from support.variables import abstract, seeded, shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "deconvnet.npz"
NARROW = {"width": 2, "fc_width": 6, "fc_kernel": 3}

# Name, kernel side, input and output channels, in the order of the authors' Caffe file.
DECODER = """
fc6-deconv 7 4096 512
deconv5_1 3 512 512 | deconv5_2 3 512 512 | deconv5_3 3 512 512
deconv4_1 3 512 512 | deconv4_2 3 512 512 | deconv4_3 3 512 256
deconv3_1 3 256 256 | deconv3_2 3 256 256 | deconv3_3 3 256 128
deconv2_1 3 128 128 | deconv2_2 3 128  64
deconv1_1 3  64  64 | deconv1_2 3  64  64
"""


def parameters(num_classes, **options):
    return shapes(models.create("deconvnet", num_classes, **options), side=224)


@pytest.mark.parametrize(
    ("num_classes", "options", "weights", "total"),
    [
        (21, {}, 251_772_245, 251_805_653),
        (11, {}, 251_771_595, 251_805_003),
        (11, {"fc_width": 1024}, 81_896_139, 81_917_259),
    ],
)
def test_parameters(num_classes, options, weights, total):
    found = parameters(num_classes, **options)
    normalized = sum(math.prod(shape) for path, shape in found.items() if "/bn/" in path)
    assert sum(map(math.prod, found.values())) == total
    assert total - normalized == weights


def test_names_and_shapes_of_the_decoder_are_those_of_the_authors_file():
    found = parameters(21)
    expected = {"seg-score/kernel": (1, 1, 64, 21), "seg-score/bias": (21,)}
    for row in DECODER.replace("|", "\n").split("\n"):
        if row.strip():
            name, side, c_in, c_out = row.split()
            # A transposed kernel: (k, k, out, in).
            expected[f"{name}/deconv/kernel"] = tuple(map(int, (side, side, c_out, c_in)))
            for leaf in ("deconv/bias", "bn/scale", "bn/bias"):
                expected[f"{name}/{leaf}"] = (int(c_out),)
    encoder = ("conv", "fc6/", "fc7/")
    assert {path: s for path, s in found.items() if not path.startswith(encoder)} == expected
    assert found["fc6/conv/kernel"] == (7, 7, 512, 4096)
    assert found["fc7/conv/kernel"] == (1, 1, 4096, 4096)


def test_camvid_fits_and_193_pixels_are_the_least():
    model = models.create("deconvnet", 11, width=2, fc_width=4)
    variables = abstract(model, side=224)

    def apply(size, model=model, variables=variables):
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        apply = functools.partial(
            model.apply, train=False, mutable="intermediates", capture_intermediates=True
        )
        logits, state = jax.eval_shape(apply, variables, image)
        assert logits.shape == (1, *size, 11)
        del state["intermediates"]["__call__"]
        return {k: v["__call__"][0].shape[1:3] for k, v in state["intermediates"].items()}

    maps = apply((360, 480))
    assert maps["fc6"] == maps["fc7"] == (6, 9)
    assert maps["fc6-deconv"] == (12, 15)
    assert maps["deconv5_3"] == maps["conv5_1"] == (23, 30)
    assert apply((193, 193))["fc6"] == (1, 1)
    for size in ((192, 193), (193, 192)):
        with pytest.raises(UserError, match=f"{size[0]}x{size[1]} is too small.*193x193") as error:
            apply(size)
        assert "\n" not in str(error.value)
    small = models.create("deconvnet", 11, width=2, fc_width=4, fc_kernel=2)
    apply((33, 40), small, abstract(small, side=33))


@functools.cache
def golden():
    """Return the model, its variables by name, an image and PyTorch's logits."""
    model = models.create("deconvnet", 3, **NARROW)
    with np.load(GOLDEN) as file:
        return model, seeded(model, side=224), file["image"], file["logits"]


@functools.cache
def run():
    """Return logits, the gradient of one by the encoder's maps, and the places of unpooling."""
    model, variables, image, _ = golden()
    unpool, sizes = deconvnet.max_unpool, []

    def logit(shifts):
        pending, places = list(shifts), []

        def shifted(y, indices, shape):
            sizes.append(y.shape)
            places.append(indices)
            return unpool(y + pending.pop(0) if pending else y, indices, shape)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deconvnet, "max_unpool", shifted)
            logits, state = model.apply(
                variables, image, train=False, mutable="intermediates", capture_intermediates=True
            )
        maps = [state["intermediates"][f"conv{s}_{n}"]["__call__"][0] for s, n in LAST]
        return logits[0, 30, 40, 1], (logits, places, maps)

    jax.eval_shape(logit, ())
    zeros = tuple(jnp.zeros(shape) for shape in sizes)
    gradients, (logits, places, maps) = jax.jit(jax.grad(logit, has_aux=True))(zeros)
    return [np.asarray(g) for g in gradients], np.asarray(logits), places, maps


LAST = ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2))  # the convolutions that are pooled


def test_logits_are_those_of_an_independent_implementation():
    *_, expected = golden()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run()[1], expected, atol=1e-4, rtol=1e-4)


def test_each_level_unpools_to_the_maxima_of_its_own_pooling():
    _, _, places, maps = run()
    assert len(places) == 5
    for found, x in zip(places, maps, strict=True):
        x = np.asarray(x)
        padding = [(0, 0), *((0, -side % 2) for side in x.shape[1:3]), (0, 0)]
        x = np.pad(x, padding, constant_values=-np.inf)
        b, h, w, c = x.shape
        windows = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        np.testing.assert_array_equal(found, windows.reshape(b, h // 2, w // 2, c, 4).argmax(-1))


def test_a_logit_depends_on_every_level_of_the_decoder():
    gradients, *_ = run()
    for gradient in gradients:
        assert (gradient != 0).any()
    # Three 3x3 kernels, the score 1x1: of the last level only what was a maximum within 2 pixels.
    rows, columns = np.nonzero(gradients[-1][0].any(-1))
    assert {*rows} <= {14, 15, 16}
    assert {*columns} <= {19, 20, 21}


def test_initialization():
    model = models.create("deconvnet", 3, width=4, fc_width=16, fc_kernel=1)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for name in ("fc6-deconv", "deconv5_2", "deconv4_1"):
        assert np.std(params[name]["deconv"]["kernel"]) == pytest.approx(0.01, rel=0.1)
        np.testing.assert_array_equal(params[name]["deconv"]["bias"], 0)
    kernel = params["conv5_1"]["conv"]["kernel"]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.05)
