"""A dataset of code: a Python module of your own, named `module:NAME` in the config.

The module is found like any other import, and in the current folder. It has

- `CLASS_NAMES`, K names in the order of the labels;
- `examples(split)`, which yields for each example of "train", "val" and "test", in a fixed order,
  an image, uint8 (H, W, 3), and a label, integers (H, W) in [0, K) or 255 for void; and optionally
  a name, as a third item;

and optionally

- `PALETTE`, K RGB triples for pictures;
- `CHANNELS`, of the images, (H, W, CHANNELS), if they are not 3;
- `SPLITS`, if they are not ("train", "val", "test"); only the last may be missing;
- `VERSION`, text or a number, to be changed when the data change but the module does not.

The examples are prepared once, at their own sizes, and again when the module's file changes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segjax.data import builders
from segjax.data.statistics import VOID
from segjax.errors import UserError
from segjax.system import imports

SPLITS = ("train", "val", "test")


def check_name(name: str) -> None:
    """Raise a UserError unless NAME of `module:NAME` may be that of a module."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"dataset module:{name}: expected the name of a module as in an import, such as "
            "module:halves for halves.py"
        )


def load(name: str) -> ModuleType:
    """Import a module, also from the current folder.

    Raises:
      UserError: there is none, or it fails.
    """
    try:
        return imports.load(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and name.startswith(error.name or "."):
            raise UserError(
                f"dataset module:{name}: there is no module {error.name}, neither in "
                f"{os.getcwd()} nor on PYTHONPATH; start segjax in the folder of the module, or "
                "set PYTHONPATH to it"
            ) from None
        raise _failed(name, "its import", error) from error


def _failed(name: str, what: str, error: Exception) -> UserError:
    return UserError(f"dataset module:{name}: {what} fails with {imports.failure(error)}")


class Module(builders.Builder):
    """TFDS builder of the examples of a module, by the name of its import."""

    name = "module"

    def __init__(self, module: str, source: None, resolution: object, data_dir: Path | None):
        self.module = load(module)
        self.origin = _origin(self.module)
        names, palette, channels, splits = read_description(self.module)
        file = getattr(self.module, "__file__", None)
        code = Path(file).read_bytes() if file else b""
        described = [self.module.__name__, names, palette, channels, splits]
        described.append(str(getattr(self.module, "VERSION", "")))
        self.class_names, self.palette, self.channels = names, tuple(palette), channels
        self.splits = dict.fromkeys(splits)
        digest = hashlib.sha256(json.dumps(described).encode() + code).hexdigest()
        super().__init__(digest[:16], data_dir)

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Yield what the module's `examples` yields, checked.

        Raises:
          UserError: the module fails, or an example is not as this file describes; names it.
        """
        seen: set[str] = set()
        for place, example in enumerate(self._raw(split)):
            where = f"dataset module:{self.module.__name__}, example {place} of {split}"
            checked = self._checked(example, where, f"{place:06d}")
            if checked[2] in seen:
                raise UserError(f"{where}: a second one is named {checked[2]!r}")
            seen.add(checked[2])
            yield checked

    def _raw(self, split: str) -> Iterator[Any]:
        """Yield what the module yields; raise its errors as a UserError, but none of ours."""
        try:
            examples = self.module.examples(split)
            if not isinstance(examples, Iterable):
                raise TypeError(f"it returns {examples!r}; yield the examples")
            examples = iter(examples)
            while (example := next(examples, self)) is not self:
                yield example
        except Exception as error:
            what = f"examples({split!r})"
            raise _failed(self.module.__name__, what, error) from error

    def _checked(self, example: Any, where: str, default: str) -> builders.Example:
        if not isinstance(example, tuple | list) or len(example) not in (2, 3):
            raise UserError(
                f"{where} is a {type(example).__name__}, expected an image, a label and optionally "
                "a name"
            )
        image, label = (np.asarray(array) for array in example[:2])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != self.channels:
            raise UserError(
                f"{where} has an image of shape {image.shape} and dtype {image.dtype}, expected "
                f"uint8 (H, W, {self.channels}), the last of which the module may set as CHANNELS"
            )
        if not np.issubdtype(label.dtype, np.integer) or label.shape != image.shape[:2]:
            raise UserError(
                f"{where} has a label of shape {label.shape} and dtype {label.dtype}, expected "
                f"integers {image.shape[:2]}"
            )
        classes = range(len(self.class_names))
        known = {**dict(zip(classes, classes, strict=True)), VOID: VOID}
        expected = f"expected 0 to {classes[-1]}, or {VOID} for void"
        label = builders.map_labels(label, known, where, expected)
        return image, label, str(example[2]) if len(example) == 3 else default


def _origin(module: ModuleType) -> str:
    """Return the folder in which the import of a module began; "" if it has no file."""
    if not getattr(module, "__file__", None):
        return ""
    path = Path(str(module.__file__)).absolute()
    depth = module.__name__.count(".") + (path.stem == "__init__")
    return str(path.parents[depth])


def read_description(module: ModuleType) -> tuple[Any, Any, int, Any]:
    """Return class names, palette, channels and splits of a module.

    Raises:
      UserError: one of them, or `examples`, is missing or of another kind.
    """

    def require(holds: bool, what: str, expected: str) -> None:
        if not holds:
            has = f"{what} is {getattr(module, what)!r}" if hasattr(module, what) else f"no {what}"
            file = getattr(module, "__file__", "built in")
            raise UserError(
                f"dataset module:{module.__name__} ({file}): {has}, expected {expected}"
            )

    names: Any = getattr(module, "CLASS_NAMES", ())
    texts = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    known = texts and all(names) and 1 <= len(set(names)) == len(names) < VOID
    require(known, "CLASS_NAMES", f"1 to {VOID - 1} different names")
    require(callable(getattr(module, "examples", None)), "examples", "a function of a split's name")
    palette = getattr(module, "PALETTE", None)
    try:
        colors = np.asarray(builders.distinct_colors(len(names)) if palette is None else palette)
    except ValueError:  # rows of different lengths
        colors = np.zeros(0)
    fits = colors.shape == (len(names), 3) and np.issubdtype(colors.dtype, np.integer)
    require(fits, "PALETTE", f"{len(names)} RGB triples of 0 to 255")
    require(bool(((colors >= 0) & (colors <= 255)).all()), "PALETTE", "RGB triples of 0 to 255")
    channels = getattr(module, "CHANNELS", 3)
    require(type(channels) is int and channels >= 1, "CHANNELS", "an integer from 1")
    splits = getattr(module, "SPLITS", SPLITS)
    listed = isinstance(splits, tuple | list) and tuple(splits) in (SPLITS, SPLITS[:2])
    require(listed, "SPLITS", f"{SPLITS} or {SPLITS[:2]}")
    return tuple(names), [tuple(map(int, color)) for color in colors], channels, tuple(splits)
