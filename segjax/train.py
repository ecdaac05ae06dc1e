"""Train a run: restore, step, validate, save, and in the end test."""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

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
from segjax.results.counts import write_counts
from segjax.runs import experiment, processes, samples, tracking
from segjax.runs.checkpoint import Checkpoints, restore_template
from segjax.runs.experiment import Description, Experiment
from segjax.runs.timing import Phases
from segjax.system import locks
from segjax.system.progress import Bar
from segjax.training import optimizers, parallel, steps


class Stopped(Exception):
    """A signal asked to stop, and everything is saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, all is saved")
        self.status = 128 + number


class Diverged(Exception):
    """The loss or its gradient is not finite."""


@dataclasses.dataclass
class _Session:
    """Outputs of one start of a run, and its best validation so far."""

    run: Experiment
    workdir: Path
    checkpoints: Checkpoints
    metrics_log: tracking.MetricsLog | None  # None: another process writes
    wandb: Any
    phases: Phases
    began: float  # `time.monotonic` at which an uninterrupted training would have begun
    best_value: float = -math.inf
    best_step: int = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.metrics_log:
            self.metrics_log.write(step, values)
        self.wandb.log_scalars(step, values)

    def facts(self, step: int) -> dict[str, Any]:
        return {
            "config": _identity(self.run.config),
            "steps": step,
            "seconds": time.monotonic() - self.began,
            "best_step": self.best_step,
            "best_value": self.best_value,
        }

    def save(self, kind: str, step: int, state: steps.TrainState) -> bool:
        if kind == "latest":
            # A later start resumes from `latest`, and must find the best that came before it.
            self.checkpoints.wait()
        return self.checkpoints.save(kind, step, state, self.facts(step))

    def stop(self, number: int, step: int) -> NoReturn:
        # No process ends before all is on disk: where one ends, Slurm kills the others.
        processes.run_on_all(self.checkpoints.wait)
        self.phases.end("stopping")
        raise Stopped(number, step)


def train(config: ConfigDict, workdir: Path, description: Description) -> dict[str, Any]:
    """Train for `config.steps`, resuming an earlier start, and test the best model.

    Writes config.json, metrics.jsonl, samples/, checkpoints/ (the latest, the best on validation,
    the final model), result.json and result.npz. It may be killed at any instant and started again.

    Returns:
      The row of result.json.

    Raises:
      UserError: the workdir is in use or holds a run of another config, an override is void, or
        another process has another config.
      Stopped: SIGTERM or SIGINT came; the state is saved.
      Diverged: the loss or its gradient is not finite.
    """
    processes.require_same("config or seed", _identity(config))
    with contextlib.ExitStack() as stack:
        # ---- The run directory, for this process alone

        def claim() -> bool:
            stack.enter_context(_lock(workdir))
            experiment.refuse_other_config(config, workdir)
            return (workdir / "result.json").exists()

        if processes.broadcast_from_first(claim):
            return results.read([workdir / "result.json"])[0]
        results.revision()  # of the code that runs: its files may change before the row is written
        run = processes.run_on_all(lambda: experiment.create(config))
        processes.run_on_all(lambda: experiment.refuse_other_data(run, workdir))
        stop = stack.enter_context(processes.StopSignal())
        writes = processes.is_first()
        phases = Phases(workdir if writes else None, run.device_name)

        # ---- Data, on the devices where it fits

        train_set, resident, class_weights, val_set = processes.run_on_all(lambda: _open_data(run))
        shared = np.uint32(config.seed), train_set if resident else {}
        shared = parallel.place(shared, run.devices)

        # ---- Programs

        schedule = optimizers.create_schedule(config.optimizer, config.steps)
        optimizer = optimizers.create_optimizer(config.optimizer, schedule)
        evaluate = build_evaluator(run)
        predict = outputs.build_predictor(run)

        @functools.cache
        def train_steps(count: int) -> Any:
            program = steps.build_train_steps(
                run.model,
                optimizer,
                config,
                run.info,
                jnp.asarray(class_weights),
                num_steps=count,
                resident=resident,
                axis_name=run.axis_name,
            )
            return parallel.parallelize(program, run.devices, donate=True)

        # ---- The state: the latest checkpoint's, or a new one

        state: Any = steps.create_state(run.model, optimizer, config, len(run.info.mean))
        parameters = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
        if "recompute_batch_norm" in description.overrides and "batch_stats" not in state.variables:
            raise UserError(
                "config field 'recompute_batch_norm' is given, but model "
                f"{config.model.name} has no batch normalization"
            )
        checkpoints = stack.enter_context(Checkpoints(workdir))
        placed = parallel.place(state, run.devices)
        found = checkpoints.resume(restore_template(placed), _identity(config))
        if found:
            state, facts = found
            step, seconds = facts["steps"], facts["seconds"]
        else:
            if config.model.pretrained:
                variables = pretrained.fill(state.variables, config.model.pretrained)
                ema = jax.tree.map(jnp.copy, variables) if state.ema else {}
                placed = state.replace(variables=variables, ema=ema)
                placed = parallel.place(placed, run.devices)
            state, step, seconds = placed, 0, 0.0
        del placed

        # ---- Logs

        if writes:  # not before it is known that the checkpoints are of this config
            experiment.write_description(workdir, run, description)
        metrics_log = None
        if writes:
            metrics_log = tracking.MetricsLog(workdir / "metrics.jsonl", step)
            stack.enter_context(metrics_log)
        wandb = tracking.start_wandb(
            workdir,
            mode=config.wandb.mode if writes else "disabled",
            project=config.wandb.project,
            group=config.wandb.group,
            name=description.name,
            config=configs.flat(config),
            tags=tracking.tags(configs.flat(config), description.overrides),
        )
        # Whatever exception leaves the stack, W&B marks the run as failed.
        stack.push(lambda kind, *_: wandb.finish(0 if kind is None else 1))
        session = _Session(
            run, workdir, checkpoints, metrics_log, wandb, phases, time.monotonic() - seconds
        )
        if checkpoints.step("best") is not None:
            facts = checkpoints.facts("best")
            session.best_value, session.best_step = facts["best_value"], facts["best_step"]

        # ---- The loop

        with Bar(description.name, config.steps, step, config.batch_size, not writes) as bar:
            bar.line(_headline(run, description, parameters, step))
            phases.end("start")
            record = _Recorder(session, schedule, bar, step)
            batches = _batches(run, train_set, resident, step)
            measured = pending = None
            first = marked = step  # `marked`: the first step of the current phase

            while step < config.steps:
                count = min(config.steps_per_dispatch, config.steps - step)
                state, measured = train_steps(count)(state, shared, next(batches))
                # The metrics of a call are read while the next call runs.
                if pending:
                    record(*pending)
                pending = step, measured
                step += count

                if marked == first:
                    jax.block_until_ready(measured)
                    phases.end("first step", step - marked)
                    marked = step

                validate = step % config.eval_every == 0 or step == config.steps
                save = step % config.checkpoint_every == 0 or step == config.steps
                # Asked once: a signal between two questions must not stop an unsaved run.
                asked = stop.received()
                if validate or save or asked:
                    # Nothing that is not finite is evaluated or saved.
                    record(*pending)
                    pending = None
                    phases.end("training", step - marked)
                    marked = step
                if validate:
                    _validate(session, state, step, evaluate, predict, val_set, bar, record.loss)
                    phases.end("validation")
                    asked = stop.received()
                if save or asked:
                    session.save("latest", step, state)
                    phases.end("saving")
                if asked:
                    session.stop(asked, step)
        like = restore_template(state)
        del state, measured  # their memory is the test's

        # ---- The test of the best model

        def stop_if_asked() -> None:
            if asked := stop.received():
                session.stop(asked, config.steps)

        checkpoints.wait()
        best = checkpoints.restore("best", like).evaluated()
        batch_norm = "running" if "batch_stats" in best else "none"
        if config.recompute_batch_norm and "batch_stats" in best:
            best = recompute_batch_norm(run, best, train_set, stop_if_asked)
            batch_norm = "recomputed"
        facts = {**session.facts(config.steps), "batch_norm": batch_norm}
        del facts["config"]
        checkpoints.save("final", config.steps, best, facts)

        split = config.test_split
        test_set = run.open_split(split)
        counts = evaluate(best, test_set, split, stop_if_asked, boundaries=True)
        row = result_row(
            run,
            description,
            counts,
            split=split,
            data_digest=test_set.digest,
            num_images=len(test_set),
            parameters=parameters,
            facts=facts,
            batch_norm=batch_norm,
        )

        def finish() -> None:
            checkpoints.wait()
            if writes:
                write_counts(workdir / "result.json", counts)
                results.write_row(workdir / "result.json", row)

        # No process ends before: one that had to be restarted would wait for those that are gone.
        processes.run_on_all(finish)
        phases.end("test")
        prefix = "test" if split == "test" else f"test_on_{split}"
        tested = {name: row[name] for name in (*metrics.SCORES, "boundary_f")}
        tested = {f"{prefix}/{name}": value for name, value in tested.items() if value is not None}
        wandb.log_scalars(config.steps, tested)
        return row


def _lock(workdir: Path) -> IO[str]:
    """Hold the run directory for this process.

    Raises:
      UserError: another process has it, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A process that only looks whether it is held holds it for an instant.
        held = locks.acquire(workdir / ".lock", wait=0.1)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    if held is None:
        raise UserError(f"workdir {workdir} is in use by another process")
    return held


