"""Persistent compilation cache, shared by the runs of a sweep and by later starts.

JAX stores compiled programs in the folder JAX_COMPILATION_CACHE_DIR. A sweep sets it to a folder of
its workdir, unless it is set already; JAX_ENABLE_COMPILATION_CACHE=0 disables the cache. The folder
may be deleted at any time. JAX runs the programs in it unchecked, so only people who may write to
the runs should be able to write to it.

The key of an entry covers the program, its options, the versions of JAX and XLA, the kind of device
and, for a CPU, its instruction set, so no machine loads a program for another type of CPU. A cached
program computes the same bits as a newly compiled one.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
FOLDER = "compiled"  # name in a sweep's workdir


def share(workdir: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variable for a sweep's runs to share a cache; {} if already set."""
    return {} if VARIABLE in environment else {VARIABLE: str(workdir.absolute() / FOLDER)}


def enable() -> None:
    """Make JAX cache every program, if the environment names a folder.

    A training compiles about fifteen programs, few enough to cache the fast ones too. For an entry
    that cannot be read or written (JAX writes in place, so a kill may truncate one) JAX warns and
    compiles, even if warnings are errors.
    """
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.filterwarnings("default", "Error (reading|writing) persistent compilation cache entry")
