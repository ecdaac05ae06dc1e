"""Architectures by name. Each maps (B, H, W, C) images of any size to (B, H, W, K) logits."""

import dataclasses
from typing import Any

from flax import linen as nn

from segjax.errors import UserError
from segjax.models.segnet import SegNet, SegNetBasic

MODELS: dict[str, type[nn.Module]] = {
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
}


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """An architecture of `MODELS` for K = num_classes; options are its fields.

    Raises:
      UserError: an unknown name or option, with the list of the known ones.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    own = {"num_classes", "parent", "name"}
    known = {field.name for field in dataclasses.fields(MODELS[name])} - own
    for option in options:
        if option not in known:
            raise UserError(
                f"unknown option {option!r} of model {name}; known: {', '.join(sorted(known))}"
            )
    return MODELS[name](num_classes=num_classes, **options)
