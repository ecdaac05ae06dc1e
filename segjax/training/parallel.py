"""Data parallelism: the only place that knows whether a step is jitted or pmapped.

A step is `step(*whole, share) -> outputs`, written once with the name of an axis or None. On one
device it is jitted. On several it is pmapped over the shares of the batch; the other arguments have
no leading axis of devices. The outputs are the same on all devices, because the step averages, sums
or gathers over the axis, so they are returned once.

The devices are those of all processes. Each process has its own part of a batch and calls the step
as often as the others; arrays that are not split are on each of its devices, whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.errors import UserError

AXIS = "batch"


def pick_devices(count: int, shares: Mapping[str, int]) -> list[jax.Device]:
    """Return the first `count` devices, equally many of each process.

    Args:
      count: of all processes; 0 for as many as divide the batches.
      shares: {config field: number of images that are divided among the devices}.

    Raises:
      UserError: there are fewer devices, or they do not divide a batch.
    """
    processes, local = jax.process_count(), jax.local_device_count()
    if count > processes * local or count % processes:
        found = f"this host has {local}"
        if processes > 1:
            found = f"there are {processes} processes with {local} each"
        raise UserError(f"num_devices={count}, but {found}")
    if not count:
        whole = math.gcd(*shares.values())
        fitting = (n * processes for n in range(1, local + 1) if whole % (n * processes) == 0)
        count = max(fitting, default=processes)
    for name, share in shares.items():
        if share % count:
            raise UserError(f"{name} is {share}, which {count} devices do not divide")
    by_process = [[d for d in jax.devices() if d.process_index == p] for p in range(processes)]
    return [device for each in by_process for device in each[: count // processes]]


def axis_name(devices: Sequence[jax.Device]) -> str | None:
    """Return the axis for `pmean` and batch normalization; None on one device."""
    return AXIS if len(devices) > 1 else None


def parallelize(
    step: Callable[..., Any], devices: Sequence[jax.Device], *, donate: bool = False
) -> Callable[..., Any]:
    """Compile `step(*whole, share)` for the devices; only the share differs between them.

    Args:
      step: function of at least one whole argument, which every device has, and of its share.
      devices: of all processes.
      donate: reuse the memory of the first argument, which is gone after the call.
    """
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=(0,) if donate else ())
    mapped, places = _mapped(step, devices, donate)

    def call(first, *others):
        outputs = mapped(first, others[:-1], others[-1], places)
        # Virtual CPU devices share a pool of threads: queued calls can hold the threads that a
        # collective of an earlier call waits for.
        return jax.block_until_ready(outputs) if devices[0].platform == "cpu" else outputs

    return call


def lower(
    step: Callable[..., Any], devices: Sequence[jax.Device], first: Any, *others: Any
) -> jax.stages.Lowered:
    """Lower the program that `parallelize` compiles for these arguments with `donate`."""
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=0).lower(first, *others)
    mapped, places = _mapped(step, devices, donate=True)
    return mapped.lower(first, others[:-1], others[-1], places)


def _mapped(step, devices, donate):
    """Return f(first, others, share, places), pmapped, and the places."""
    mapped = jax.pmap(
        lambda first, others, share, _: step(first, *others, share),
        AXIS,
        in_axes=(None, None, 0, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )
    # The share may be empty, but pmap needs a mapped argument.
    return mapped, np.arange(len(local(devices)))


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Put arrays on every device of this process, so that no later call moves them."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    mesh = Mesh(np.asarray(local(devices)), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def own(size: int, devices: Sequence[jax.Device]) -> slice:
    """Return this process's part of a batch of `size`."""
    part = size * len(local(devices)) // len(devices)
    first = part * jax.process_index() if len(devices) > 1 else 0
    return slice(first, first + part)


def split(tree: Any, devices: Sequence[jax.Device], axis: int = 0) -> Any:
    """Split this process's part of a batch, host arrays, into the shares of its devices.

    The shares are a new leading axis; with one device the arrays are returned as they are.
    """
    if len(devices) == 1:
        return tree
    count = len(local(devices))

    def shares(x):
        sizes = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
        return np.moveaxis(x.reshape(sizes), axis, 0)

    return jax.tree.map(shares, tree)


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Return the devices of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def pmean(tree: Any, name: str | None) -> Any:
    """Return the mean over the axis, or the tree itself without one."""
    return jax.lax.pmean(tree, name) if name else tree


def psum(tree: Any, name: str | None) -> Any:
    """Return the sum over the axis, or the tree itself without one."""
    return jax.lax.psum(tree, name) if name else tree


def gather(tree: Any, name: str | None) -> Any:
    """Concatenate the shares of all devices, or return the tree itself without an axis."""
    return jax.lax.all_gather(tree, name, tiled=True) if name else tree


def index(name: str | None) -> jax.Array | int:
    """Return the index of this device on the axis; 0 without one."""
    return jax.lax.axis_index(name) if name else 0


def size(name: str | None) -> int:
    """Return the number of devices on the axis; 1 without one."""
    return jax.lax.axis_size(name) if name else 1
