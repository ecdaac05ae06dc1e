"""ResNet and the networks on it: parameters, values of PyTorch, and strides traded for rates."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.models import resnet
from support import variables
from support.errors import refusal

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "resnet.npz")
IMAGE = GOLDEN["image"]

deeplab_v2 = functools.partial(models.create, "deeplab_v2", 3, width=4)
deeplab_v3 = functools.partial(models.create, "deeplab_v3", 3, width=4, aspp_width=6)
cascade = functools.partial(deeplab_v3, trunk="resnet18", blocks=7, head="none")


def run(model, state, image, **options):
    return jax.jit(functools.partial(model.apply, train=False, **options))(state, image)


@pytest.mark.parametrize(
    ("trunk", "classifier", "published"),
    [  # torchvision's, with 1000 classes from 512 or 2048 features
        ("resnet18", 513_000, 11_689_512),
        ("resnet34", 513_000, 21_797_672),
        ("resnet50", 2_049_000, 25_557_032),
        ("resnet101", 2_049_000, 44_549_160),
    ],
)
def test_parameters_of_trunks(trunk, classifier, published):
    assert variables.count(resnet.ResNet(trunk)) + classifier == published
    assert variables.count(resnet.ResNet(trunk, output_stride=8)) + classifier == published


@pytest.mark.parametrize(
    ("trunk", "published"), [("resnet50", 42_004_074), ("resnet101", 60_996_202)]
)
def test_parameters_of_deeplab_v3(trunk, published):
    """torchvision's has a 3x3 convolution more, and an auxiliary classifier after block 3."""
    further = 9 * 256 * 256 + 2 * 256
    auxiliary = 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21
    assert variables.count(models.create("deeplab_v3", 21, trunk=trunk)) == (
        published - further - auxiliary
    )
    assert variables.count(models.create("deeplab_v3", 11)) == 58_038_091


def test_parameters_of_the_others():
    # 42,500,160 of ResNet-101; four kernels of 3x3 from 2048 features, with biases.
    assert variables.count(models.create("deeplab_v2", 11)) == 43_311_212
    # segmentation_models.pytorch's with ResNet-34, and ours for 11 classes of 9 * 16 + 1 each.
    assert variables.count(models.create("unet_resnet", 1)) == 24_436_369
    assert variables.count(models.create("unet_resnet", 11)) == 24_436_369 + 10 * 145


@pytest.mark.slow
def test_parameters_of_a_cascade_do_not_depend_on_the_output_stride():
    for blocks in (5, 7):
        counts = {
            variables.count(
                models.create("deeplab_v3", 11, blocks=blocks, output_stride=stride, head="none")
            )
            for stride in (8, 2 ** (blocks + 1))
        }
        assert len(counts) == 1


TRUNKS = [case for case in GOLDEN.files if case.startswith("trunk/")]


def assert_equal(found, expected):
    """Check that values are those of PyTorch, to 1e-5 of the greatest."""
    scale = np.abs(expected).max()
    assert expected.std() > 0.05 * scale
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("case", TRUNKS)
def test_maps_are_those_of_pytorch(case):
    _, trunk, stride = case.split("/")
    model = resnet.ResNet(trunk, output_stride=int(stride), width=4)
    assert_equal(run(model, variables.seeded(model), IMAGE)[-1], GOLDEN[case])


NETWORKS = {
    "deeplab_v2/8": lambda: deeplab_v2(trunk="resnet18"),
    "deeplab_v2/32": lambda: deeplab_v2(trunk="resnet18", output_stride=32),
    "deeplab_v3/8": lambda: deeplab_v3(trunk="resnet18", output_stride=8),
    "deeplab_v3/16": lambda: deeplab_v3(trunk="resnet50"),
    "deeplab_v3/7/16": lambda: cascade(),
    "deeplab_v3/7/64": lambda: cascade(output_stride=64, multi_grid=(1, 1, 1)),
    "unet_resnet": lambda: models.create("unet_resnet", 3, trunk="resnet18", width=4),
}


