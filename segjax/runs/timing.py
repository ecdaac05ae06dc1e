"""Record where the time of a run goes: `phases.jsonl` in its workdir, one line a phase.

A start of a training is cut into stretches without a gap: `start` (reading data, restoring), `first
step`, `training`, `validation`, `saving`, and `test` (batch normalisation recomputed, the test
split), or `stopping` where a signal came. Of each there is known how much of it was spent on
compiling.
"""

import functools
import time
from collections import Counter
from pathlib import Path

import jax

from segjax.results import schema

FILE = "phases.jsonl"

_COMPILING = "/jax/core/compile/backend_compile_duration"  # a look into the cache is in it
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


@functools.cache
def _spent() -> Counter[str]:
    """Seconds by JAX's own names of events, of this process from the first call on."""
    total: Counter[str] = Counter()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        total[event] += duration_secs  # type: ignore[assignment]  # counts that are no integers

    jax.monitoring.register_event_duration_secs_listener(listen)
    return total


class Phases:
    """Writes the stretches of one start of a training, each as it ends."""

    def __init__(self, workdir: Path | None, device: str):
        """workdir: where; none: nothing is written. device: which, as in the row of the result."""
        self._path = workdir / FILE if workdir else None
        self._device = device
        self._mark()

    def _mark(self):
        self._since, self._former = time.monotonic(), Counter(_spent())

    def end(self, phase: str, steps: int = 0) -> None:
        """Ends a stretch, in which so many steps were done, and begins the next.

        Raises:
          OSError: with the name of the file, such as of a full disk.
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
