"""Architectures by name. Each maps (B, H, W, C) images of any size to (B, H, W, K) logits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models.decoder_variants import (
    BilinearInterpolation,
    FCNBasic,
    FCNBasicNoAddition,
    FCNBasicNoAdditionNoDimReduction,
    FCNBasicNoDimReduction,
    SegNetBasicEncoderAddition,
    SegNetBasicSingleChannelDecoder,
)
from segjax.models.deconvnet import DeconvNet
from segjax.models.deeplab import DeepLabASPP, DeepLabLargeFOV
from segjax.models.densenet import FCDenseNet56, FCDenseNet67, FCDenseNet103
from segjax.models.dilation import Dilation8
from segjax.models.fcn import FCN4s, FCN8s, FCN16s, FCN32s
from segjax.models.patches import PatchCNN
from segjax.models.segnet import BayesianSegNet, BayesianSegNetBasic, SegNet, SegNetBasic
from segjax.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "segnet_basic_encoder_addition": SegNetBasicEncoderAddition,
    "segnet_basic_single_channel_decoder": SegNetBasicSingleChannelDecoder,
    "bilinear_interpolation": BilinearInterpolation,
    "fcn_basic": FCNBasic,
    "fcn_basic_no_addition": FCNBasicNoAddition,
    "fcn_basic_no_dim_reduction": FCNBasicNoDimReduction,
    "fcn_basic_no_addition_no_dim_reduction": FCNBasicNoAdditionNoDimReduction,
    "bayesian_segnet": BayesianSegNet,
    "bayesian_segnet_basic": BayesianSegNetBasic,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcn4s": FCN4s,
    "deconvnet": DeconvNet,
    "unet": UNet,
    "deeplab_aspp": DeepLabASPP,
    "deeplab_largefov": DeepLabLargeFOV,
    "dilation8": Dilation8,
    "fc_densenet56": FCDenseNet56,
    "fc_densenet67": FCDenseNet67,
    "fc_densenet103": FCDenseNet103,
    "patch_cnn": PatchCNN,
}


def create(
    name: str,
    num_classes: int,
    /,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    **options: Any,
) -> nn.Module:
    """An architecture of `MODELS` for K = num_classes.

    Args:
      name: a key of `MODELS`.
      num_classes: K.
      dtype: of the computation.
      axis_name: of the mapped axis over devices, for batch normalisation.
      options: the architecture's own fields, such as width.

    Raises:
      UserError: an unknown name or option, with the list of the known ones; an option's value that
        is none of its CHOICES, of another type than its default, or a number below 1; no class.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    own = {"num_classes", "dtype", "axis_name", "parent", "name"}
    known = {f.name: f.default for f in dataclasses.fields(MODELS[name]) if f.name not in own}
    if num_classes < 1:
        raise UserError(f"model {name} is asked for {num_classes} classes, expected at least 1")
    choices = getattr(MODELS[name], "CHOICES", {})
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"unknown option {option!r} of model {name}; known: {', '.join(sorted(known))}"
            )
        if option in choices and value not in choices[option]:
            raise UserError(
                f"option {option!r} of model {name} is {value!r}, "
                f"expected one of {', '.join(map(repr, choices[option]))}"
            )
        if not _like(value, known[option]):
            raise UserError(
                f"option {option!r} of model {name} is {value!r}, "
                f"expected one such as {known[option]!r}"
            )
    return MODELS[name](num_classes=num_classes, dtype=dtype, axis_name=axis_name, **options)


def _like(value, default):
    if isinstance(default, tuple):
        return isinstance(value, tuple) and value and all(_like(v, default[0]) for v in value)
    if isinstance(default, float):
        return type(value) in (int, float) and 0 <= value < 1  # a probability
    return type(value) is type(default) and (type(value) is not int or value >= 1)
