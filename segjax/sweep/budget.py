"""Which run of a grid fits into the seconds that are left, by what former ones have taken.

Nothing here runs anything or looks at a clock: timings and seconds in, a choice out.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from segjax.sweep.grids import Point

Timing = dict[str, Any]  # of one start of a run, as `timing` makes it

# Seconds that are assumed where nothing has been measured yet.
_START, _COMPILING, _SAVING, _STOPPING = 15.0, 60.0, 5.0, 5.0

_MARGIN = 1.25  # of the time that stopping should take; and seconds besides
_SAFETY = 2.0
_LARGEST_RESERVE = 0.2  # of the budget
_SCALED = ("step", "validation", "test")  # with the multiply-adds of the network
_FURTHEST = 4.0  # by which factor, at the most, for not all of it grows with them


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds that the runs of one config take on one kind of device; none: not known."""

    start: float | None = None  # of the process, to the end of the first step, but for compiling
    compiling: float | None = None  # of one start
    step: float | None = None
    validation: float | None = None
    saving: float | None = None
    test: float | None = None
    stopping: float | None = None  # from the last step's saving to the end of the process
    # What starts have taken that did not get on, since one that did: the next must have more.
    vain: float = 0.0


MEASURED = tuple(field.name for field in dataclasses.fields(Pace) if field.name != "vain")


def timing(
    phases: Sequence[dict[str, Any]],
    began: float,
    ended: float,
    end: str,
) -> Timing:
    """What one start of a run took, as data.

    Args:
      phases: of this start, as `segjax.runs.timing.read` gives them.
      began, ended: when its process did, in seconds since 1970.
      end: how: finished, stopped, failed or left to another process.
    """

    def of(name):
        return [row["seconds"] - row["compiling"] for row in phases if row["phase"] == name]

    laps = [row for row in phases if row["phase"] == "training" and row["steps"]]
    rates = [(row["seconds"] - row["compiling"]) / row["steps"] for row in laps]
    first = phases[0] if phases else None
    stopping = of("stopping")
    return {
        "device": first["device"] if first else None,
        "end": end,
        "seconds": ended - began,
        "steps": sum(row["steps"] for row in phases),
        "start": first["time"] - began - first["compiling"] + sum(of("first step"))
        if first
        else None,
        "compiling": sum(row["compiling"] for row in phases) if phases else None,
        "saved_by_cache": sum(row["saved_by_cache"] for row in phases),
        "step": statistics.median(rates) if rates else None,
        **{name: max(of(name), default=None) for name in ("validation", "saving", "test")},
        "stopping": stopping[0] + ended - phases[-1]["time"] if stopping else None,
    }


def pace(timings: Iterable[Timing]) -> Pace:
    """What is known from the starts of runs of one config on one kind of device.

    Of what happened more than once the last is taken, but for what must not be thought too short.
    """
    timings = list(timings)
    found = {
        name: [timing[name] for timing in timings if timing[name] is not None] for name in MEASURED
    }
    got_on = [place for place, t in enumerate(timings) if t["steps"] or t["end"] == "finished"]
    since = timings[got_on[-1] + 1 :] if got_on else timings
    vain = [t["seconds"] for t in since if t["end"] == "stopped"]
    return Pace(
        **{
            name: (values[-1] if name in ("start", "compiling", "step") else max(values))
            for name, values in found.items()
            if values
        },
        vain=max(vain, default=0.0),
    )