def test_every_golden_array_is_compared():
    assert {*TRUNKS, *NETWORKS, "image"} == set(GOLDEN.files)


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_are_those_of_pytorch(case):
    model = NETWORKS[case]()
    logits = run(model, variables.seeded(model), IMAGE)
    assert logits.shape == (*IMAGE.shape[:3], 3)
    assert_equal(logits[:, ::3, ::3], GOLDEN[case])


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 1)])
def test_maps_with_dilation_are_those_with_strides_where_both_have_values(grid):
    def last(output_stride):
        model = resnet.ResNet(
            "resnet18", blocks=5, output_stride=output_stride, multi_grid=grid, width=4
        )
        return np.asarray(run(model, variables.seeded(model), IMAGE)[-1])

    coarse, fine = last(64), last(8)
    assert (coarse.shape, fine.shape) == ((1, 2, 2, 32), (1, 9, 12, 32))
    np.testing.assert_allclose(fine[:, ::8, ::8], coarse, rtol=1e-5, atol=1e-5 * coarse.max())


def test_strides_and_sizes_of_maps():
    image = jax.ShapeDtypeStruct((1, 513, 257, 3), jnp.float32)
    for stride, reached in ((8, 8), (64, 64), (256, 256)):
        model = resnet.ResNet("resnet18", blocks=7, output_stride=stride, width=1)
        init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
        maps, _ = jax.eval_shape(init, image)
        strides = [2, *(min(2**n, reached) for n in range(2, 9))]
        sizes = [(512 // n + 1, 256 // n + 1) for n in strides]
        assert [x.shape[1:3] for x in maps] == sizes


@pytest.mark.parametrize(("blocks", "output_stride"), [(4, 64), (5, 128), (6, 256)])
def test_an_output_stride_that_the_blocks_do_not_reach_is_refused(blocks, output_stride):
    model = models.create("deeplab_v3", 11, blocks=blocks, output_stride=output_stride)
    coarsest = output_stride // 2
    assert refusal(variables.shapes, model) == (
        f"output_stride is {output_stride}, but {blocks} blocks have {coarsest} without atrous "
        "convolution, expected at most that"
    )


def test_names_are_torchvisions():
    shapes = variables.shapes(resnet.ResNet("resnet50"))
    assert shapes["conv1/kernel"] == (7, 7, 3, 64)
    assert shapes["layer1_0/downsample_0/kernel"] == (1, 1, 64, 256)
    assert shapes["layer4_2/conv2/kernel"] == (3, 3, 512, 512)
    assert shapes["layer4_2/bn3/scale"] == (2048,)
    assert "layer1_1/downsample_0/kernel" not in shapes
    assert "layer1_0/downsample_0/kernel" not in variables.shapes(resnet.ResNet("resnet18"))


def test_a_rate_shrinks_with_the_output_stride():
    found = {stride: [resnet.rescaled(rate, 16, stride) for rate in (6, 12, 18)]
             for stride in (8, 16, 32, 256)}  # fmt: skip
    assert found == {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9], 256: [1, 1, 1]}


@pytest.mark.slow
def test_scores_start_small_and_dropout_is_only_in_training():
    model = models.create("deeplab_v3", 3, trunk="resnet18", width=2, aspp_width=32)
    state = variables.seeded(model)

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(state, two, train=True, rngs=rngs, mutable="batch_stats")[0]

    two = np.concatenate([IMAGE, IMAGE[:, ::-1]])  # batch normalization of one mean is refused
    one, other = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(one - other).max() > 1e-3
    wide = models.create("deeplab_v3", 200, trunk="resnet18", width=2, aspp_width=32)
    init = jax.jit(functools.partial(wide.init, train=False))
    params = init(jax.random.key(0), IMAGE)["params"]
    assert np.std(params["logits"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    kernel = params["trunk"]["layer4_0"]["conv2"]["kernel"]  # He et al.'s, 16 features
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.1)
