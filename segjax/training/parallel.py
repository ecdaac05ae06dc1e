"""Data parallelism: the only place that knows whether a step is jitted or pmapped.

A step is `step(state, shared, share) -> (state, outputs)`, written once for an axis name (or none).
On one device it is jitted; on several it is pmapped, the state and what is shared un-replicated (no
leading axis of devices anywhere outside) and the batch split. What comes out is the same on all
devices, for the step averages or sums over the axis, so it is taken once.

The devices are those of all processes. Each process has its own part of a batch and calls the step
as often as the others; arrays that are not split lie on its own devices, whole.
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
    """The first `count` devices, as many of each process; for 0 as many as divide the batches.

    Args:
      count: how many in all, or 0.
      shares: by the name of a config field, what is divided among the devices.

    Raises:
      UserError: there are fewer, or they do not divide a batch.
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
    """The axis for `pmean` and batch normalization; none on one device."""
    return AXIS if len(devices) > 1 else None


def parallelize(step: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Compiles `step(state, shared, share)` for the devices, the memory of `state` given up."""
    mapped, places = _mapped(step, devices)
    if not places:
        return mapped

    def call(state, shared, share):
        outputs = mapped(state, shared, share, *places)
        # Virtual CPU devices share one pool of threads: calls that queue up in it can keep the
        # threads which a collective of an earlier call waits for.
        return jax.block_until_ready(outputs) if devices[0].platform == "cpu" else outputs

    return call


def lower(
    step: Callable[..., Any], devices: Sequence[jax.Device], state: Any, shared: Any, share: Any
) -> jax.stages.Lowered:
    """What `parallelize` has compiled when it is called so, to be looked into."""
    mapped, places = _mapped(step, devices)
    return mapped.lower(state, shared, share, *places)


def _mapped(step, devices):
    """The step for the devices, and what it takes besides its own arguments."""
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=0), ()
    mapped = jax.pmap(
        lambda state, shared, share, _: step(state, shared, share),
        AXIS,
        in_axes=(None, None, 0, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    # The share may be empty, and pmap wants something that is mapped.
    return mapped, (np.arange(len(_local(devices))),)


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts arrays on every device of this process, once, so that no later call moves them."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    mesh = Mesh(np.asarray(_local(devices)), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def own(size: int, devices: Sequence[jax.Device]) -> slice:
    """The places of a batch of `size` that the devices of this process have."""
    part = size * len(_local(devices)) // len(devices)
    first = part * jax.process_index() if len(devices) > 1 else 0
    return slice(first, first + part)


def split(tree: Any, devices: Sequence[jax.Device], axis: int = 0) -> Any:
    """Splits this process's part of a batch, host arrays, into the shares of its devices.

    They are in a new leading axis; on one device in all the arrays are left as they are.
    """
    if len(devices) == 1:
        return tree
    count = len(_local(devices))

    def shares(x):
        sizes = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
        return np.moveaxis(x.reshape(sizes), axis, 0)

    return jax.tree.map(shares, tree)


def _local(devices):
    return [device for device in devices if device.process_index == jax.process_index()]


def pmean(tree: Any, name: str | None) -> Any:
    """The mean over the axis, or the tree itself without one."""
    return jax.lax.pmean(tree, name) if name else tree


def psum(tree: Any, name: str | None) -> Any:
    """The sum over the axis, or the tree itself without one."""
    return jax.lax.psum(tree, name) if name else tree


def gather(tree: Any, name: str | None) -> Any:
    """The shares of all devices, one after the other, or the tree itself without an axis."""
    return jax.lax.all_gather(tree, name, tiled=True) if name else tree


def index(name: str | None) -> jax.Array | int:
    """The place of this device on the axis; 0 without one."""
    return jax.lax.axis_index(name) if name else 0


def size(name: str | None) -> int:
    """The number of devices on the axis; 1 without one."""
    return jax.lax.axis_size(name) if name else 1