def completed(own: Pace, operations: int, others: Iterable[tuple[Pace, int]]) -> Pace:
    """A pace with what is not known of it guessed by those of other networks.

    Args:
      own: of the network.
      operations: its multiply-adds.
      others: pace and multiply-adds of each.
    """
    others = list(others)

    def typical(name):
        found = [getattr(pace, name) for pace, _ in others if getattr(pace, name) is not None]
        return statistics.median(found) if found else None

    def scaled(name):
        found = [
            getattr(pace, name) * min(max(operations / amount, 1 / _FURTHEST), _FURTHEST)
            for pace, amount in others
            if getattr(pace, name) is not None and amount
        ]
        return statistics.median(found) if found else None

    assumed = {
        "start": _START,
        "compiling": _COMPILING,
        "saving": _SAVING,
        "stopping": _STOPPING,
    }
    guessed = {
        name: scaled(name) if name in _SCALED else (typical(name) or assumed[name])
        for name in MEASURED
        if getattr(own, name) is None
    }
    return dataclasses.replace(own, **guessed)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is not done."""

    point: Point
    tier: int  # 0: the first seed of its config, 1: the second
    operations: int  # multiply-adds of its whole training
    step: int  # that is saved
    failures: int
    own: Pace  # measured
    pace: Pace  # completed by guesses
    budget: float  # seconds of the whole call

    @property
    def order(self) -> tuple[int, bool, int, int, str]:
        """Failed ones last, what is begun first; all first seeds before second ones; cheap ones
        first.
        """
        return self.failures, not self.step, self.tier, self.operations, self.point.name

    @property
    def overhead(self) -> float:
        """Seconds from the start to the first step."""
        return (self.pace.start or 0.0) + (self.pace.compiling or 0.0)

    @property
    def reserve(self) -> float:
        """Seconds before the end at which it is to be told to stop."""
        pace = self.pace
        parts = (pace.step, pace.validation, pace.saving, pace.stopping)
        needed = _MARGIN * sum(part or 0.0 for part in parts) + _SAFETY
        # What has gone badly once must not keep all that follow from beginning.
        return min(needed, _LARGEST_RESERVE * self.budget)

    @property
    def whole(self) -> float | None:
        """Seconds to its end, or none where that cannot even be guessed."""
        config, pace = self.point.config, self.pace
        if pace.step is None or pace.validation is None or pace.test is None:
            return None
        parts = (
            (config.steps - self.step) * pace.step,
            _times(self.step, config.steps, config.eval_every) * pace.validation,
            _times(self.step, config.steps, config.checkpoint_every) * (pace.saving or 0.0),
        )
        return self.overhead + sum(parts) + pace.test

    def fits(self, left: float) -> bool:
        """Whether it ends within so many seconds."""
        whole = math.inf if self.whole is None else self.whole
        return self.pace.vain < left and whole + self.reserve <= left

    def is_worth(self, left: float, first: bool) -> bool:
        """Whether it gets on well enough, though it does not end within so many seconds.

        Args:
          left: seconds.
          first: nothing has been begun in them yet, so that the only question is whether it can get
            on at all.
        """
        if self.pace.vain >= left:
            return False
        if self.step == self.point.config.steps:  # its test cannot be halved
            return self.own.test is None and (first or self.overhead < left)
        training = left - self.reserve - self.overhead
        if first:
            return training > 0 or (self.own.compiling is None and left > self.reserve)
        return training >= self.overhead


def _times(step, steps, every):
    """How often something comes that is done every so many steps, and at the last."""
    if step == steps:
        return 0
    return steps // every - step // every + (steps % every > 0)


def choose(
    jobs: Iterable[Job], left: float, first: bool = False, whole_only: bool = False
) -> Job | None:
    """The run to begin, or to go on with, when so many seconds are left; none: it is not worth it.

    Of the runs of the same rank (failed or not, begun or not, first or second seeds) the first that
    ends in time is taken; where none does, the first that gets on well enough.

    Args:
      jobs: all that are not done.
      left: seconds.
      first: nothing has been begun in them yet.
      whole_only: only what ends in time, as far as that can be told.
    """
    in_order = sorted(jobs, key=lambda job: job.order)
    for _, rank in itertools.groupby(in_order, key=lambda job: job.order[:3]):
        equal = list(rank)
        for job in equal:
            if job.fits(left):
                return job
        for job in equal:
            if (not whole_only or job.whole is None) and job.is_worth(left, first):
                return job
    return None
