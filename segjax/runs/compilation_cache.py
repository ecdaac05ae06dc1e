"""Compiled programs kept on disk, so that the runs of a sweep and later starts find them there.

It is JAX's persistent cache, in the folder that JAX_COMPILATION_CACHE_DIR names. A sweep names one
in its workdir, unless the variable is there already; JAX_ENABLE_COMPILATION_CACHE=0 goes without.
The folder may be deleted at any time. It holds programs that JAX runs without a question, so it
should be writable by those alone who may write the runs.

What an entry is found by is the program, its options, the versions of JAX and XLA, and the kind of
the devices; of a CPU also the instructions that it has, so that no machine is given what another
type of CPU compiled. What comes from the cache computes the same bits as what was compiled.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
FOLDER = "compiled"  # in the workdir of a sweep


def shared(workdir: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable by which the runs of a sweep share a cache; {} where the user has set it."""
    return {} if VARIABLE in environment else {VARIABLE: str(workdir.absolute() / FOLDER)}


def turn_on(environment: Mapping[str, str] = os.environ) -> None:
    """Makes JAX use the folder that the environment names, if any, for all programs.

    A training has some fifteen of them, few enough to keep those that compile fast as well. An
    entry that cannot be read or written (JAX writes them in place, so a kill may cut one) is warned
    of and compiled, even where warnings are errors.
    """
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environment:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.filterwarnings("default", "Error (reading|writing) persistent compilation cache entry")
