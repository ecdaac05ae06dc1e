"""Train a run: restore, step, validate, save, and in the end test."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax import metrics, results
from segjax.data import loader
from segjax.errors import Diverged, Stopped, UserError
from segjax.inference import outputs
from segjax.inference.scoring import (
    build_evaluator,
    recompute_batch_norm,
    result_row,
    score_natively,
)
from segjax.results.counts import write_counts
from segjax.results.schema import Row
from segjax.runs import experiment, initial, processes
from segjax.runs.checkpoint import Checkpoints, restore_template
from segjax.runs.experiment import Description, Experiment
from segjax.runs.log import TrainingLog
from segjax.runs.timing import Phases
from segjax.training import optimizers, parallel, steps


def train(config: ConfigDict, workdir: Path, description: Description) -> Row:
    """Train for `config.steps`, resuming an earlier start, and test the best model.

    Writes config.json, metrics.jsonl, samples/, checkpoints/ (the latest, the best on validation,
    the final model), result.json and result.npz. It may be killed at any instant and started again.

    Returns:
      The row of result.json.

    Raises:
      UserError: the workdir is in use or holds a run of another config, an override has no effect,
        or another process has another config.
      Stopped: SIGTERM or SIGINT came; the state is saved.
      Diverged: the loss or its gradient is not finite.
    """
    identity = experiment.identity(config)
    processes.require_same("config or seed", identity)

    with contextlib.ExitStack() as stack:
        # ---- The run directory, for this process alone

        def claim() -> bool:
            stack.enter_context(experiment.claim(workdir, config))
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

        train_set: Any
        train_set, class_weights = processes.run_on_all(run.open_training)
        weighed = config.loss.border_weight > 0
        resident = loader.fits(run.info, "train", config.data.placement, weighed)
        if resident:
            train_set = processes.run_on_all(lambda: loader.in_memory(train_set))
        val_set = processes.run_on_all(lambda: loader.in_memory(run.open_split("val")))
        shared = parallel.place(
            (np.uint32(config.seed), train_set if resident else {}), run.devices
        )

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
        state = parallel.place(state, run.devices)
        parameters = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
        if "recompute_batch_norm" in description.overrides and "batch_stats" not in state.variables:
            raise UserError(
                "config field 'recompute_batch_norm' is given, but model "
                f"{config.model.name} has no batch normalization"
            )

        checkpoints = stack.enter_context(Checkpoints(workdir))
        step, seconds = 0, 0.0
        if found := checkpoints.resume(restore_template(state), identity):
            state, kept = found
            step, seconds = kept["steps"], kept["seconds"]
        else:
            state = parallel.place(initial.fill(run, state), run.devices)
        began = time.monotonic() - seconds  # as if nothing had interrupted the training
        best = {"best_step": 0, "best_value": -math.inf}  # of `best_metric`, on validation
        if checkpoints.step("best") is not None:
            kept = checkpoints.facts("best")
            best = {name: kept[name] for name in best}

        owner = {"config": identity}  # which `resume` compares

        def facts() -> dict[str, Any]:
            """Return what checkpoints and the result row keep of the progress."""
            return {"steps": step, "seconds": time.monotonic() - began, **best}

        # ---- Logs

        if writes:  # not before it is known that the checkpoints are of this config
            experiment.write_description(workdir, run, description)
        log = stack.enter_context(TrainingLog(run, workdir, description, step))

        def record(first: int, measured: Any) -> None:
            """Log the steps of one call, up to the first that is not finite."""
            measured = jax.device_get(measured)
            finite = np.isfinite(measured["loss"]) & np.isfinite(measured["gradient_norm"])
            good = len(finite) if finite.all() else int(finite.argmin())
            log.steps(first, {name: x[:good] for name, x in measured.items()}, schedule)
            if good < len(finite):
                # The state before this step has made the loss that is not finite.
                path = checkpoints.path("latest", before=first + good)
                last = f"the last good checkpoint is {path}"
                raise Diverged(
                    f"{workdir}: loss {measured['loss'][good]:g}, gradient norm "
                    f"{measured['gradient_norm'][good]:g} at step {first + good + 1}; "
                    f"{last if path else 'no good checkpoint was saved'}"
                )

        def stop_if_asked(asked: int | None = None) -> None:
            if asked := asked or stop.received():
                # No process ends before all is on disk: where one ends, Slurm kills the others.
                processes.run_on_all(checkpoints.wait)
                phases.end("stopping")
                raise Stopped(asked, step)

        # ---- The loop

        with log.progress(parameters):
            phases.end("start")
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
                    scores = metrics.scores(evaluate(state.evaluated(), val_set).total)
                    value = getattr(scores, config.best_metric)
                    if value > best["best_value"]:
                        better = {"best_step": step, "best_value": value}
                        if checkpoints.save("best", step, state, owner | facts() | better):
                            best = better
                    log.validation(step, scores, facts())
                    log.samples(step, val_set, functools.partial(predict, state.evaluated()))
                    phases.end("validation")
                    asked = stop.received()

                if save or asked:
                    # A later start resumes from `latest`, and must find the best before it.
                    checkpoints.wait()
                    checkpoints.save("latest", step, state, owner | facts())
                    phases.end("saving")
                if asked:
                    stop_if_asked(asked)
        like = restore_template(state)
        del state, measured  # their memory is the test's

        # ---- The test of the best model

        checkpoints.wait()
        tested = checkpoints.restore("best", like).evaluated()
        batch_norm = "running" if "batch_stats" in tested else "none"
        if config.recompute_batch_norm and "batch_stats" in tested:
            tested = recompute_batch_norm(run, tested, train_set, stop_if_asked)
            batch_norm = "recomputed"
        final_facts = owner | facts() | {"batch_norm": batch_norm}
        checkpoints.save("final", step, tested, final_facts)

        split, native = config.test_split, config.data.score_at == "native"
        test_set = run.open_split(split, native)
        if native:
            counts = score_natively(run, tested, test_set, split, stop_if_asked)
        else:
            counts = evaluate(tested, test_set, split, stop_if_asked, boundaries=True)
        row = result_row(
            run,
            description,
            counts,
            split=split,
            data_digest=test_set.digest,
            num_images=len(test_set),
            parameters=parameters,
            facts=final_facts,
            batch_norm=batch_norm,
        )
        if native:
            row["inference"] = "native"

        def finish() -> None:
            checkpoints.wait()
            if writes:
                write_counts(workdir / "result.json", counts)
                results.write_row(workdir / "result.json", row)

        # No process ends before: one that had to be restarted would wait for those that are gone.
        processes.run_on_all(finish)
        phases.end("test")
        log.test(row)
        return row


def _batches(run: Experiment, train_set: Any, resident: bool, step: int) -> Iterator[Any]:
    """Yield the raw batches of each call from `step` on; nothing where the data are resident."""
    config = run.config
    if resident:
        yield from itertools.repeat({})
    own = parallel.own(config.batch_size, run.devices)
    raw = loader.stream(train_set, config.seed, config.batch_size, step, config.steps - step, own)
    while batches := list(itertools.islice(raw, config.steps_per_dispatch)):
        yield parallel.split(jax.tree.map(lambda *x: np.stack(x), *batches), run.devices, axis=1)
