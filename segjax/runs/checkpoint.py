"""Checkpoints of a workdir: the latest, the best on validation, and the final model.

Orbax writes each in the background and moves it into place when it is whole, so a process killed
at any instant leaves only whole checkpoints behind. With every state goes a small dict of facts:
the value that made the best one best, the seconds spent.

Of several processes, which all have the whole state, all call all of this: process 0 writes what
each of them reads.
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

from segjax.errors import UserError
from segjax.runs import processes

_log = logging.getLogger(__name__)

KINDS = {"latest": 2, "best": 1, "final": 1}  # how many of each are kept


class Checkpoints:
    """The checkpoints below `workdir/checkpoints`; use as a context, which waits for writing."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """read_only: leave everything there alone, for a training may be writing to it."""
        self._root = workdir.absolute() / "checkpoints"
        self._read_only = read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_news)
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _say_news

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # each, though another fails
            for kind in self._managers:
                stack.callback(self._close, kind)

    def _close(self, kind):
        with self._writing(kind):
            self._managers[kind].close()

    @contextlib.contextmanager
    def _writing(self, kind: str) -> Iterator[None]:
        """Raise errors of a full or read-only disk in one line, also those that arrive late.

        Python says the number of such an error, TensorStore has it in a text.
        """
        try:
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
                # What a killed process left half-written is cleared away on opening.
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
        """Starts writing; the arrays may be given up to a next step as soon as this returns.

        A resumed run comes by its own steps again: what is there is left as it is, and so is a
        checkpoint of a later step, for which False is returned.

        Raises:
          UserError: this one, or one before, cannot be written, such as on a full disk.
        """
        manager = self._manager(kind)
        if step in manager.all_steps():
            return True
        if jax.process_count() > 1:
            state = jax.device_get(state)  # Orbax takes no arrays that lie on one process's devices
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        with self._writing(kind):
            return manager.save(step, args=args)

    def step(self, kind: str) -> int | None:
        """The step of the newest checkpoint of a kind."""
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
        """Read the facts saved beside the newest checkpoint of a kind.

        Raises:
          UserError: it is damaged.
        """
        self.wait()
        return self._facts(kind, self.step(kind))

    def restore(self, kind: str, like: Any) -> Any:
        """The newest checkpoint of a kind, in the structure, shapes and dtypes of `like`.

        Raises:
          UserError: it holds other parameters than `like`, or is damaged.
        """
        self.wait()
        return self._state(kind, self.step(kind), like)

    def resume(self, like: Any, config: str) -> tuple[Any, dict[str, Any]] | None:
        """The state and the facts that a run goes on from; none: it begins.

        They are of the newest `latest` that is whole. One that a crash of the file system has cut
        off is named in a warning and deleted: the run makes it again. So is a damaged best, and
        then every `latest` since, which would never come by its step; and any `final`.

        Args:
          like: the state, as for `restore`.
          config: what "config" of the facts must be, where it is there.

        Raises:
          UserError: none is whole, or one is of another config.
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
                f"{faults['latest', steps[0]]}; none is whole, delete {self._root} to begin again"
            )
        if lost:
            faults["best", best] = lost
        where = f"step {found[1]['steps']}" if found else "the beginning"
        for line in dict.fromkeys(faults.values()) if processes.is_first() else ():
            _log.warning("%s; resuming from %s", line, where)
        # In this order: a kill between two of them changes nothing for the next start.
        for kind, step in [*faults, *(("final", step) for step in self._steps("final"))]:
            with self._writing(kind):
                self._manager(kind).delete(step)
        return found

    def _steps(self, kind):
        """The steps of all checkpoints of a kind, the newest first."""
        return [] if self.step(kind) is None else sorted(self._manager(kind).all_steps())[::-1]

    def _read(self, kind, step, like, config):
        """State and facts, and none; or none, and what is wrong: one or the other in all processes.

        Raises:
          UserError: it is whole, but of another config.
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
            raise UserError(f"checkpoint {path} is of another config than this run")
        if not processes.gather(np.array(bool(found))).all():
            found, fault = None, fault or f"checkpoint {kind} {step} is damaged for a process"
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
        except Exception as error:  # tensorstore raises just that where an array is cut short
            line = " ".join(str(error).split())[:300]
            path = self._root / kind / str(step)
            raise UserError(
                f"checkpoint {path} is damaged, or not of this model: {line}"
            ) from error

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          UserError: it cannot be written.
        """
        for kind, manager in self._managers.items():
            with self._writing(kind):
                manager.wait_until_finished()


def abstract(state: Any) -> Any:
    """Shapes, dtypes and placement of a state, to restore another like it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


# What fails in Orbax is raised, and said as one line by whoever catches it. The tracebacks that it
# logs besides, and the coroutines and callbacks that it leaves behind, are no news.


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname + record.getMessage())


def _say_news(unraisable: "sys.UnraisableHookArgs") -> None:
    where = "".join(traceback.format_tb(unraisable.exc_traceback))
    if "orbax" not in where and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
