"""The training loop: restore, step, validate, save, and in the end test."""

import contextlib
import fcntl
import functools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import metrics, results
from segjax.data import loader
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.inference.scoring import build_evaluator, recompute_batch_norm, result_row
from segjax.models import pretrained
from segjax.progress import Bar
from segjax.results.counts import write_counts
from segjax.runs import experiment, processes, tracking
from segjax.runs.checkpoint import Checkpoints, abstract
from segjax.runs.experiment import Description, Experiment
from segjax.runs.timing import Phases
from segjax.training import optimizers, parallel, steps

SAMPLES = 4  # validation images that are shown with their predictions


class Stopped(Exception):
    """A signal asked to stop, and all is saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, all is saved")
        self.status = 128 + number


class Diverged(Exception):
    """The loss is no longer a number."""


def train(config: ConfigDict, workdir: Path, description: Description) -> dict[str, Any]:
    """Trains until `config.steps`, from where a former start left off, and tests the best model.

    Everything is in `workdir` afterwards: config.json, metrics.jsonl, samples/, checkpoints/ (the
    latest, the best on validation, the final model) and result.json, whose row is returned. It may
    be killed at any instant and started again.

    Raises:
      UserError: the workdir is in use, or holds a run of another config.
      Stopped: SIGTERM or SIGINT came; the state is saved.
      Diverged: the loss or its gradient is not finite.
    """
    result = workdir / "result.json"
    with contextlib.ExitStack() as stack:

        def claim():
            stack.enter_context(_locked(workdir))
            experiment.refuse_other_config(config, workdir)
            return result.exists()

        if processes.on_first(claim):
            return results.read([result])[0]
        run = processes.together(lambda: experiment.create(config))
        stop = stack.enter_context(processes.Stop())
        training = processes.together(lambda: _Training(run, workdir, description, stop))
        return training.run()


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this process; the lock goes with the process, however that ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    with lock:
        for wait in (0.1, None):  # seconds; who looks whether it is held holds it for an instant
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise UserError(f"workdir {workdir} is in use by another process") from None
                time.sleep(wait)
            except OSError as error:
                raise UserError(f"workdir {workdir} cannot be locked: {error.strerror}") from error
        yield


class _Training:
    """One run, or one process's part of it: what the loop keeps between its steps."""

    def __init__(
        self, run: Experiment, workdir: Path, description: Description, stop: processes.Stop
    ):
        self.experiment, self.workdir, self.description, self.stop = run, workdir, description, stop
        config, info = run.config, run.info
        self.writes = processes.is_first()
        self.phases = Phases(workdir if self.writes else None, run.device_name)

        source, self.class_weights = run.open_training()
        weighed = config.loss.border_weight > 0
        self.resident = loader.fits(info, "train", config.data.placement, weighed)
        self.train_set: Any = loader.in_memory(source) if self.resident else source
        self.val_set = loader.in_memory(run.open_split("val"))
        shared = np.uint32(config.seed), self.train_set if self.resident else {}
        self.data = parallel.place(shared, run.devices)

        self.schedule = optimizers.create_schedule(config.optimizer, config.steps)
        self.optimizer = optimizers.create_optimizer(config.optimizer, self.schedule)
        self.evaluator = build_evaluator(run)
        self.predictor = outputs.build_predictor(run)
        self.compiled: dict[int, Any] = {}
        self.best_value, self.best_step = -math.inf, 0
        self.identity = f"{configs.digest(config)}, seed {config.seed}"

    def run(self) -> dict[str, Any]:
        config = self.experiment.config
        channels = len(self.experiment.info.mean)
        state = steps.create_state(self.experiment.model, self.optimizer, config, channels)
        title = self.description.name
        self.parameters = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
        with contextlib.ExitStack() as stack:
            self.checkpoints = stack.enter_context(Checkpoints(self.workdir))
            state, first, seconds = self._restore(state)
            if self.writes:  # not before it is known that the checkpoints are of this config
                experiment.write_description(self.workdir, self.experiment, self.description)
            self.start = time.monotonic() - seconds
            self.seen = time.monotonic(), first
            self.metrics_log = None
            if self.writes:
                log = tracking.MetricsLog(self.workdir / "metrics.jsonl", first)
                self.metrics_log = stack.enter_context(log)
            self.wandb = tracking.start_wandb(
                self.workdir,
                mode=config.wandb.mode if self.writes else "disabled",
                project=config.wandb.project,
                group=config.wandb.group,
                name=title,
                config=configs.flat(config),
                tags=tracking.tags(configs.flat(config), self.description.overrides),
            )
            # Left on the way out, by whatever exception: W&B marks the run as failed then.
            stack.push(lambda kind, *_: self.wandb.finish(0 if kind is None else 1))
            with Bar(title, config.steps, first, config.batch_size, not self.writes) as self.bar:
                where = self.experiment.device_name
                if processes.count() > 1:
                    where += f" of {processes.count()} processes"
                self.bar.line(
                    f"{title}: {config.model.name}, {self.parameters:,} parameters, "
                    f"{config.data.dataset} {config.data.resolution[0]}x"
                    f"{config.data.resolution[1]}, {where}"
                    + (f", going on from step {first}" if first else "")
                )
                self.phases.end("start")
                like = abstract(self._loop(state, first))
            return self._test(like)

    def _restore(self, state):
        placed = parallel.place(state, self.experiment.devices)
        found = self.checkpoints.resume(abstract(placed), self.identity)
        if self.checkpoints.step("best") is not None:
            facts = self.checkpoints.facts("best")
            self.best_value, self.best_step = facts["best_value"], facts["best_step"]
        if found:
            restored, facts = found
            return restored, facts["steps"], facts["seconds"]
        source = self.experiment.config.model.pretrained
        if source:
            variables = pretrained.fill(state.variables, source)
            ema = jax.tree.map(jnp.copy, variables) if state.ema else {}
            state = state.replace(variables=variables, ema=ema)
            placed = parallel.place(state, self.experiment.devices)
        return placed, 0, 0.0

    def _loop(self, state, step):
        config = self.experiment.config
        batches = self._batches(step)
        pending = None
        first = marked = step  # the latter: where the stretch under way began
        while step < config.steps:
            count = min(config.steps_per_dispatch, config.steps - step)
            state, measured = self._steps(count)(state, self.data, next(batches))
            # The metrics of one call are read when the next is on its way.
            if pending:
                self._record(*pending)
            pending = (step, measured)
            step += count
            if marked == first:
                jax.block_until_ready(measured)
                self.phases.end("first step", step - marked)
                marked = step
            validate = step % config.eval_every == 0 or step == config.steps
            save = step % config.checkpoint_every == 0 or step == config.steps
            # Looked at once: a signal between two looks must not stop an unsaved run.
            asked = self.stop.asked()
            if validate or save or asked:
                # Nothing that is not finite gets evaluated or saved.
                self._record(*pending)
                pending = None
                self.phases.end("training", step - marked)
                marked = step
            if validate:
                self._validate(state, step)
                self.phases.end("validation")
                asked = self.stop.asked()
            if save or asked:
                self._save("latest", step, state)
                self.phases.end("saving")
            if asked:
                self._stop(asked, step)
        return state

    def _stop(self, asked, step):
        # No process ends before all is on disk: where one ends, Slurm kills the others.
        processes.together(self.checkpoints.wait)
        self.phases.end("stopping")
        raise Stopped(asked, step)

    def _stop_if_asked(self, step):
        asked = self.stop.asked()
        if asked:
            self._stop(asked, step)

    def _steps(self, count):
        if count not in self.compiled:
            function = steps.build_train_steps(
                self.experiment.model,
                self.optimizer,
                self.experiment.config,
                self.experiment.info,
                jnp.asarray(self.class_weights),
                num_steps=count,
                resident=self.resident,
                axis_name=self.experiment.axis_name,
            )
            self.compiled[count] = parallel.parallelize(function, self.experiment.devices)
        return self.compiled[count]

    def _batches(self, step):
        """What the calls from `step` on take besides the state: nothing, or their raw batches."""
        config = self.experiment.config
        if self.resident:
            while True:
                yield {}
        own = parallel.own(config.batch_size, self.experiment.devices)
        raw = loader.stream(
            self.train_set, config.seed, config.batch_size, step, config.steps - step, own
        )
        while step < config.steps:
            count = min(config.steps_per_dispatch, config.steps - step)
            stacked = jax.tree.map(lambda *x: np.stack(x), *(next(raw) for _ in range(count)))
            yield parallel.split(stacked, self.experiment.devices, axis=1)
            step += count

    def _record(self, first, measured):
        """Logs the steps from `first` on, and stops at the first that is not finite."""
        config = self.experiment.config
        measured = jax.device_get(measured)
        for k, (loss, norm) in enumerate(
            zip(measured["loss"], measured["gradient_norm"], strict=True)
        ):
            step = first + k + 1
            if not (math.isfinite(loss) and math.isfinite(norm)):
                # The state before this step has made the loss that is not finite.
                path = self.checkpoints.path("latest", before=step - 1)
                last = (
                    f"the last good checkpoint is {path}"
                    if path
                    else "no good checkpoint was saved"
                )
                found = f"loss {loss:g}, gradient norm {norm:g} at step {step}"
                raise Diverged(f"{self.workdir}: {found}; {last}")
            if step % config.log_every == 0:
                values = {f"train/{name}": float(x[k]) for name, x in measured.items()}
                values["train/learning_rate"] = float(self.schedule(step - 1))
                values["train/images_per_second"] = self._rate(step)
                self._log(step, values)
        self.bar.advance(step, f"loss {loss:.3f}")
        self.loss = float(loss)

    def _rate(self, step):
        """Images a second since the last call, validation and saving in it."""
        now = time.monotonic()
        (past, past_step), self.seen = self.seen, (now, step)
        return (step - past_step) * self.experiment.config.batch_size / max(now - past, 1e-9)

    def _validate(self, state, step):
        config, info = self.experiment.config, self.experiment.info
        variables = state.evaluated()
        scores = metrics.scores(self.evaluator(variables, self.val_set).total)
        value = getattr(scores, config.best_metric)
        if value > self.best_value:
            former = self.best_value, self.best_step
            self.best_value, self.best_step = value, step
            if not self._save("best", step, state):
                self.best_value, self.best_step = former
        named = {f"val/{name}": getattr(scores, name) for name in metrics.SCORES}
        for name, iou in zip(info.class_names, scores.per_class_iou, strict=True):
            named[f"val/iou/{name}"] = float(iou)
        named["seconds"] = time.monotonic() - self.start
        self._log(step, named)
        if self.writes:
            self._show_samples(variables, step)
        self.bar.line(
            f"step {step}/{config.steps}  loss {self.loss:.3f}  val G {scores.global_accuracy:.1%} "
            f"C {scores.class_accuracy:.1%} mIoU {scores.mean_iou:.1%}  "
            f"best {config.best_metric} {self.best_value:.1%} at step {self.best_step}"
        )

    def _show_samples(self, variables, step):
        try:
            from segjax.data import pictures
        except ImportError:  # it draws with Pillow, which a training can do without
            return
        count = len(self.val_set["label"])
        places = np.linspace(0, count - 1, min(SAMPLES, count)).round().astype(int)
        images, truths = self.val_set["image"][places], self.val_set["label"][places]
        predictions = self.predictor(variables, images)
        names, palette = self.experiment.info.class_names, self.experiment.info.palette
        rows = [
            [image, pictures.colorize(truth, palette), pictures.colorize(prediction, palette)]
            for image, truth, prediction in zip(images, truths, predictions, strict=True)
        ]
        picture = pictures.grid(rows, ["image", "truth", f"step {step}"])
        pictures.save(self.workdir / "samples" / f"{step:07d}.png", picture)
        self.wandb.masks(step, "val/examples", images, predictions, truths, names)

    def _log(self, step, values):
        if self.metrics_log:
            self.metrics_log.write(step, values)
        self.wandb.scalars(step, values)

    def _save(self, kind, step, state):
        if kind == "latest":
            # A later start goes on from `latest`, and must find the best one that came before it.
            self.checkpoints.wait()
        facts = {
            "config": self.identity,
            "steps": step,
            "seconds": time.monotonic() - self.start,
            "best_step": self.best_step,
            "best_value": self.best_value,
        }
        return self.checkpoints.save(kind, step, state, facts)

    def _test(self, like):
        """Tests the best model, its batch-norm statistics recomputed, and writes the row."""
        config = self.experiment.config
        self.checkpoints.wait()
        best = self.checkpoints.restore("best", like).evaluated()
        stop_if_asked = functools.partial(self._stop_if_asked, config.steps)
        batch_norm = "running" if "batch_stats" in best else "none"
        if config.recompute_batch_norm and "batch_stats" in best:
            best = recompute_batch_norm(self.experiment, best, self.train_set, stop_if_asked)
            batch_norm = "recomputed"
        facts = {
            "steps": config.steps,
            "seconds": time.monotonic() - self.start,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "batch_norm": batch_norm,
        }
        self.checkpoints.save("final", config.steps, best, facts)
        split = config.test_split
        test_set = self.experiment.open_split(split)
        counts = self.evaluator(best, test_set, split, stop_if_asked, boundaries=True)
        row = result_row(
            self.experiment,
            self.description,
            counts,
            split=split,
            num_images=len(test_set),
            parameters=self.parameters,
            facts=facts,
            batch_norm=batch_norm,
        )

        def finish():
            self.checkpoints.wait()
            if self.writes:
                write_counts(self.workdir / "result.json", counts)
                results.write_row(self.workdir / "result.json", row)

        # None ends before: one that had to be started again would wait for those that are gone.
        processes.together(finish)
        self.phases.end("test")
        kind = "test" if split == "test" else f"test_on_{split}"
        test = {
            f"{kind}/{name}": row[name]
            for name in (*metrics.SCORES, "boundary_f")
            if row[name] is not None
        }
        self.wandb.scalars(config.steps, test)
        return row
