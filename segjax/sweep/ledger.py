"""What a folder of `segjax reproduce` knows from one call to the next: rows, timings, failures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segjax import config as configs
from segjax import results
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.results import schema
from segjax.sweep import budget, display
from segjax.sweep.grids import Point, run_name

RESULTS, TIMINGS, FAILURES = results.REPRODUCED, "timings.jsonl", "failures.jsonl"
OPERATIONS = "operations.json"  # multiply-adds by the digest of the config: they take a while

_SECONDS = ("a number >= 0", lambda v: schema.is_number(v, 1e12), True)
_RUN: schema.Fields = {
    "run": ("a name", schema.is_text, False),
    "config_digest": ("a digest", schema.is_text, False),
    "seed": ("an integer", lambda v: type(v) is int, False),
}
_TIMING: schema.Fields = {
    **_RUN,
    "device": ("a name", schema.is_text, True),
    "end": ("a word", schema.is_text, False),
    "steps": ("an integer >= 0", schema.is_count, False),
    "seconds": _SECONDS,
    "saved_by_cache": ("a number", lambda v: isinstance(v, int | float), False),
    **dict.fromkeys(budget.MEASURED, _SECONDS),
}
_FAILURE: schema.Fields = {**_RUN, "cause": ("a text", schema.is_text, False)}

_Key = tuple[str, int]  # digest of the config, which leaves the seed out, and the seed


class Ledger:
    """The files of a folder; every change is on disk before a method returns."""

    def __init__(self, folder: Path, retry: bool = False):
        """retry: forget what failed.

        Raises:
          UserError: a file is damaged, or has what is no such row.
        """
        self._folder = folder
        self._digests: dict[str, str] = {}
        rows = results.read([folder / RESULTS]) if (folder / RESULTS).exists() else []
        self._done = {(row["config_digest"], row["seed"]) for row in rows}
        self._timings = self._read(TIMINGS, _TIMING)
        if retry:
            (folder / FAILURES).unlink(missing_ok=True)
        self._failures = self._read(FAILURES, _FAILURE)
        self.operations: dict[str, int] = {}
        if (folder / OPERATIONS).exists():
            self.operations = self._read_operations()
        # Another machine than that of the last call shows when its first run has begun.
        devices = [timing["device"] for timing in self._timings if timing["device"]]
        self._device = devices[-1] if devices else None

    def _read(self, name, fields):
        path = self._folder / name
        rows = schema.parse(path, "a row of `segjax reproduce`") if path.exists() else []
        for where, row in rows:
            schema.check_fields(row, fields, where)
        return [row for _, row in rows]

    def _read_operations(self):
        path = self._folder / OPERATIONS
        try:
            found = json.loads(path.read_text())
            return {digest: int(amount) for digest, amount in found.items()}
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path} is damaged; delete it, it is made again") from None

    def keep_operations(self) -> None:
        """Writes them down."""
        write_whole(self._folder / OPERATIONS, json.dumps(self.operations, indent=1) + "\n")

    def digest(self, point: Point) -> str:
        """Of the run's config; worked out once, for it is asked for again and again."""
        if point.name not in self._digests:
            self._digests[point.name] = configs.digest(point.config)
        return self._digests[point.name]

    def _key(self, point: Point) -> _Key:
        return self.digest(point), point.config.seed

    def has(self, point: Point) -> bool:
        """Whether there is a row of the run, from whatever machine."""
        return self._key(point) in self._done

    def collect(self, point: Point) -> bool:
        """Takes the row of a run into the results; whether the run is finished."""
        path = self._folder / point.name / "result.json"
        if not path.exists():
            return False
        if not self.has(point):
            (row,) = results.read([path])
            results.append(self._folder / RESULTS, row)
            self._done.add(self._key(point))
        return True

    def failures(self, point: Point) -> int:
        """How often the run has failed."""
        return sum(
            (row["config_digest"], row["seed"]) == self._key(point) for row in self._failures
        )

    def add_failure(self, point: Point, cause: str) -> None:
        """Notes that the run has failed, and why."""
        self._failures.append(self._append(FAILURES, point, {"cause": cause}))

    def add_timing(self, point: Point, timing: budget.Timing) -> None:
        """Notes what a start of the run took."""
        self._device = timing["device"] or self._device
        self._timings.append(self._append(TIMINGS, point, timing))

    def _append(self, name: str, point: Point, content: dict[str, Any]) -> dict[str, Any]:
        digest, seed = self._key(point)
        row = {"run": point.name, "config_digest": digest, "seed": seed, **content}
        schema.append(self._folder / name, row)
        return row

    def _of_this_device(self) -> dict[str, list[budget.Timing]]:
        """The timings by config; those that ended before they had one are of any."""
        found: dict[str, list[budget.Timing]] = {}
        for timing in self._timings:
            if timing["device"] in (self._device, None):
                found.setdefault(timing["config_digest"], []).append(timing)
        return found

    def paces(self) -> dict[str, budget.Pace]:
        """What is known of each config, on the device of the last run."""
        return {digest: budget.pace(own) for digest, own in self._of_this_device().items()}

    def table(self, runs: Sequence[Point]) -> list[str]:
        """What each network has taken on the device of the last run, in lines; []: nothing yet."""
        timings = self._of_this_device()
        configurations: dict[str, list[Point]] = {}
        for point in runs:
            configurations.setdefault(self.digest(point), []).append(point)
        names = [points[0].config.model.name for points in configurations.values()]
        rows = []
        for digest, points in configurations.items():
            if digest not in timings:
                continue
            name = points[0].config.model.name
            if names.count(name) > 1:
                own = points[0].overrides.items()
                name = run_name({field: value for field, value in own if field != "seed"})
            pace = budget.pace(timings[digest])
            compiled, cached = _compiling(timings[digest])
            done = f"{sum(map(self.has, points))}/{len(points)}"
            measured = (pace.start, compiled, cached, pace.step, pace.validation, pace.test)
            rows.append([name, done, *map(_seconds, measured)])
        if not rows:
            return []
        head = ["seconds on " + str(self._device), "done", "start", "compile", "from cache"]
        head += ["step", "validation", "test"]
        return display.aligned(head, rows, right=range(1, len(head)))


def _compiling(timings):
    """Seconds that a start has compiled for without the cache, and with it; none: not seen."""
    known = [timing for timing in timings if timing["compiling"] is not None]
    cold = [timing["compiling"] + max(timing["saved_by_cache"], 0) for timing in known]
    # One that was cut short, or had but the test to do, has not compiled all.
    warm = [t["compiling"] for t in known if t["saved_by_cache"] > 0 and t["steps"]]
    return max(cold, default=None), min(warm, default=None)


def _seconds(value):
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