def _identity(config: ConfigDict) -> str:
    """Return the identity that a checkpoint must have for this config to resume it."""
    return f"{configs.digest(config)}, seed {config.seed}"


def _open_data(run: Experiment) -> tuple[Any, bool, np.ndarray, Any]:
    """Return the training set, whether it lies in device memory, the class weights of the loss,
    and the validation set."""
    config = run.config
    source, class_weights = run.open_training()
    weighed = config.loss.border_weight > 0
    resident = loader.fits(run.info, "train", config.data.placement, weighed)
    train_set = loader.in_memory(source) if resident else source
    return train_set, resident, class_weights, loader.in_memory(run.open_split("val"))


def _headline(run: Experiment, description: Description, parameters: int, step: int) -> str:
    data, where = run.config.data, run.device_name
    if processes.count() > 1:
        where += f" of {processes.count()} processes"
    return (
        f"{description.name}: {run.config.model.name}, {parameters:,} parameters, "
        f"{data.dataset} {data.resolution[0]}x{data.resolution[1]}, {where}"
        + (f", resumed at step {step}" if step else "")
    )


def _batches(run: Experiment, train_set: Any, resident: bool, step: int) -> Iterator[Any]:
    """Yield the raw batches of each call from `step` on; nothing where the data are resident."""
    config = run.config
    if resident:
        while True:
            yield {}
    own = parallel.own(config.batch_size, run.devices)
    raw = loader.stream(train_set, config.seed, config.batch_size, step, config.steps - step, own)
    while step < config.steps:
        count = min(config.steps_per_dispatch, config.steps - step)
        stacked = jax.tree.map(lambda *x: np.stack(x), *(next(raw) for _ in range(count)))
        yield parallel.split(stacked, run.devices, axis=1)
        step += count


