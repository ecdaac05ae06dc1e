"""Architectures by name. Each maps (B, H, W, C) images of any size to (B, H, W, K) logits."""

import dataclasses
import difflib
from typing import Any, get_type_hints

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
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.densenet import FCDenseNet56, FCDenseNet67, FCDenseNet103
from segjax.models.dilation import Dilation8
from segjax.models.fcn import FCN4s, FCN8s, FCN16s, FCN32s
from segjax.models.options import allows, describe
from segjax.models.patches import PatchCNN
from segjax.models.segnet import BayesianSegNet, BayesianSegNetBasic, SegNet, SegNetBasic
from segjax.models.unet import UNet
from segjax.models.unet_resnet import UNetResNet
from segjax.system import imports

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
    "unet_resnet": UNetResNet,
    "deeplab_aspp": DeepLabASPP,
    "deeplab_largefov": DeepLabLargeFOV,
    "deeplab_v2": DeepLabV2,
    "deeplab_v3": DeepLabV3,
    "dilation8": Dilation8,
    "fc_densenet56": FCDenseNet56,
    "fc_densenet67": FCDenseNet67,
    "fc_densenet103": FCDenseNet103,
    "patch_cnn": PatchCNN,
}


# Fields of every model that are not options.
OWN = ("num_classes", "dtype", "axis_name")


def find(name: str) -> type[nn.Module]:
    """Return the class of a model: a key of `MODELS`, or `module:Class` of one elsewhere.

    Raises:
      UserError: the name is unknown; the module cannot be imported or has no such class; or the
        class lacks a field of num_classes, dtype and axis_name.
    """
    module, colon, attribute = name.partition(":")
    if name in MODELS:
        model = MODELS[name]
    elif colon:
        try:
            loaded = imports.load(module)
        except Exception as error:
            raise UserError(
                f"model {name!r} cannot be imported, from the current folder or PYTHONPATH: "
                f"{imports.failure(error)}"
            ) from error
        if not hasattr(loaded, attribute):
            raise UserError(f"model {name!r}: the module {module} has no {attribute or 'class'}")
        model = getattr(loaded, attribute)
    else:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown model {name!r}{hint}; known: {', '.join(sorted(MODELS))}")
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise UserError(f"model {name} is {model!r}, expected a flax.linen.Module class")
    missing = set(OWN) - {field.name for field in dataclasses.fields(model)}
    if missing:
        raise UserError(f"model {name} has no field {min(missing)!r}, expected {', '.join(OWN)}")
    return model


def create(
    name: str,
    num_classes: int,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    **options: Any,
) -> nn.Module:
    """Return a model for K = num_classes.

    Args:
      name: a key of `MODELS`, or `module:Class` of a Flax module elsewhere that has the fields
        num_classes, dtype and axis_name and is called as model(image, train=...).
      num_classes: K.
      dtype: dtype of the computation.
      axis_name: mapped axis over devices, for batch normalization.
      options: the model's other fields, such as width.

    Raises:
      UserError: the name or an option is unknown, an option has a value that the annotation of its
        field does not allow, or num_classes is below 1.
    """
    model = find(name)
    if num_classes < 1:
        raise UserError(f"model {name} is asked for {num_classes} classes, expected at least 1")
    kinds = get_type_hints(model, include_extras=True)
    known = {field.name for field in dataclasses.fields(model)} - {*OWN, "parent", "name"}
    for option, value in options.items():
        if option not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UserError(f"unknown option {option!r} of model {name}; known: {names}")
        if not allows(kinds[option], value):
            expected = describe(kinds[option])
            raise UserError(f"option {option!r} of model {name} is {value!r}, expected {expected}")
    return model(num_classes=num_classes, dtype=dtype, axis_name=axis_name, **options)
