"""A grid of runs, one by one on this machine.

`sweep()` of a config file yields dicts of overrides. Each is a run in a folder and a process of its
own, named by its overrides; a finished run is skipped and a half-done one goes on, so a sweep may
be killed and started again.
"""

import dataclasses
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segjax import config as configs
from segjax import experiment
from segjax.errors import UserError

# A killed sweep leaves no run behind, which its next start would find in use: on Linux the run asks
# for the SIGKILL that it may get at any instant (PR_SET_PDEATHSIG is 1).
_CHILD = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from segjax.cli import main
sys.exit(main())
"""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # made of the overrides that tell it from the others
    overrides: dict[str, Any]
    config: ConfigDict


def points(spec: str, overrides: Mapping[str, Any]) -> list[Point]:
    """The runs of a config's grid, each with `overrides` besides its own.

    Raises:
      UserError: there is no grid, a point has a field, value or name that no run takes, or two
        have one name.
    """
    module, _ = configs.load_module(spec)
    if not hasattr(module, "sweep"):
        raise UserError(f"config file {spec} has no sweep()")
    found: dict[str, Point] = {}
    try:
        grid = [dict(own) for own in module.sweep()]
    except Exception as error:
        raise UserError(f"sweep() of {spec}: {type(error).__name__}: {error}") from error
    for own in grid:
        name = run_name(own)
        clash = sorted(set(own) & set(overrides))
        if clash:
            raise UserError(f"--config.{clash[0]} is given, but the grid of {spec} varies it")
        if name in found:
            raise UserError(f"two runs of the grid of {spec} are {name}")
        both = {**overrides, **own}
        config = configs.load(spec, both)
        experiment.check_names(config)
        found[name] = Point(name, both, config)
    if not found:
        raise UserError(f"the grid of {spec} is empty")
    return list(found.values())


def run_name(overrides: Mapping[str, Any]) -> str:
    """Overrides as a folder's name: `loss.class_weights=none,seed=0`."""

    def shown(value):
        return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    text = ",".join(f"{field}={shown(value)}" for field, value in overrides.items())
    return re.sub(r"[^\w.=,+-]+", "-", text) or "default"


def command(spec: str, point: Point, workdir: Path) -> list[str]:
    """The command that trains a run of the grid."""
    return [
        *("segjax", "train", "--config", spec),
        *("--workdir", str(workdir / point.name), "--name", point.name),
        *(f"--config.{field}={value}" for field, value in point.overrides.items()),
    ]


def run(spec: str, grid: list[Point], workdir: Path) -> int:
    """Trains what is not finished and returns the exit status: 1 where a run failed.

    A run that fails leaves what it said in `error.txt` of its folder, and the next one starts. On
    SIGTERM or SIGINT the current run saves, and the sweep ends with 143 or 130.
    """
    for point in grid:
        experiment.refuse_other_config(point.config, workdir / point.name)
    failed: list[str] = []
    for number, point in enumerate(grid, start=1):
        folder = workdir / point.name
        print(f"[{number}/{len(grid)}] {point.name}", flush=True)
        if (folder / "result.json").exists():
            print("finished already", flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        arguments = command(spec, point, workdir)
        error = folder / "error.txt"
        status, stopped = _run(arguments, error)
        if stopped:
            print("stopped; the same command goes on", flush=True)
            return 128 + stopped
        said = error.read_text(errors="replace").strip()
        if status:
            failed.append(point.name)
            last = said.splitlines()[-1] if said else f"exit status {status}"
            print(f"failed: {last}", flush=True)
        else:
            if said:
                print(said, file=sys.stderr, flush=True)
            error.unlink()
    print(f"{len(grid) - len(failed)} of {len(grid)} runs are finished in {workdir}", flush=True)
    for name in failed:
        print(f"failed: {name}, see {workdir / name / 'error.txt'}", flush=True)
    return 1 if failed else 0


def _run(arguments, error):
    """Runs a command with its standard error in a file; its status, and the signal that came."""
    received = []
    with error.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *arguments[1:]],
            stderr=file,
            start_new_session=True,  # what the terminal sends comes through `forward` alone
        )

        def forward(number, _):
            received.append(number)
            if process.poll() is None:
                process.send_signal(number)

        former = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = process.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
    return status, received[0] if received else None
