"""What a network costs by its shapes alone: parameters, and multiply-adds. Nothing is computed."""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from segjax.ops.platform import shapes_alone


def parameters(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """How many numbers a model learns, running statistics not counted; shape: (H, W, C)."""
    return sum(x.size for x in jax.tree.leaves(_variables(model, shape)["params"]))


@shapes_alone()
def forward_operations(
    model: nn.Module, shape: tuple[int, int, int], *, train: bool = False
) -> int:
    """Multiply-adds of the convolutions and matrix products of a network on one image.

    Counted as the field does: a convolution does outputs x taps x channels of a group, zeros of
    the padding not excepted; a transposed one, inputs x taps x channels. What is computed as a
    product with a matrix, such as a fixed bilinear deconvolution, counts as that product.
    Everything else (normalization, pooling, activations) is not counted.

    Args:
      model: any of `segjax.models`.
      shape: (H, W, C) of the image.
      train: the network as it is trained; differs where it trains on patches.
    """

    def forward(variables, image):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=train, mutable=["batch_stats"], rngs=rngs)

    return operations(jax.make_jaxpr(forward)(_variables(model, shape), _image(shape)).jaxpr)


def operations(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of a traced function.

    Raises:
      ValueError: it has a loop whose number of turns no shape tells.
    """
    total, equations = 0, cast("list[Any]", jaxpr.eqns)  # avals of arrays have shapes
    for equation in equations:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            total += _of_convolution(equation)
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += equation.outvars[0].aval.size * math.prod(lengths)
        else:
            inner = [operations(part) for part in core.jaxprs_in_params(equation.params)]
            if name == "while" and any(inner):
                raise ValueError("a while loop does multiply-adds, how many times is not known")
            turns = equation.params["length"] if name == "scan" else 1
            total += turns * (max(inner) if name == "cond" else sum(inner))
    return total


def _of_convolution(equation: Any) -> int:
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    places = equation.params["dimension_numbers"]
    batch, features, *_ = (output[axis] for axis in places.out_spec)
    _, channels, *taps = (kernel[axis] for axis in places.rhs_spec)
    # The zeros between the pixels of a transposed convolution take no part: a pixel meets each tap
    # once and each output once, so the fewer of them: outputs in a kernel's gradient.
    meetings = [
        image[inner] * min(tap, output[outer]) if dilation > 1 else output[outer] * tap
        for inner, outer, tap, dilation in zip(
            places.lhs_spec[2:],
            places.out_spec[2:],
            taps,
            equation.params["lhs_dilation"],
            strict=True,
        )
    ]
    return batch * features * math.prod(meetings) * channels


@shapes_alone()
def _variables(model, shape):
    # The key is made inside, so that no device is taken hold of.
    return jax.eval_shape(
        lambda image: model.init(jax.random.key(0), image, train=False), _image(shape)
    )


def _image(shape):
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)
