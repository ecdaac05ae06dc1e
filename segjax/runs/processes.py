"""Multi-process training: join processes, exchange values and errors, and stop together.

A training is one process, or one process per host of a cluster (or per GPU). Each process keeps the
whole state and trains on its part of every batch; only process 0 writes. With a single process the
functions here do no communication.
"""

import hashlib
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.errors import UserError, line
from segjax.system import waiting

Value = TypeVar("Value")

_HEARTBEAT = 30  # seconds without one after which a process counts as dead
_JOIN_SECONDS = 300  # until a process whose others do not come gives up


def join(environment: Mapping[str, str] = os.environ, always: bool = False) -> None:
    """Join the other processes of this training, if any; call it before any use of JAX.

    Find them from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, from Slurm (inside
    a step of more than one task), or on a TPU slice from TPU_WORKER_HOSTNAMES. While they do not
    come, say so; after five minutes exit with status 75.

    Args:
      environment: environment variables.
      always: join even if none is found, on any cluster that JAX itself detects.

    Raises:
      UserError: a variable is missing or invalid, or JAX cannot find or reach the others.
    """
    if "JAX_NUM_PROCESSES" in environment:
        processes = _number(environment, "JAX_NUM_PROCESSES", math.inf)
        if processes > 1:
            address = _variable(environment, "JAX_COORDINATOR_ADDRESS")
            process = _number(environment, "JAX_PROCESS_ID", processes)
            _initialize(address, processes, process, cluster_detection_method="deactivate")
    elif "SLURM_STEP_NODELIST" in environment:
        # SLURM_NTASKS would be the size of the whole allocation in an interactive step.
        tasks = int(environment["SLURM_STEP_NUM_TASKS"])
        if tasks > 1:
            task = int(environment["SLURM_PROCID"])
            gpus = _slurm_gpus(environment)
            _initialize(_slurm_address(environment), tasks, task, local_device_ids=gpus)
    elif always or "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        _initialize()


def _initialize(address=None, processes=None, process=None, **options):
    """Call `jax.distributed.initialize`; None: as JAX itself detects."""
    others = "the other processes of this training"
    if address:
        _check_port(address, process)
        others = f"the other {processes - 1} of {processes} processes at {address}"
        others += f" (this is process {process})"

    def give_up() -> None:
        print(  # noqa: T201
            f"segjax: waited {_JOIN_SECONDS} s for {others}, expected all to start and to reach "
            "process 0",
            file=sys.stderr,
            flush=True,
        )
        # Not 2, with which Kubernetes would fail the Job: the others may only be late.
        os._exit(os.EX_TEMPFAIL)

    timeout = threading.Timer(_JOIN_SECONDS, give_up)
    timeout.daemon = True
    timeout.start()
    # Python's own handler would run only after the wait.
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with waiting.reported(f"waiting for {others}"):
            jax.distributed.initialize(
                address,
                processes,
                process,
                # Later than ours, because JAX aborts with a stack trace.
                initialization_timeout=2 * _JOIN_SECONDS,
                # Otherwise the others would wait for a dead process until the job's time limit.
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=2 * _HEARTBEAT,
                **options,
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"cannot join {others}: {str(error).splitlines()[0]}") from error
    finally:
        timeout.cancel()
        signal.signal(signal.SIGINT, former)
    with waiting.reported(f"waiting for the devices of {others}"):
        jax.process_count()  # which opens the devices, of all processes at once


def _check_port(address, process):
    """Raise if process 0 cannot listen at an address.

    JAX would crash, or share the port with the process 0 of another training.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"the address of process 0 is {address!r}, expected HOST:PORT")
    if process == 0:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("", int(port)))
            except (OSError, OverflowError) as error:
                raise UserError(f"process 0 cannot listen at {address}: {error}") from error


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


def _slurm_address(environment):
    """Return the address of process 0: on the first node of the step, at a port of this step."""
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return environment["JAX_COORDINATOR_ADDRESS"]
    # For example gpu[03-05,07],login1: each list in brackets becomes its first number.
    nodes = re.sub(r"\[([^],-]+)[^]]*]", r"\1", environment["SLURM_STEP_NODELIST"])
    # JAX would give all steps of a job the same port.
    step = int(environment["SLURM_JOB_ID"]) + 257 * int(environment["SLURM_STEP_ID"])
    port = environment.get("JAX_COORDINATOR_PORT") or 61440 + step % 4096
    return f"{nodes.split(',')[0]}:{port}"


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
    return list(range(seen))[int(environment["SLURM_LOCALID"]) :: tasks]


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
        failed = np.flatnonzero(_exchange(multihost_utils.process_allgather, error is not None))
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
    if count() == 1:
        return value
    return int(_exchange(multihost_utils.broadcast_one_to_all, np.int32(value)))


def require_same(name: str, value: str) -> None:
    """Raise on every process if a value differs between them, such as the config.

    Raises:
      SharedError: names the first process that differs from process 0.
    """
    found = gather(np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8))
    others = np.flatnonzero((found != found[0]).any(axis=1))
    if others.size:
        raise SharedError(
            f"process {others[0]} of {count()} has another {name} than process 0, expected the "
            "same command for all"
        )


def gather(counts: np.ndarray) -> np.ndarray:
    """Gather the counts of all processes, each below 2^31: (...) to int64 (processes, ...)."""
    if count() == 1:
        return counts[None].astype(np.int64)
    return _exchange(multihost_utils.process_allgather, counts.astype(np.int32)).astype(np.int64)


def _exchange(collective, value):
    """Return the result of a collective, for which every process waits until all are there."""
    this = f"this is process {jax.process_index()} of {count()}"
    with waiting.reported(f"waiting for the other processes of this training ({this})"):
        return collective(np.asarray(value))


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
        # With several processes JAX has its own handler; only the main thread may have any.
        if count() == 1 and threading.current_thread() is threading.main_thread():
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
