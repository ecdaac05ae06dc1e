"""Import modules of the user, also from the current folder, which the `segjax` command lacks."""

import importlib
import os
import sys
import traceback
from types import ModuleType

from segjax.errors import one_line


def search(folder: str) -> None:
    """Let modules be found in a folder, after all others, so that it hides none of them."""
    if folder not in sys.path:
        sys.path.append(folder)


def load(name: str) -> ModuleType:
    """Import a module, from the current folder if it is nowhere else."""
    search(os.getcwd())
    importlib.invalidate_caches()
    return importlib.import_module(name)


def failure(error: Exception) -> str:
    """Return what a user's module raised, and where, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {one_line(error)}"
    # A module that is missing, or has a syntax error, fails inside the import system.
    inside = place.filename.startswith("<frozen ") or place.filename == importlib.__file__
    return said if inside else f"{said} ({place.filename}, line {place.lineno})"
