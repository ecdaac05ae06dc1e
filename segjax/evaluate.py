"""Scoring a split, and the recomputation of batch-normalisation statistics before it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax import config as configs
from segjax import loader, parallel, results, steps
from segjax.experiment import Description, Experiment, load_variables
from segjax.models.layers import BATCH_NORM_MOMENTUM
from segjax.progress import Bar

Variables = dict[str, Any]
Examples = loader.Raw | loader.Source


def build_evaluator(experiment: Experiment) -> Callable[..., np.ndarray]:
    """f(variables, examples, title, between) -> int64 (K, K) counts of all that is not void.

    With a title it shows a progress bar; `between` is called after each batch, and may raise.
    """
    config, info, devices = experiment.config, experiment.info, experiment.devices
    step = parallel.parallelize(
        steps.build_eval_step(experiment.model, config, info, axis_name=experiment.axis_name),
        devices,
    )

    def evaluate(variables, examples, title=None, between=lambda: None):
        total = np.zeros((len(info.class_names),) * 2, np.int64)
        size = config.eval_batch_size
        count = loader.num_examples(examples)
        with Bar(title, count) if title else contextlib.nullcontext() as bar:
            for number, raw in enumerate(loader.evaluation_batches(examples, size), start=1):
                _, counts = step((), variables, parallel.split(raw, devices))
                total += np.asarray(counts)
                if bar:
                    bar.advance(min(number * size, count))
                between()
        return total

    return evaluate


def recompute_batch_norm(
    experiment: Experiment,
    variables: Variables,
    examples: Examples,
    between: Callable[[], None] = lambda: None,
) -> Variables:
    """Replaces the running statistics by means over the training set, as the SegNet authors do.

    In batches of b = `batch_size` of the n training images, n // b + n % b of them as in
    `compute_bn_statistics.py` (the images come round again), without augmentation, each layer's
    batch means and unbiased batch variances (m / (m - 1), m values a channel) are averaged.
    `between` is called after each batch, and may raise.
    """
    config, devices = experiment.config, experiment.devices
    step = parallel.parallelize(
        steps.build_statistics_step(
            experiment.model, config, experiment.info, axis_name=experiment.axis_name
        ),
        devices,
    )
    size = config.batch_size
    count = loader.num_examples(examples)
    batches = count // size + count % size
    sums = parallel.place(jax.tree.map(jnp.zeros_like, variables["batch_stats"]), devices)
    with Bar("batch normalisation", batches) as bar:
        for batch in range(batches):
            places = [(batch * size + place) % count for place in range(size)]
            raw = loader.pick(examples, places)
            sums, _ = step(sums, variables, parallel.split(raw, devices))
            bar.advance(batch + 1)
            between()

    unbiased = _unbiased(experiment, variables, size)

    def average(path, total):
        mean = total / (batches * (1 - BATCH_NORM_MOMENTUM))
        return mean * unbiased[path[:-1]] if path[-1].key == "var" else mean

    return {**variables, "batch_stats": jax.tree.map_with_path(average, sums)}


def _unbiased(experiment, variables, batch_size):
    """m / (m - 1) by path of each batch normalisation, m from the size of its output."""
    height, width = experiment.config.data.resolution

    def apply(variables):
        model = experiment.model.clone(axis_name=None)
        image = jnp.zeros((batch_size, height, width, 3))
        return model.apply(
            variables,
            image,
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, nn.BatchNorm),
        )[1]["intermediates"]

    factors = {}
    for path, output in jax.tree.leaves_with_path(jax.eval_shape(apply, variables)):
        values = output.size // output.shape[-1]
        factors[path[:-2]] = values / max(values - 1, 1)  # path ends in "__call__", 0
    return factors


def result_row(
    experiment: Experiment,
    description: Description,
    confusion: np.ndarray,
    *,
    split: str,
    num_images: int,
    parameters: int,
    facts: dict[str, Any],
    batch_norm: str,
) -> dict[str, Any]:
    """A result as data, as `segjax.results` reads it."""
    config, info = experiment.config, experiment.info
    device = experiment.devices[0]
    return {
        "schema": results.SCHEMA,
        "experiment": description.experiment,
        "name": description.name,
        "overrides": description.overrides,
        "command": description.command,
        "model": config.model.name,
        "model_options": config.model.options.to_dict(),
        "parameters": parameters,
        "config_digest": configs.digest(config),
        "seed": config.seed,
        "dataset": config.data.dataset,
        "split": split,
        "num_images": num_images,
        "resolution": list(config.data.resolution),
        **results.scored(confusion, info.class_names),
        "steps": facts["steps"],
        "best_step": facts["best_step"],
        "seconds": round(facts["seconds"], 1),
        "batch_norm": batch_norm,
        **results.provenance(f"{device.device_kind} x{len(experiment.devices)}"),
    }


def evaluate_workdir(
    run: Experiment,
    description: Description,
    workdir: Path,
    split: str,
    kind: str | None,
    limit: int | None,
) -> tuple[Path, dict[str, Any]]:
    """Scores a checkpoint of a workdir on a split, or on its first `limit` images.

    Args:
      kind: of the checkpoint; none: final where there is one, else best. The statistics of batch
        normalisation are recomputed first where the config asks for it (in `final` they are).

    Returns:
      Where the row belongs, and the row.
    """
    variables, facts = load_variables(run, workdir, kind)
    source = run.open_split(split)
    examples = [source[i] for i in range(min(limit, len(source)))] if limit else source
    if "batch_stats" not in variables:
        facts["batch_norm"] = "none"
    elif run.config.recompute_batch_norm and facts["kind"] != "final":
        variables = recompute_batch_norm(run, variables, run.open_split("train"))
        facts["batch_norm"] = "recomputed"
    row = result_row(
        run,
        description,
        build_evaluator(run)(variables, examples, f"evaluate {split}"),
        split=split,
        num_images=len(examples),
        parameters=sum(x.size for x in jax.tree.leaves(variables["params"])),
        facts=facts,
        batch_norm=facts.get("batch_norm", "running"),
    )
    of = f"_first{limit}" if limit else ""
    return workdir / f"evaluation_{split}{of}_{facts['kind']}.json", row