class _Recorder:
    """Log the metrics of training steps, and stop at the first that is not finite."""

    def __init__(self, session: _Session, schedule: Any, bar: Bar, step: int):
        self.session, self.schedule, self.bar = session, schedule, bar
        self.seen = time.monotonic(), step  # when a rate was logged last
        self.loss = math.nan  # of the last step

    def __call__(self, first: int, measured: Any) -> None:
        """Record the steps of one call, `first` steps being done before it."""
        session, config = self.session, self.session.run.config
        measured = jax.device_get(measured)
        pairs = zip(measured["loss"], measured["gradient_norm"], strict=True)
        for k, (loss, norm) in enumerate(pairs):
            step = first + k + 1
            if not (math.isfinite(loss) and math.isfinite(norm)):
                # The state before this step has made the loss that is not finite.
                path = session.checkpoints.path("latest", before=step - 1)
                last = f"the last good checkpoint is {path}"
                raise Diverged(
                    f"{session.workdir}: loss {loss:g}, gradient norm {norm:g} at step {step}; "
                    f"{last if path else 'no good checkpoint was saved'}"
                )
            if step % config.log_every == 0:
                values = {f"train/{name}": float(x[k]) for name, x in measured.items()}
                values["train/learning_rate"] = float(self.schedule(step - 1))
                values["train/images_per_second"] = self._rate(step)
                session.log(step, values)
        self.bar.advance(step, f"loss {loss:.3f}")
        self.loss = float(loss)

    def _rate(self, step):
        """Images a second since the last call, validation and saving included."""
        now = time.monotonic()
        (past, past_step), self.seen = self.seen, (now, step)
        batch_size = self.session.run.config.batch_size
        return (step - past_step) * batch_size / max(now - past, 1e-9)


def _validate(
    session: _Session,
    state: steps.TrainState,
    step: int,
    evaluate: Any,
    predict: outputs.Predictor,
    val_set: Any,
    bar: Bar,
    loss: float,
) -> None:
    """Score the validation set, save the state if it is the best so far, log and draw."""
    config, info = session.run.config, session.run.info
    variables = state.evaluated()
    scores = metrics.scores(evaluate(variables, val_set).total)

    value = getattr(scores, config.best_metric)
    if value > session.best_value:
        former = session.best_value, session.best_step
        session.best_value, session.best_step = value, step
        if not session.save("best", step, state):
            session.best_value, session.best_step = former

    values = {f"val/{name}": getattr(scores, name) for name in metrics.SCORES}
    for name, iou in zip(info.class_names, scores.per_class_iou, strict=True):
        values[f"val/iou/{name}"] = float(iou)
    values["seconds"] = time.monotonic() - session.began
    session.log(step, values)
    if session.metrics_log:
        drawn = samples.draw(session.workdir, step, info, val_set, lambda x: predict(variables, x))
        session.wandb.log_masks(step, "val/examples", *drawn, info.class_names)
    bar.line(
        f"step {step}/{config.steps}  loss {loss:.3f}  val G {scores.global_accuracy:.1%} "
        f"C {scores.class_accuracy:.1%} mIoU {scores.mean_iou:.1%}  "
        f"best {config.best_metric} {session.best_value:.1%} at step {session.best_step}"
    )
