"""Results as data: read, validate and write rows, summarize and compare them."""

from segjax.results.rows import (
    SCHEMA,
    append,
    group_key,
    is_native,
    measured,
    overrides,
    provenance,
    read,
    read_files,
    revision,
    run_directory,
    scored,
    title,
    write_row,
)

__all__ = [
    "SCHEMA",
    "append",
    "group_key",
    "is_native",
    "measured",
    "overrides",
    "provenance",
    "read",
    "read_files",
    "revision",
    "run_directory",
    "scored",
    "title",
    "write_row",
]
