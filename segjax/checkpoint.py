"""Checkpoints of a workdir: the latest, the best on validation, and the final model.

Orbax writes each in the background and moves it into place when it is whole, so a process killed
at any instant leaves only whole checkpoints behind. With every state goes a small dict of facts:
the value that made the best one best, the seconds spent.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from segjax.errors import UserError

KINDS = {"latest": 2, "best": 1, "final": 1}  # how many of each are kept


class Checkpoints:
    """The checkpoints below `workdir/checkpoints`; use as a context, which waits for writing."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """read_only: leave everything there alone, for a training may be writing to it."""
        self._root = workdir.absolute() / "checkpoints"
        self._read_only = read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        for manager in self._managers.values():
            manager.close()

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in self._managers:
            if self._read_only:
                options = ocp.CheckpointManagerOptions(create=False)
            else:
                # What a killed process left half-written is cleared away on opening.
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=KINDS[kind], cleanup_tmp_directories=True
                )
            self._managers[kind] = ocp.CheckpointManager(self._root / kind, options=options)
        return self._managers[kind]

    def save(self, kind: str, step: int, state: Any, facts: dict[str, Any]) -> bool:
        """Starts writing; the arrays may be given up to a next step as soon as this returns.

        A resumed run comes by its own steps again: what is there is left as it is, and so is a
        checkpoint of a later step, for which False is returned.
        """
        manager = self._manager(kind)
        if step in manager.all_steps():
            return True
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        return manager.save(step, args=args)

    def step(self, kind: str) -> int | None:
        """The step of the newest checkpoint of a kind."""
        if not (self._root / kind).is_dir():
            return None
        return self._manager(kind).latest_step()

    def path(self, kind: str, before: int | None = None) -> Path | None:
        """Where the newest checkpoint of a kind lies, or the newest of a step below `before`."""
        self.wait()
        if self.step(kind) is None:
            return None
        steps = [s for s in self._manager(kind).all_steps() if before is None or s < before]
        return self._root / kind / str(max(steps)) if steps else None

    def facts(self, kind: str) -> dict[str, Any]:
        """What was saved beside the newest checkpoint of a kind.

        Raises:
          UserError: it is damaged.
        """
        return self._restore(kind, "facts", ocp.args.JsonRestore())

    def restore(self, kind: str, like: Any) -> Any:
        """The newest checkpoint of a kind, in the structure, shapes and dtypes of `like`.

        Raises:
          UserError: it holds other parameters than `like`, or is damaged.
        """
        return self._restore(kind, "state", ocp.args.StandardRestore(like))

    def _restore(self, kind, item, args):
        path = self.path(kind)
        try:
            manager = self._manager(kind)
            return manager.restore(self.step(kind), args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # tensorstore raises just that where an array is cut short
            line = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {path} is damaged, or not of this model: {line}"
            ) from error

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        for manager in self._managers.values():
            manager.wait_until_finished()


def abstract(state: Any) -> Any:
    """Shapes, dtypes and placement of a state, to restore another like it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
