"""Count the parameters and MACs (multiply-adds) of a network from shapes alone."""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from segjax.ops.platform import shapes_only


def parameters(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the parameters of a model for images (H, W, C), without running statistics."""
    return sum(x.size for x in jax.tree.leaves(abstract(model, shape)["params"]))


@shapes_only()
def forward_macs(model: nn.Module, shape: tuple[int, int, int], *, train: bool = False) -> int:
    """Count the MACs of the convolutions and matrix products of a network on one image.

    As usual, a convolution has outputs x taps x channels of a group, padding included, and a
    transposed one inputs x taps x channels. A product with a matrix, such as a fixed bilinear
    deconvolution, counts as that product. Normalization, pooling and activations are not counted.

    Args:
      model: any of `segjax.models`.
      shape: (H, W, C) of the image.
      train: count the network as it is trained, which differs for a network of patches.
    """

    def forward(variables, image):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=train, mutable=["batch_stats"], rngs=rngs)

    return macs(jax.make_jaxpr(forward)(abstract(model, shape), _image(shape)).jaxpr)


def macs(jaxpr: core.Jaxpr) -> int:
    """Count the MACs of a traced function.

    Raises:
      ValueError: it has a loop whose number of iterations is not known.
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
            inner = [macs(part) for part in core.jaxprs_in_params(equation.params)]
            if name == "while" and any(inner):
                raise ValueError("a while loop has MACs, but an unknown number of iterations")
            iterations = equation.params["length"] if name == "scan" else 1
            total += iterations * (max(inner) if name == "cond" else sum(inner))
    return total


def _of_convolution(equation: Any) -> int:
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    places = equation.params["dimension_numbers"]
    batch, features, *_ = (output[axis] for axis in places.out_spec)
    _, channels, *taps = (kernel[axis] for axis in places.rhs_spec)
    # Zeros between the pixels of a transposed convolution do not count: a pixel is multiplied once
    # for each tap or each output, whichever are fewer (outputs in a kernel's gradient).
    products = [
        image[inner] * min(tap, output[outer]) if dilation > 1 else output[outer] * tap
        for inner, outer, tap, dilation in zip(
            places.lhs_spec[2:],
            places.out_spec[2:],
            taps,
            equation.params["lhs_dilation"],
            strict=True,
        )
    ]
    return batch * features * math.prod(products) * channels


@shapes_only()
def abstract(model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """Return the shapes of a model's variables for an image (H, W, C); initialize no device."""
    return jax.eval_shape(
        lambda image: model.init(jax.random.key(0), image, train=False), _image(shape)
    )


def _image(shape):
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)
