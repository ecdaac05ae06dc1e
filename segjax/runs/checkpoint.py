"""Checkpoints of a run: the latest, the best on validation, and the final model.

Orbax writes each in the background and renames it when it is complete, so a process killed at any
time leaves only complete checkpoints. Each state is saved with a small dict of facts, such as the
steps done and the seconds spent.

With several processes each holds the whole state and makes the same calls: process 0 writes, all
read.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segjax import waiting
from segjax.errors import UserError
from segjax.runs import processes

_log = logging.getLogger(__name__)

KINDS = {"latest": 2, "best": 1, "final": 1}  # number kept of each kind


class Checkpoints:
    """Save and restore checkpoints in `workdir/checkpoints`; the context waits for writes."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """Open the folder; read_only: change nothing, since a training may be writing to it."""
        self._root = workdir.absolute() / "checkpoints"
        self._read_only = read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}
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
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                )
            with self._writing(kind):
                self._managers[kind] = ocp.CheckpointManager(self._root / kind, options=options)
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
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        with self._writing(kind):
            return manager.save(step, args=args)

    def step(self, kind: str) -> int | None:
        """Return the step of the newest checkpoint of a kind, or None."""
        if not (self._root / kind).is_dir():
            return None
        return self._manager(kind).latest_step()

    def path(self, kind: str, before: int | None = None) -> Path | None:
        """Return the path of the newest checkpoint of a kind, or the newest below step `before`."""
        self.wait()
        if self.step(kind) is None:
            return None
        steps = [s for s in self._manager(kind).all_steps() if before is None or s < before]
        return self._root / kind / str(max(steps)) if steps else None

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
        """Return the state and facts of the newest intact `latest`, or None to start from scratch.

        Delete damaged checkpoints, with a warning that names each: the run makes them again. If
        `best` is damaged, also delete every `latest` from its step on, since a run resumed there
        would not repeat that step. Delete any `final`.

        Args:
          like: the state, as for `restore`.
          config: expected value of "config" in the facts, if they have one.

        Raises:
          UserError: no `latest` is intact, or one belongs to another config.
        """
        found, faults = None, {}
        best, steps = self.step("best"), self._steps("latest")
        lost = None if best is None else self._read("best", best, like, config)[1]
        for step in steps:
            fault = lost if lost and best <= step else None
            if not fault:
                found, fault = self._read("latest", step, like, config)
            if not fault:
                break
            faults["latest", step] = fault
        if steps and not found:
            raise UserError(
                f"{faults['latest', steps[0]]}; none is intact, delete {self._root} to start over"
            )
        if lost:
            faults["best", best] = lost
        where = f"step {found[1]['steps']}" if found else "the beginning"
        for line in dict.fromkeys(faults.values()) if processes.is_first() else ():
            _log.warning("%s; resuming from %s", line, where)
        # In this order a kill between two deletions does not change what the next start does.
        for kind, step in [*faults, *(("final", step) for step in self._steps("final"))]:
            with self._writing(kind):
                self._manager(kind).delete(step)
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
        if jax.process_count() == 1:
            return self._item(kind, step, "state", ocp.args.StandardRestore(like))
        on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        state = self._item(kind, step, "state", ocp.args.StandardRestore(on_host))
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), state, like)

    def _item(self, kind, step, item, args):
        try:
            manager = self._manager(kind)
            return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # TensorStore raises no narrower class for a truncated array
            line = " ".join(str(error).split())[:300]
            path = self._root / kind / str(step)
            raise UserError(
                f"checkpoint {path} is damaged, or not of this model: {line}"
            ) from error

    def wait(self) -> None:
        """Wait until every saved checkpoint is on disk.

        Raises:
          UserError: one cannot be written.
        """
        for kind, manager in self._managers.items():
            with self._writing(kind):
                manager.wait_until_finished()


def restore_template(state: Any) -> Any:
    """Return the shapes, dtypes and placement of a state, the `like` of `Checkpoints.restore`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


# Orbax raises its failures, which are reported as one line. The filters below drop the tracebacks
# that it logs in addition, and the errors of coroutines and callbacks that it leaves unfinished.


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname + record.getMessage())


def _report_unless_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
    where = "".join(traceback.format_tb(unraisable.exc_traceback))
    if "orbax" not in where and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
