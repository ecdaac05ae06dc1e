"""segjax: architecture ablations in semantic segmentation, in JAX and Flax."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ml_collections import ConfigDict

    from segjax.trained import TrainedRun

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "fit", "load"]


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


def fit(
    config: "str | ConfigDict",
    workdir: str | os.PathLike[str],
    overrides: "Mapping[str, Any] | None" = None,
) -> "TrainedRun":
    """Train a config in a run directory, or resume it, and load it: `segjax train` in Python.

    Args:
      config: `FILE[:ARG]`, as for `--config`, or a config made from `segjax.config.default()`.
      workdir: the run directory; a finished run is only loaded.
      overrides: values of fields, such as {"optimizer.learning_rate": 0.01}.

    Raises:
      UserError: the config, the data or the run directory cannot be used.
      Stopped: SIGTERM or SIGINT came; the state is saved.
      Diverged: the loss or its gradient is not finite.
    """
    from segjax import trained

    return trained.fit(config, workdir, overrides or {})


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
