"""Multi-process training: join processes, exchange values and errors, and stop together.

A training is one process, or one process per host of a cluster (or per GPU). Each process keeps the
whole state and trains on its part of every batch; only process 0 writes. With a single process the
functions here do no communication.
"""

import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.errors import UserError, line

Value = TypeVar("Value")

_HEARTBEAT = 30  # seconds without one after which a process counts as dead


def join(environment: Mapping[str, str] = os.environ, always: bool = False) -> None:
    """Join the other processes of this training, if any; call it before any use of JAX.

    Find them from Slurm (inside `srun`, more than one task), from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or on a TPU slice from TPU_WORKER_HOSTNAMES.

    Args:
      environment: environment variables.
      always: join even if none is found, on any cluster that JAX itself detects.

    Raises:
      UserError: a variable is missing or invalid.
    """
    # Otherwise the others would wait for a dead process until the time limit of the job.
    initialize = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=2 * _HEARTBEAT,
    )
    if "JAX_NUM_PROCESSES" in environment:
        processes = _number(environment, "JAX_NUM_PROCESSES", math.inf)
        if processes > 1:
            initialize(
                _variable(environment, "JAX_COORDINATOR_ADDRESS"),
                processes,
                _number(environment, "JAX_PROCESS_ID", processes),
                cluster_detection_method="deactivate",
            )
    elif "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        initialize(local_device_ids=_slurm_gpus(environment))
    elif always or "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        initialize()


def _variable(environment, name):
    if not environment.get(name):
        raise UserError(f"JAX_NUM_PROCESSES is set, but {name} is not")
    return environment[name]


def _number(environment, name, below):
    value = _variable(environment, name)
    if not value.isdigit() or int(value) >= below:
        expected = "a number" if below == math.inf else f"0 to {below - 1}"
        raise UserError(f"{name} is {value!r}, expected {expected}")
    return int(value)


def _slurm_gpus(environment):
    """Return the indices of this task's GPUs among the visible ones; None if no variable tells.

    By default JAX takes one GPU per task, whatever their number.
    """
    seen = len([name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
    if not seen:
        return None
    # For example 2(x3),1: two tasks on each of three nodes, one on the fourth.
    tasks = int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    if "SLURM_GPUS_PER_TASK" in environment or tasks > seen:
        return list(range(seen))
    return list(range(seen))[int(environment.get("SLURM_LOCALID", "0")) :: tasks]


class SharedError(UserError):
    """An error that every process of a training raises."""


def count() -> int:
    """Return the number of processes of this training."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def run_on_all(call: Callable[[], Value]) -> Value:
    """Run `call` on every process, wait for all, and return the result of this one.

    Raises:
      SharedError: `call` raised a UserError or OSError on any of several processes; without this
        the others would wait for that one forever.
    """
    result: Value | None = None
    error: Exception | None = None
    try:
        result = call()
    except (UserError, OSError) as raised:
        error = raised
    if count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
        if failed.size:
            other = f"process {failed[0]} of {count()} cannot go on, as it says"
            raise SharedError(line(error) if error else other) from error
    if error:
        raise error
    return result  # type: ignore[return-value]


def exit_with_error(error: Exception) -> NoReturn:
    """Raise an error, or, if only this one of several processes has it, print it and exit.

    Exit at once, with status 2: a regular exit would wait for the other processes, which are in the
    middle of a step.
    """
    if count() == 1 or isinstance(error, SharedError):
        raise error
    print(f"segjax: {line(error)}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(2)


def broadcast_from_first(call: Callable[[], int]) -> int:
    """Run `call` on process 0 and broadcast its integer result; its errors are raised on all."""
    value = run_on_all(lambda: call() if is_first() else 0)
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if count() > 1 else value


def gather(counts: np.ndarray) -> np.ndarray:
    """Gather the counts of all processes, each below 2^31: (...) to int64 (processes, ...)."""
    if count() == 1:
        return counts[None].astype(np.int64)
    return multihost_utils.process_allgather(counts.astype(np.int32)).astype(np.int64)


class StopSignal:
    """Detect SIGTERM, and with a single process SIGINT, to stop a training between two steps.

    Several processes must call `received` equally often: a signal sent to one of them is then
    reported by the same call on all.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._checks = 0
        self._former: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "StopSignal":
        # With several processes JAX has its own handler.
        if count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self._number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second SIGINT kills

    def received(self) -> int | None:
        """Return the number of the signal that was received, or None."""
        self._checks += 1
        if count() > 1 and multihost_utils.reached_preemption_sync_point(self._checks):
            self._number = signal.SIGTERM
        return self._number
