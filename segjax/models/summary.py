"""Each architecture beside its published figures: parameters, output sizes, receptive field.

Parameters and sizes follow from shapes; the receptive field is measured.
"""

import csv
import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax import models
from segjax.errors import UserError
from segjax.models import flops

NUM_CLASSES = 11
SIZES = ((360, 480), (361, 481), (97, 131))  # CamVid's, one more, and two odd primes
# Options that are numbers of features and do not change the receptive field.
WIDTHS = ("width", "fc_width", "aspp_width", "growth")
# Sides of the squares on which receptive fields are measured, in pixels; the next is used if the
# field reaches the border of one.
FIELD_SIDES = (512, 1152)


@dataclasses.dataclass(frozen=True)
class Figure:
    """The published number of parameters of an architecture."""

    count: int | None  # from its layer list at 11 classes; None without a list
    of: str  # the parameters that are counted, a key of COUNTS
    published: str  # number as printed, and its source


# Parameters that a figure counts, by their kind. Running statistics are not parameters.
COUNTS: dict[str, Callable[[str], bool]] = {
    "all": lambda kind: True,
    "kernels and biases": lambda kind: kind != "batch norm",
    "kernels": lambda kind: kind == "kernel",
}

_TABLE_1 = "M (SegNet paper, Table 1)"
_TIRAMISU = "(Tiramisu paper, Table 3)"
FIGURES = {
    "segnet": Figure(29_449_355, "all", f"29.5 M {_TIRAMISU}; 117 MB (SegNet paper, Table 6)"),
    "bayesian_segnet": Figure(29_449_355, "all", f"29.5 M {_TIRAMISU}"),
    "segnet_basic": Figure(1_416_587, "all", f"1.425 {_TABLE_1}"),
    "bayesian_segnet_basic": Figure(1_416_587, "all", ""),
    "segnet_basic_encoder_addition": Figure(1_416_587, "all", f"1.425 {_TABLE_1}"),
    "segnet_basic_single_channel_decoder": Figure(626_315, "all", f"0.625 {_TABLE_1}"),
    "bilinear_interpolation": Figure(613_003, "all", f"0.625 {_TABLE_1}"),
    "fcn_basic": Figure(645_312, "kernels", f"0.65 {_TABLE_1}"),
    "fcn_basic_no_addition": Figure(643_200, "kernels", f"0.65 {_TABLE_1}"),
    "fcn_basic_no_dim_reduction": Figure(1_660_800, "kernels", f"1.625 {_TABLE_1}"),
    "fcn_basic_no_addition_no_dim_reduction": Figure(1_660_800, "kernels", f"1.625 {_TABLE_1}"),
    "fcn32s": Figure(134_305_611, "all", ""),
    "fcn16s": Figure(134_311_254, "all", ""),
    "fcn8s": Figure(134_314_081, "all", f"134.5 M {_TIRAMISU}; 539 MB (SegNet paper, Table 6)"),
    "deconvnet": Figure(
        251_771_595, "kernels and biases", f"252 M {_TIRAMISU}; 877 MB (SegNet paper, Table 6)"
    ),
    "unet": Figure(31_032_395, "all", "31.03 M (reimplementations)"),
    "unet_resnet": Figure(24_437_819, "all", "24.4 M (segmentation_models.pytorch)"),
    "deeplab_largefov": Figure(20_495_179, "all", "20.5 M; 83 MB (SegNet paper, Table 6)"),
    "deeplab_aspp": Figure(37_836_652, "all", ""),
    "deeplab_v2": Figure(43_311_212, "all", ""),
    "deeplab_v3": Figure(
        58_038_091, "all", "61.0 M (torchvision, with an auxiliary head and a 3x3 more)"
    ),
    "dilation8": Figure(134_313_443, "all", f"140.8 M {_TIRAMISU}"),
    "fc_densenet56": Figure(1_376_795, "all", f"1.5 M {_TIRAMISU}"),
    "fc_densenet67": Figure(3_463_243, "all", f"3.5 M {_TIRAMISU}"),
    "fc_densenet103": Figure(9_322_091, "all", f"9.4 M {_TIRAMISU}"),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the table of architectures."""

    name: str
    parameters: int
    counted: int  # our parameters that the figure counts
    figure: Figure
    outputs: tuple[str, ...]  # HxW for each of SIZES, or the error
    receptive_field: str  # HxW in pixels, or "all of HxW"


def describe(name: str) -> Architecture:
    """Describe an architecture with its default options, at 11 classes."""
    model = models.create(name, NUM_CLASSES)
    shapes = abstract(model, SIZES[0])
    kinds = _count(shapes["params"])
    figure = FIGURES.get(name, Figure(None, "all", ""))
    return Architecture(
        name=name,
        parameters=sum(kinds.values()),
        counted=sum(n for kind, n in kinds.items() if COUNTS[figure.of](kind)),
        figure=figure,
        outputs=tuple(_output(model, shapes, size) for size in SIZES),
        receptive_field=_field(name),
    )


def abstract(model: nn.Module, size: tuple[int, int]) -> Any:
    """Return the shapes of a model's variables for an RGB image of this size."""
    return flops.abstract(model, (*size, 3))


def _count(params):
    """Count the parameters by kind: {"kernel", "bias", "batch norm": number}."""
    counts = dict.fromkeys(("kernel", "bias", "batch norm"), 0)
    leaves = {tuple(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    for path, leaf in leaves.items():
        kind = "batch norm" if (*path[:-1], "scale") in leaves else path[-1]
        counts[kind] += math.prod(leaf.shape)
    return counts


def _output(model, shapes, size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    try:
        logits = jax.eval_shape(functools.partial(model.apply, train=False), shapes, image)
    except UserError as error:
        return f"refused: {error}"
    return _by(logits.shape[1:3])


def _by(size):
    return "x".join(map(str, size))


def _field(name):
    for side in FIELD_SIDES:
        seen = receptive_field(name, side)
        if not (seen[[0, -1]].any() or seen[:, [0, -1]].any()):
            return _by(box(seen))
    return f"all of {_by((side, side))}"


def box(seen: np.ndarray) -> tuple[int, int]:
    """Return the height and width of the box around what is true."""
    height, width = (np.ptp(np.flatnonzero(seen.any(axis))) + 1 for axis in (1, 0))
    return int(height), int(width)


def receptive_field(name: str, side: int) -> np.ndarray:
    """Return the pixels of a square image that its middle pixel sees: bool (side, side).

    There the gradient of that pixel's logits is not zero, for the same network with few features.
    Kernels and image are positive, so that no ReLU is zero and no paths cancel. A maximum passes
    the gradient to one pixel of its window, so one image shows only a part of the field: one grows
    away from the middle, so that its maxima lie outward, and others are random, for unpooling. In
    float64, because in float32 the gradient of the longest paths through a hundred layers rounds to
    zero.

    Args:
      name: name of the architecture.
      side: side of the image, in pixels; a field that reaches its border may be larger.
    """
    fields = {field.name: field.default for field in dataclasses.fields(models.find(name))}
    narrow: dict[str, Any] = {width: 2 for width in WIDTHS if width in fields}
    # On a CPU, optimizing the program takes longer than these few calls.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    seen = np.zeros((side, side), bool)
    # Flax's batch normalization mixes float32 with float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = models.create(name, 2, dtype=jnp.float64, **narrow)
        variables = _positive(abstract(model, (side, side)))

        def middle(image, variables):
            logits = model.apply(variables, image, train=False)
            return jnp.sum(logits[0, side // 2, side // 2])

        gradient = jax.jit(jax.grad(middle), compiler_options=options)
        for image in _images(side):
            seen |= np.any(np.asarray(gradient(image, variables))[0] != 0, -1)
            if min(box(seen)) == side:
                break
    return seen


def _positive(shapes):
    """Fill shapes: kernels positive and random, batch normalization the identity."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            values = rng.uniform(0.5, 1.5, leaf.shape) / math.prod(leaf.shape[:-1])
        else:
            values = np.full(leaf.shape, float(path[-1].key in ("scale", "var")))
        return values.astype(np.float64)

    return jax.tree.map_with_path(fill, shapes)


def _images(side: int) -> Iterator[np.ndarray]:
    """Yield images growing from the middle, and random: float64 (1, side, side, 3), from 1 to 2."""
    rows, columns = np.abs(np.mgrid[:side, :side] - side // 2) / side
    noise = np.random.default_rng(0).uniform(size=(4, side, side))
    for values in (rows + columns, *noise):
        yield np.repeat(1 + values[None, ..., None], 3, -1)


def render(rows: Sequence[Architecture], format: str = "markdown") -> str:
    """Render the rows as a table: markdown, csv or json."""
    if format == "json":
        return json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    lines = [_line(row) for row in rows]
    if format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue().rstrip("\n")
    head = list(lines[0])
    cells = [head, ["---"] * len(head), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _line(row):
    figure = row.figure
    expected = "" if figure.count is None else f"{figure.count:,}"
    if figure.count not in (None, row.counted):
        expected += f" (not {row.counted:,})"
    if expected and figure.of != "all":
        expected += f" {figure.of}"
    return {
        "model": row.name,
        "parameters": f"{row.parameters:,}",
        "by the layer list": expected,
        "published": figure.published,
        **{_by(size): text for size, text in zip(SIZES, row.outputs, strict=True)},
        "receptive field": row.receptive_field,
    }
