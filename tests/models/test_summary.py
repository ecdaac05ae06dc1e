"""The table of architectures: counts and sizes from shapes, receptive fields by gradient."""

import csv
import dataclasses
import io
import json

import pytest
from flax import linen as nn

from segjax import models
from segjax.cli.main import main
from segjax.models import summary
from segjax.models.layers import ConvBlock, ConvTranspose
from segjax.ops.pooling import max_pool_with_indices, max_unpool
from segjax.ops.upsampling import nearest


class Chain(nn.Module):
    """Two kernels, of 3 at rate 2 and of 5: 5 + 4 = 9 pixels."""

    num_classes: int
    width: int = 7
    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvBlock(self.width, 3, dilation=2, name="first")(image, train=train)
        return nn.Conv(self.num_classes, (5, 5), name="last")(x)


class Strided(Chain):
    """A kernel of 3, a pool, a kernel of 3 and its upsampling: in one dimension 3 + 1 + 2 * 2."""

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvBlock(self.width, 3, name="first")(image, train=train)
        x, _ = max_pool_with_indices(x)
        x = ConvBlock(self.width, 3, name="second")(x, train=train)
        return nearest(nn.Conv(self.num_classes, (1, 1), name="last")(x), image.shape[1:3])


class Unpooling(Chain):
    """A pool, an unpooling and a kernel of 3, which sees maxima at their places alone: 3."""

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(self.width, (1, 1), name="first")(image)
        y, indices = max_pool_with_indices(x)
        return nn.Conv(self.num_classes, (3, 3), name="last")(max_unpool(y, indices, x.shape))


class Everything(Chain):
    """A kernel that sees more than the image."""

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvTranspose(self.width, 9, stride=1, padding=4, name="first")(image)
        return nn.Conv(self.num_classes, (3, 3), kernel_dilation=31, name="last")(x)


class Faint(Chain):
    """Twelve kernels of 3, whose longest path has a weight of 1e-65: 25 pixels."""

    @nn.compact
    def __call__(self, image, *, train):
        x = image
        for number in range(12):
            x = nn.Conv(3, (3, 3), name=f"layer{number}")(x) * 1e-5 + image
        return nn.Conv(self.num_classes, (1, 1), name="last")(x)


@pytest.mark.parametrize(
    ("network", "size"), [(Chain, 9), (Strided, 8), (Unpooling, 3), (Everything, 64), (Faint, 25)]
)
def test_the_field_is_that_of_the_kernels(network, size, monkeypatch):
    monkeypatch.setitem(models.MODELS, "network", network)
    assert summary.box(summary.receptive_field("network", 64)) == (size, size)


def test_a_field_is_measured_on_a_larger_image_where_it_fills_one(monkeypatch):
    monkeypatch.setitem(models.MODELS, "network", Chain)
    monkeypatch.setattr(summary, "FIELD_SIDES", (8, 16))
    assert summary._field("network") == "9x9"
    monkeypatch.setattr(summary, "FIELD_SIDES", (6, 8))
    assert summary._field("network") == "all of 8x8"
    # From pixel 1 to 9 around pixel 5: a side of 10 may have cut it.
    monkeypatch.setattr(summary, "FIELD_SIDES", (10,))
    assert summary._field("network") == "all of 10x10"
    monkeypatch.setattr(summary, "FIELD_SIDES", (11,))
    assert summary._field("network") == "9x9"


@pytest.mark.slow
def test_segnet_basics_field():
    # The deepest map sees 106 pixels, as the paper says, and the middle pixel six of its values,
    # 16 pixels apart: 106 + 5 * 16.
    assert summary.box(summary.receptive_field("segnet_basic", 256)) == (186, 186)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_architecture_has_the_parameters_of_its_layer_list(name, monkeypatch):
    monkeypatch.setattr(summary, "_field", lambda name: "not measured")
    monkeypatch.setattr(summary, "_output", lambda *_: "not asked")  # see models/test_models
    row = summary.describe(name)
    assert row.parameters >= row.counted > 0
    if row.figure.count is not None:
        assert row.counted == row.figure.count


def test_every_figure_is_of_a_model():
    assert set(summary.FIGURES) <= set(models.MODELS)
    assert {figure.of for figure in summary.FIGURES.values()} <= set(summary.COUNTS)


def test_the_command_prints_the_table_in_each_format(monkeypatch, capsys):
    monkeypatch.setattr(summary, "_field", lambda name: "5x6")
    monkeypatch.setitem(summary.FIGURES, "unet", summary.Figure(None, "all", ""))
    tables = {}
    for format in ("markdown", "csv", "json"):
        arguments = ["models", "--models", "fcn_basic", "unet", "--format", format]
        assert main(arguments) == 0
        tables[format] = capsys.readouterr().out
    head, _, basic, unet = tables["markdown"].splitlines()
    assert head.startswith("| model | parameters | by the layer list | published | 360x480 |")
    assert basic.startswith("| fcn_basic | 646,124 | 645,312 kernels | 0.65 M (SegNet paper, T")
    assert basic.endswith("| 360x480 | 361x481 | 97x131 | 5x6 |")
    assert unet.startswith("| unet | 31,032,395 |  |  | 360x480 | ")
    rows = list(csv.DictReader(io.StringIO(tables["csv"])))
    assert [row["model"] for row in rows] == ["fcn_basic", "unet"]
    assert rows[0]["receptive field"] == "5x6"
    rows = json.loads(tables["json"])
    assert (rows[0]["parameters"], rows[0]["counted"]) == (646_124, 645_312)
    assert rows[0]["figure"]["count"] == 645_312


def test_a_different_count_is_shown():
    row = summary.Architecture(
        "network", 12, 10, summary.Figure(11, "kernels", ""), ("", "", ""), ""
    )
    assert "11 (not 10) kernels" in summary.render([row])
    same = dataclasses.replace(row, counted=11)
    assert "(not" not in summary.render([same])


def test_a_refused_size_is_shown():
    model = models.create("deconvnet", 2, width=1, fc_width=1)
    shapes = summary.abstract(model, (224, 224))
    assert summary._output(model, shapes, (224, 231)) == "224x231"
    assert summary._output(model, shapes, (97, 131)).startswith("refused: ")


def test_an_unknown_model_is_one_line(capsys):
    assert main(["models", "--models", "segnett"]) == 2
    assert capsys.readouterr().err.startswith(
        "segjax: unknown model 'segnett'; did you mean 'segnet'?; known: "
    )
