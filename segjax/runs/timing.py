"""Record how a run spends its time: `phases.jsonl` in its workdir, one line per phase.

Phases follow one another without a gap: `start` (read data, restore), `first step`, `training`,
`validation`, `saving`, and `test` (recompute batch normalization, evaluate), or `stopping` after a
signal. Each row includes the seconds spent compiling.
"""

import functools
import time
from collections import Counter
from pathlib import Path

import jax

from segjax.results import schema

FILE = "phases.jsonl"

_COMPILING = "/jax/core/compile/backend_compile_duration"  # includes cache lookups
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


@functools.cache
def _spent() -> Counter[str]:
    """Return the seconds of each JAX event in this process, counted from the first call."""
    total: Counter[str] = Counter()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        total[event] += duration_secs  # type: ignore[assignment]  # Counter is typed for int

    jax.monitoring.register_event_duration_secs_listener(listen)
    return total


class Phases:
    """Write the phases of one start of a training, each when it ends."""

    def __init__(self, workdir: Path | None, device: str):
        """Start the first phase; workdir None: write nothing; device: as in the result row."""
        self._path = workdir / FILE if workdir else None
        self._device = device
        self._mark()

    def _mark(self):
        self._since, self._former = time.monotonic(), Counter(_spent())

    def end(self, phase: str, steps: int = 0) -> None:
        """End a phase, in which `steps` training steps were done, and begin the next.

        Raises:
          OSError: for example a full disk; names the file.
        """
        spent = _spent()
        row = {
            "phase": phase,
            "seconds": time.monotonic() - self._since,
            "steps": steps,
            "compiling": spent[_COMPILING] - self._former[_COMPILING],
            "saved_by_cache": spent[_SAVED] - self._former[_SAVED],
            "device": self._device,
            "time": time.time(),
        }
        if self._path:
            schema.append(self._path, row)
        self._mark()
