"""Experiment configs: their fields and defaults, loading, overriding and checking.

A config file defines `get_config(arg)`, which returns an `ml_collections.ConfigDict` based on
`default()`. `--config FILE[:ARG]` selects it, `--config.a.b=value` overrides a field.
"""

from segjax.config.fields import check, default, difference, digest, flat, incidental
from segjax.config.loading import (
    closest,
    experiment_name,
    is_of_run,
    load,
    load_module,
    override,
    parse_overrides,
    plain,
    recorded,
    restore,
)

__all__ = [
    "check",
    "closest",
    "default",
    "difference",
    "digest",
    "experiment_name",
    "flat",
    "incidental",
    "is_of_run",
    "load",
    "load_module",
    "override",
    "parse_overrides",
    "plain",
    "recorded",
    "restore",
]
