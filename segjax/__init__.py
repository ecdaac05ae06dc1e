"""segjax: architecture ablations in semantic segmentation, in JAX and Flax."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segjax.trained import TrainedRun

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "load"]


def create_model(name: str, num_classes: int, **options: Any) -> Any:
    """Create an untrained Flax module, called as `model.apply(variables, image, train=False)`.

    Args:
      name: a key of `segjax.models.MODELS`, such as `unet`.
      num_classes: number K of classes, the channels of the logits (B, H, W, K).
      **options: fields of the model, such as `width`.

    Raises:
      UserError: an unknown name or option, or an invalid value of an option.
    """
    from segjax import models  # JAX is imported here, not by `import segjax`

    return models.create(name, num_classes, **options)


def load(
    workdir: str | os.PathLike[str], checkpoint: str | None = None, data_dir: str | None = None
) -> "TrainedRun":
    """Load a trained run: `.predict(image)`, `.predict_proba(image)`, `.evaluate(split)`, `.row`.

    Args:
      workdir: the run directory, an exported folder, or `hf:user/name` on the Hugging Face hub.
      checkpoint: final, best or latest; None: final if the run is finished, otherwise best.
      data_dir: folder of the prepared datasets, if it differs from training.

    Raises:
      UserError: there is no run, or no such checkpoint.
    """
    from segjax.trained import TrainedRun

    return TrainedRun(workdir, checkpoint, data_dir)


def __getattr__(name: str) -> Any:
    """Import the module `segjax.NAME` where it is first used, as JAX takes seconds to import."""
    full = f"{__name__}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
