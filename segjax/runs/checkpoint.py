"""Checkpoints of a run: the latest, the best on validation, and the final model.

Orbax writes each in the background and renames it when it is complete, so a process killed at any
time leaves only complete checkpoints. Before that, each is read back, and the checksums of its
arrays are written into it; the former one is deleted afterwards. Each state is saved with a small
dict of facts, such as the steps done and the seconds spent.

With several processes each holds the whole state and makes the same calls: process 0 writes, all
read.
"""

import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segjax.errors import UserError, one_line
from segjax.runs import processes, weights
from segjax.system import waiting
from segjax.system.files import take_folders_literally, write_whole

_log = logging.getLogger(__name__)

take_folders_literally()

KINDS = {"latest": 2, "best": 1, "final": 1}  # number kept of each kind

# In the folder of a checkpoint: {path of an array, or "facts": CRC-32 of its bytes}.
_CHECKSUMS = "facts/checksums.json"


class Checkpoints:
    """Save and restore checkpoints in `workdir/checkpoints`; the context waits for writes."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """Open the folder; read_only: change nothing, since a training may be writing to it.

        Raises:
          UserError: the path has a backslash, which TensorStore takes for a slash.
        """
        self._root = workdir.absolute() / "checkpoints"
        if "\\" in str(self._root):
            raise UserError(f"{self._root} has a backslash in its path, expected none: rename it")
        self._read_only = read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._pending: dict[str, tuple[int, Any]] = {}  # step and shapes of the save in progress
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_from_orbax)
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _report_unless_orbax

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # close each even if another fails
            for kind in self._managers:
                stack.callback(self._close, kind)

    def _close(self, kind):
        with self._writing(kind):
            self._managers[kind].close()

    @contextlib.contextmanager
    def _writing(self, kind: str) -> Iterator[None]:
        """Raise errors of a full or read-only disk, also those of background writes, in one line.

        An OSError carries the error number; TensorStore has it in its message only.

        Raises:
          UserError: names the folder and the cause.
        """
        try:
            with waiting.reported(f"waiting for a checkpoint in {self._root / kind} to be written"):
                yield
        except UserError:
            raise
        except Exception as error:
            found = re.search(r"os_error_code='(\d+)'", str(error))
            number = error.errno if isinstance(error, OSError) else found and int(found[1])
            if not number:
                raise
            raise UserError(
                f"checkpoint in {self._root / kind} cannot be written: {os.strerror(number)}"
            ) from error

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in self._managers:
            if self._read_only:
                options = ocp.CheckpointManagerOptions(create=False)
            else:
                # Opening deletes what a killed process left incomplete.
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=KINDS[kind],
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=functools.partial(self._seal, kind)
                    ),
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                )
            folder = self._root / kind
            try:
                with self._writing(kind):
                    self._managers[kind] = ocp.CheckpointManager(folder, options=options)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
                # Orbax reads when each checkpoint was made.
                raise UserError(
                    f"{folder} cannot be opened, expected to delete the checkpoint in it whose "
                    f"_CHECKPOINT_METADATA is damaged: {_shortened(error)}"
                ) from error
        return self._managers[kind]

    def save(self, kind: str, step: int, state: Any, facts: dict[str, Any]) -> bool:
        """Start to write a checkpoint; the arrays may be donated as soon as this returns.

        A resumed run repeats steps: an existing checkpoint of this step is kept.

        Returns:
          False if nothing is written because a checkpoint of a later step exists.

        Raises:
          UserError: this or an earlier checkpoint cannot be written, as on a full disk.
        """
        manager = self._manager(kind)
        if step in manager.all_steps():
            return True
        if jax.process_count() > 1:
            state = jax.device_get(state)  # Orbax rejects arrays local to one process
        with self._writing(kind):
            manager.wait_until_finished()
        shapes = jax.tree.map(lambda x: np.empty(np.shape(x), x.dtype), state)
        self._pending[kind] = step, shapes
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        with self._writing(kind):
            return manager.save(step, args=args)

    def _seal(self, kind):
        """Read a new checkpoint back and write its checksums, before Orbax gives it its name.

        Orbax calls this in the background; after an error it keeps the former checkpoint.

        Raises:
          UserError: the new checkpoint is not whole.
        """
        step, shapes = self._pending[kind]
        (path,) = (self._root / kind).glob(f"{step}.orbax-checkpoint-tmp*")
        try:
            arguments = ocp.args.StandardRestore(shapes)
            state = ocp.StandardCheckpointHandler().restore(path / "state", args=arguments)
            checksums = _checksums("state", path, state, shapes) | _checksums("facts", path)
        except Exception as error:
            raise UserError(
                f"checkpoint {self._root / kind / str(step)} was not written whole, and those "
                f"before it are kept: {_shortened(error)}"
            ) from error
        write_whole(path / _CHECKSUMS, json.dumps(checksums) + "\n")

    def step(self, kind: str) -> int | None:
        """Return the step of the newest checkpoint of a kind, or None."""
        if not (self._root / kind).is_dir():
            return None
        return self._manager(kind).latest_step()

    def path(self, kind: str, before: int) -> Path | None:
        """Return the path of the newest checkpoint of a kind below step `before`, or None."""
        self.wait()
        steps = [step for step in self._steps(kind) if step < before]
        return self._root / kind / str(steps[0]) if steps else None

    def facts(self, kind: str) -> dict[str, Any]:
        """Read the facts saved with the newest checkpoint of a kind.

        Raises:
          UserError: the checkpoint is damaged.
        """
        self.wait()
        return self._facts(kind, self.step(kind))

    def restore(self, kind: str, like: Any) -> Any:
        """Restore the newest checkpoint of a kind, with structure, shapes and dtypes of `like`.

        Raises:
          UserError: the checkpoint does not match `like`, or is damaged.
        """
        self.wait()
        return self._state(kind, self.step(kind), like)

    def resume(self, like: Any, config: str) -> tuple[Any, dict[str, Any]] | None:
        """Return a state to go on from and its facts, or None to start from scratch.

        That is the newest intact `latest`; if `best` is damaged, the newest before its step, since
        a run resumed there makes it again. If there is none, any intact checkpoint serves: a later
        `latest`, whose state then stands in for `best`, or an intact `best`. Delete damaged
        checkpoints, with a warning that names each; those of later steps; those that a killed
        process was about to delete; and any `final`.

        Args:
          like: the state, as for `restore`.
          config: expected value of "config" in the facts, if they have one.

        Raises:
          UserError: no checkpoint is intact, or one belongs to another config.
        """
        faults: dict[tuple[str, int], str] = {}

        def newest(kind: str, steps: list[int]) -> tuple[Any, Any]:
            for step in steps:
                found, fault = self._read(kind, step, like, config)
                if found:
                    return step, found
                faults[kind, step] = fault
            return None, None

        best, of_best = newest("best", self._steps("best"))
        lost = max((step for _, step in faults), default=math.inf)
        steps = self._steps("latest")
        # Those before the lost best come first.
        start, found = newest("latest", sorted(steps, key=lambda step: step >= lost))
        if steps and not found and not of_best:
            raise UserError(
                f"{faults['latest', steps[0]]}; none is intact, delete {self._root} to start over"
            )
        if found and best is None and lost == math.inf and found[1]["best_step"]:
            lost = found[1]["best_step"]
            faults["best", lost] = f"checkpoint {self._root / 'best' / str(lost)} is missing"
        from_best, no_best = steps and not found, found and best is None and start >= lost
        if from_best:
            found = of_best

        where = f"resuming from step {found[1]['steps']}" if found else "starting over"
        where += ", which stands in for the best" if no_best else ""
        for line in faults.values() if processes.is_first() else ():
            _log.warning("%s; %s", line, where)

        def is_spent(step):
            superseded = start is None or step > start or step not in steps[: KINDS["latest"]]
            return step != start and (superseded or ("latest", step) in faults)

        spent = [("latest", step) for step in steps if is_spent(step)]
        # A run that starts over must not compare its scores with those of the former start.
        spent += [("best", step) for step in self._steps("best") if step != best or not found]
        spent += [("final", step) for step in self._steps("final")]
        # In this order a kill between two deletions does not change what the next start does.
        for kind, step in spent:
            with self._writing(kind):
                self._manager(kind).delete(step)
        if from_best:
            self.save("latest", best, *found)
        if no_best:
            state, facts = found
            self.save("best", start, state, facts | {"best_step": start, "best_value": -math.inf})
        return found

    def _steps(self, kind):
        """Return the steps of all checkpoints of a kind, newest first."""
        return [] if self.step(kind) is None else sorted(self._manager(kind).all_steps())[::-1]

    def _read(self, kind, step, like, config):
        """Return ((state, facts), "") or (None, fault), the same choice in all processes.

        Raises:
          UserError: the checkpoint is intact, but belongs to another config.
        """
        found, fault, other = None, "", False
        try:
            facts = self._facts(kind, step)
            other = facts.get("config", config) != config
            found = None if other else (self._state(kind, step, like), facts)
        except UserError as error:
            fault = str(error)
        if other:
            path = self._root / kind / str(step)
            raise UserError(f"checkpoint {path} belongs to another config than this run")
        if not processes.gather(np.array(bool(found))).all():
            found, fault = None, fault or f"another process cannot read checkpoint {kind} {step}"
        return found, fault

    def _facts(self, kind, step):
        return self._item(kind, step, "facts", ocp.args.JsonRestore())

    def _state(self, kind, step, like):
        shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        state = self._item(kind, step, "state", ocp.args.StandardRestore(shapes))
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), state, like)

    def _item(self, kind, step, item, args):
        path = self._root / kind / str(step)
        try:
            manager = self._manager(kind)
            restored = manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
            file = path / _CHECKSUMS
            saved = json.loads(file.read_text()) if file.exists() else {}  # an older checkpoint
            for name, checksum in _checksums(item, path, restored, args.item).items():
                if saved.get(name, checksum) != checksum:
                    raise ValueError(f"{name} has changed since it was saved")
        except Exception as error:  # TensorStore raises no narrower class for a truncated array
            raise UserError(
                f"checkpoint {path} is damaged, or not of this model: {_shortened(error)}"
            ) from error
        return restored

    def wait(self) -> None:
        """Wait until every saved checkpoint is on disk.

        Raises:
          UserError: one cannot be written.
        """
        for kind, manager in self._managers.items():
            with self._writing(kind):
                manager.wait_until_finished()


def _checksums(item, path, restored=None, shapes=None):
    """Return {path of an array: CRC-32 of its bytes} of a restored state; of facts, of the file.

    Raises:
      ValueError: an array has another shape or type than in `shapes`.
    """
    if item == "facts":
        return {item: zlib.crc32((path / item / "metadata").read_bytes())}
    found = {}
    expected = jax.tree.leaves(shapes)
    for (name, x), y in zip(weights.flatten(restored).items(), expected, strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(f"{name} is {x.dtype}{x.shape}, expected {y.dtype}{y.shape}")
        found[name] = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return found


def _shortened(error: Exception) -> str:
    return one_line(error)[:300]


def restore_template(state: Any) -> Any:
    """Return the shapes, dtypes and placement of a state, the `like` of `Checkpoints.restore`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


# Orbax raises its failures, which are reported as one line. The filters below drop the tracebacks
# that it logs in addition, and the errors of coroutines and callbacks that it leaves unfinished.


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    said = record.pathname + record.getMessage()
    return not (record.exc_info and ("orbax" in said or "tensorstore_spec" in said))


def _report_unless_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
    where = "".join(traceback.format_tb(unraisable.exc_traceback))
    if "orbax" not in where and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
