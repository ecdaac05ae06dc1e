"""Several processes as one training: how they find each other, what they agree on, when they stop.

A training is one process, or the same program once on each host of a cluster (or once for each of
its GPUs): all of them keep the whole state and train on their part of every batch, and process 0
alone writes. With one process everything here does nothing.
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

_HEARTBEAT = 30  # seconds without one, and the others know that a process has died


def join(environment: Mapping[str, str] = os.environ, always: bool = False) -> None:
    """Makes this process one of a training's, where there is more than one; before JAX is used.

    They are known from Slurm (inside `srun`, more than one task), from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or on a TPU slice from TPU_WORKER_HOSTNAMES.

    Args:
      environment: variables.
      always: on whatever else JAX knows itself, such as a slice of TPU VMs.

    Raises:
      UserError: the variables do not say who this process is.
    """
    # A process that dies without a word must not be waited for until the job's time limit.
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
    """Places, among the GPUs that this task sees, of those that it computes on.

    Left to itself JAX takes one for each task of a node, whatever their number.
    """
    seen = len([name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
    if not seen:
        return None
    # Such as 2(x3),1: two tasks on each of three nodes, and one on the fourth.
    tasks = int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    if "SLURM_GPUS_PER_TASK" in environment or tasks > seen:
        return list(range(seen))
    return list(range(seen))[int(environment.get("SLURM_LOCALID", "0")) :: tasks]


class Shared(UserError):
    """An error that all processes of a training know of, and end with."""


def count() -> int:
    """The number of processes of this training."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def together(call: Callable[[], Value]) -> Value:
    """Run `call` on every process and return its result once all have; an error of one ends all.

    Otherwise the others would wait for that one.
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
            raise Shared(line(error) if error else other) from error
    if error:
        raise error
    return result  # type: ignore[return-value]


def leave(error: Exception) -> NoReturn:
    """Raises an error; one of this process alone, of several, is said, and ends it with status 2.

    At once, for at the usual end it would wait for the others, which are in the midst of a step.
    """
    if count() == 1 or isinstance(error, Shared):
        raise error
    print(f"segjax: {line(error)}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(2)


def on_first(call: Callable[[], int]) -> int:
    """Run `call` on process 0 and broadcast its integer result; a UserError reaches all."""
    value = together(lambda: call() if is_first() else 0)
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if count() > 1 else value


def gather(counts: np.ndarray) -> np.ndarray:
    """The counts of all processes, of one shape and below 2^31: (processes, ...) of int64."""
    if count() == 1:
        return counts[None].astype(np.int64)
    return multihost_utils.process_allgather(counts.astype(np.int32)).astype(np.int64)


class Stop:
    """Asks whether to stop, after each step: SIGTERM, or SIGINT where there is one process.

    Several processes must look equally often: all of them then hear of a signal, that any one got,
    at the same look.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._looks = 0
        self._former: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Stop":
        # JAX has its own handler where there are several processes.
        if count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self._number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one kills

    def asked(self) -> int | None:
        """The number of the signal that came, if one did."""
        self._looks += 1
        if count() > 1 and multihost_utils.reached_preemption_sync_point(self._looks):
            self._number = signal.SIGTERM
        return self._number
