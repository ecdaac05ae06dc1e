"""Follow a run from outside: Weights & Biases, TensorBoard.

All that they show is on disk as well, and none of them stops a run.
"""

import logging
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import metrics
from segjax.data.datasets import VOID
from segjax.errors import message
from segjax.runs.samples import Samples
from segjax.system import waiting
from segjax.system.files import write_whole

_log = logging.getLogger(__name__)

MAX_TAG_LENGTH = 64  # characters; W&B rejects a run with a longer tag
START_TIMEOUT = 30.0  # seconds to reach the W&B server before logging offline
FINISH_TIMEOUT = 300.0  # seconds to upload at the end; the rest is left to `wandb sync`


class Tracker(Protocol):
    """A service or a file format that shows a run; any method may raise."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers under their names: `train/loss`, `val/mean_iou`, `val/iou/Road`."""

    def examples(self, step: int, drawn: Samples, class_names: Sequence[str]) -> None:
        """Show validation images with their predictions, as `val/examples`."""

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Show a table."""

    def keep_model(self, workdir: Path) -> None:
        """Keep the tested model of a finished run, where the tracker can and is asked to."""

    def finish(self, exit_code: int) -> None:
        """End the run; 0: it is finished."""


class Trackers:
    """The trackers of a run; the first exception of one is a warning and switches it off."""

    def __init__(self) -> None:
        self._active: dict[str, Tracker] = {}

    def start(self, name: str, create: Callable[[], Tracker]) -> None:
        """Add a tracker; name: for warnings."""
        try:
            with waiting.reported(f"waiting for {name} to start the run"):
                self._active[name] = create()
        except Exception as error:
            self._warn(name, error)

    def each(self, call: Callable[[Tracker], None]) -> None:
        """Call a function with each tracker that is not switched off."""
        for name, tracker in list(self._active.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._active[name]
                self._warn(name, error)

    def finish(self, exit_code: int) -> None:
        with waiting.reported(f"waiting for {' and '.join(self._active)} to end the run"):
            self.each(lambda tracker: tracker.finish(exit_code))
        self._active.clear()

    def _warn(self, name: str, error: Exception) -> None:
        _log.warning("%s is switched off for this run: %s", name, _one_line(error))


def start(
    workdir: Path, config: ConfigDict, name: str, overrides: Mapping[str, Any], step: int
) -> Trackers:
    """Start the trackers that a config asks for, importing no others.

    Args:
      workdir: the run directory.
      config: of the run.
      name: of the run in its sweep.
      overrides: {"a.b": value} of the fields that the run sets.
      step: training steps done before this start.
    """
    found, fields = Trackers(), configs.flat(config)
    if config.wandb.mode != "disabled":
        found.start("W&B", lambda: Wandb(workdir, config.wandb, name, fields, overrides))
    if config.tensorboard:
        found.start("TensorBoard", lambda: TensorBoard(workdir / "tensorboard", step))
    return found


class Wandb:
    """A run in Weights & Biases.

    Its id is stored in `workdir/wandb_id.txt`, so that a resumed training continues it, and its
    files are in `workdir/wandb`. In mode "offline" each start has its own folder there, all with
    the same id, for `wandb sync`; mode "online" does the same if the server cannot be reached.
    """

    def __init__(
        self,
        workdir: Path,
        options: ConfigDict,
        name: str,
        config: Mapping[str, Any],
        overrides: Mapping[str, Any],
    ) -> None:
        """Start or resume the run.

        Args:
          workdir: the run directory.
          options: the config's group `wandb`.
          name: shown in W&B.
          config: {"a.b": value} of every field.
          overrides: {"a.b": value} of the fields that the run sets.
        """
        import wandb

        self._keeps_model = options.artifact

        def begin(mode: str) -> Any:
            return wandb.init(
                project=options.project,
                group=options.group or None,
                name=name,
                config=dict(config),
                tags=tags(config, overrides),
                dir=workdir,
                mode=cast(Any, mode),
                id=_wandb_id(workdir),
                resume="allow",
                settings=wandb.Settings(
                    # The terminal belongs to the progress bar, which W&B would wrap and record.
                    console="off",
                    init_timeout=START_TIMEOUT,
                    finish_timeout=FINISH_TIMEOUT,
                ),
            )

        try:
            self._run = begin(options.mode)
        except Exception as error:
            if options.mode != "online":
                raise
            wandb.teardown()  # its service still holds the id of the run
            self._run = begin("offline")
            _log.warning(
                "W&B cannot be reached; logging to %s for `wandb sync`: %s",
                workdir / "wandb",
                _one_line(error),
            )
        # The overview of runs shows the best value of each validation score, not the last.
        for score in (*metrics.SCORES, "iou/*"):
            self._run.define_metric(f"val/{score}", summary="max")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._send(step, {name: float(value) for name, value in values.items()})

    def examples(self, step: int, drawn: Samples, class_names: Sequence[str]) -> None:
        """Show images overlaid with two masks, `prediction` and `truth`, in W&B's own colors."""
        import wandb

        labels = {**dict(enumerate(class_names)), VOID: "void"}
        panel = []
        for image, prediction, truth in zip(
            drawn.images, drawn.predictions, drawn.truths, strict=True
        ):
            masks = {
                kind: {"mask_data": np.asarray(mask, np.uint8), "class_labels": labels}
                for kind, mask in (("prediction", prediction), ("truth", truth))
            }
            panel.append(wandb.Image(np.asarray(image), masks=masks))
        self._send(step, {"val/examples": panel})

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        import wandb

        self._send(step, {name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    def keep_model(self, workdir: Path) -> None:
        """With `wandb.artifact`, upload what `segjax.load` needs of the run directory."""
        import wandb

        if not self._keeps_model:
            return
        artifact = wandb.Artifact(f"model-{_wandb_id(workdir)}", type="model")
        for file in ("config.json", "result.json"):
            artifact.add_file(str(workdir / file))
        artifact.add_dir(str(workdir / "checkpoints" / "final"), name="checkpoints/final")
        self._run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        """End the run; wait for uploads for at most FINISH_TIMEOUT seconds."""
        self._run.finish(exit_code=exit_code)

    def _send(self, step: int, content: dict[str, Any]) -> None:
        # A resumed run repeats steps: W&B rejects those below its own, with a warning for each.
        if step >= self._run.step:
            self._run.log(content, step=step)


def _wandb_id(workdir: Path) -> str:
    path = workdir / "wandb_id.txt"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:16] + "\n")
    found = path.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"[\w-]{1,64}", found, re.ASCII):
        raise ValueError(f"{path} holds {found[:40]!r}, expected the id of a W&B run; delete it")
    return found


def tags(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Return the W&B tags of a run: its model, its dataset, and each of its overrides.

    Args:
      config: {"a.b": value} of every field.
      overrides: {"a.b": value} of the fields that the run sets.
    """
    assignments = [f"{field}={value}" for field, value in overrides.items()]
    found = [config["model.name"], config["data.dataset"], *assignments]
    return [tag[:MAX_TAG_LENGTH] for tag in dict.fromkeys(found)]


class TensorBoard:
    """Event files for TensorBoard, which hides what a resumed run repeats."""

    def __init__(self, folder: Path, step: int) -> None:
        """Write to a folder, after `step` steps of earlier starts."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=f".{step}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def examples(self, step: int, drawn: Samples, class_names: Sequence[str]) -> None:
        """Show the picture of `samples/`."""
        self._writer.add_image("val/examples", np.asarray(drawn.picture), step, dataformats="HWC")

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self._writer.add_text(name, text, step)

    def keep_model(self, workdir: Path) -> None:
        """Do nothing: TensorBoard keeps no models."""

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {message(error) or 'no message'}"
