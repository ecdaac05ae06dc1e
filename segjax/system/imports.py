"""Import modules of the user, also from the current folder, which the `segjax` command lacks."""

import importlib
import os
import sys
from types import ModuleType


def search(folder: str) -> None:
    """Let modules be found in a folder, after all others, so that it hides none of them."""
    if folder not in sys.path:
        sys.path.append(folder)


def load(name: str) -> ModuleType:
    """Import a module, from the current folder if it is nowhere else."""
    search(os.getcwd())
    importlib.invalidate_caches()
    return importlib.import_module(name)
