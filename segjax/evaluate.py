"""Scoring a split, and the recomputation of batch-normalisation statistics before it."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax import config as configs
from segjax import inference, loader, parallel, results, steps
from segjax.experiment import Description, Experiment
from segjax.metrics import confusion_matrix
from segjax.models.layers import BATCH_NORM_MOMENTUM
from segjax.progress import Bar

Variables = dict[str, Any]
Examples = loader.Raw | loader.Source


def build_evaluator(
    experiment: Experiment,
    output: inference.Output | None = None,
    refine: inference.Refine | None = None,
) -> Callable[..., np.ndarray]:
    """f(variables, examples, title, between) -> int64 (K, K) counts of all that is not void.

    With a title it shows a progress bar; `between` is called after each batch, and may raise.

    Args:
      experiment: where to compute, and on what.
      output: whose greatest class counts; none: the logits of the experiment's own network.
      refine: what is done to the output, probabilities, before that.
    """
    config, devices = experiment.config, experiment.devices
    num_classes, axis_name = len(experiment.info.class_names), experiment.axis_name
    output = output or inference.logits(experiment)
    step = parallel.parallelize(
        steps.build_output_step(output, axis_name=axis_name)
        if refine
        else steps.build_eval_step(output, num_classes, axis_name=axis_name),
        devices,
    )

    def evaluate(variables, examples, title=None, between=lambda: None):
        total = np.zeros((num_classes, num_classes), np.int64)
        size = config.eval_batch_size
        count = loader.num_examples(examples)
        with Bar(title, count) if title else contextlib.nullcontext() as bar:
            for number, raw in enumerate(loader.evaluation_batches(examples, size)):
                done = min((number + 1) * size, count)
                raw["place"] = np.arange(number * size, (number + 1) * size, dtype=np.int32)
                _, result = step((), variables, parallel.split(raw, devices))
                if refine:
                    result = _refined_counts(refine, raw, result, done - number * size)
                total += np.asarray(result)
                if bar:
                    bar.advance(done)
                between()
        return total

    return evaluate


def _refined_counts(refine, raw, probabilities, count):
    """Confusion counts of the first `count` images of a batch, refined one by one."""
    refined = map(refine, raw["image"][:count], np.asarray(probabilities[:count]))
    classes = jnp.asarray([each.argmax(-1) for each in refined])
    labels = jnp.asarray(raw["label"][:count])
    return confusion_matrix(labels, classes, probabilities.shape[-1])


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
        image = jnp.zeros((batch_size, height, width, len(experiment.info.mean)))
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
