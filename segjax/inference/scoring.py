"""Evaluate a network on a split, and recompute batch-normalization statistics before that."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import config as configs
from segjax import results
from segjax.data import fitting, loader
from segjax.data.datasets import VOID, Source
from segjax.inference import outputs, windows
from segjax.metrics import boundary, boundary_iou, calibration, count_pixels
from segjax.models.layers import BATCH_NORM_MOMENTUM, BatchNorm
from segjax.results.counts import Counts
from segjax.runs import processes
from segjax.runs.experiment import Description, Experiment
from segjax.system.progress import Bar
from segjax.training import parallel, steps

Variables = dict[str, Any]
Examples = loader.Raw | loader.Source


def build_evaluator(
    experiment: Experiment, output: outputs.Output | None = None
) -> Callable[..., Counts]:
    """Return f(variables, examples, title, between, boundaries) -> Counts, for images of one size.

    With a title, f shows a progress bar; it calls `between`, which may raise, after each batch;
    with `boundaries` it also counts boundary pixels, on the host.

    Args:
      experiment: network, classes and devices.
      output: values whose greatest is the class; None: the logits of the network.
    """
    config, devices = experiment.config, experiment.devices
    num_classes, axis_name = len(experiment.info.class_names), experiment.axis_name
    size = config.eval_batch_size
    own = parallel.own(size, devices)
    step = parallel.parallelize(
        steps.build_eval_step(
            output or outputs.logits(experiment), num_classes, axis_name=axis_name
        ),
        devices,
    )

    def evaluate(variables, examples, title=None, between=lambda: None, boundaries=False):
        confusion, found = [], []
        count = loader.num_examples(examples)
        quiet = not (title and processes.is_first())
        with Bar(title or "", count, quiet=quiet) as bar:
            for number, raw in enumerate(loader.evaluation_batches(examples, size)):
                done = min((number + 1) * size, count)
                labels = raw["label"][: done - number * size]
                raw["place"] = np.arange(number * size, (number + 1) * size, dtype=np.int32)
                part = {name: x[own] for name, x in raw.items()}
                counts, classes = step(variables, parallel.split(part, devices))
                confusion.append(np.asarray(counts)[: len(labels)])
                if boundaries:
                    ours = np.zeros((own.stop - own.start, num_classes, 5), np.int64)
                    pairs = zip(labels[own], np.asarray(classes)[own], strict=False)
                    for place, (label, guess) in enumerate(pairs):
                        first = number * size + own.start
                        truth, seen = _without_frame(examples, first + place, label, guess)
                        ours[place, :, :3] = boundary.counts(truth, seen, num_classes)
                        ours[place, :, 3:] = boundary_iou.counts(truth, seen, num_classes)
                    found.append(ours)
                bar.advance(done)
                between()
        if not boundaries:
            return Counts(np.concatenate(confusion))
        # Each process counted in its part of every batch; the last batch is padded.
        edges = processes.gather(np.stack(found)).swapaxes(0, 1).reshape(-1, num_classes, 5)
        edges = edges[:count]
        return Counts(np.concatenate(confusion), edges[..., :3], _names(examples), edges[..., 3:])

    return evaluate


def _names(examples):
    """Return the ids of examples, str (N,), or None for arrays in memory, which have none."""
    if isinstance(examples, dict):
        return None
    # A source reads the names alone much faster than the examples.
    return np.array(getattr(examples, "names", None) or [each["id"] for each in examples])


def _without_frame(examples, place, label, classes):
    """Cut the frame of a letterbox off maps (H, W): its edge is no boundary of the image."""
    size = examples.shown_size(place) if isinstance(examples, Source) else None
    if size is None:
        return label, classes
    return fitting.centered(label, size, VOID), fitting.centered(classes, size, VOID)


def build_image_evaluator(
    experiment: Experiment,
    strips: windows.Strips,
    refine: outputs.Refine | None = None,
    *,
    native: bool = False,
    calibrated: bool = False,
) -> Callable[..., Counts]:
    """Return f(variables, examples, title, between) -> Counts, for images of any sizes, one by one.

    f calls `between`, which may raise, after each image. Labels are counted as they are, against an
    output of their own size, on the host.

    Args:
      experiment: whose classes are counted.
      strips: gives the values whose greatest is the class.
      refine: applied to the output of an image, which then must be probabilities.
      native: the images have their own sizes; BF is not measured, because the time and memory of
        its matching grow with the cube of an image's side.
      calibrated: count pixels by their confidence; the values must be probabilities.
    """
    num_classes = len(experiment.info.class_names)

    def count(values, label):
        classes = np.zeros(label.shape, np.uint8)
        confusion = np.zeros((num_classes, num_classes), np.int64)
        confidences = np.zeros((calibration.BINS, 3))
        top = 0
        for strip in values:
            rows = slice(top, top + len(strip))
            classes[rows] = windows.classes(strip)
            confusion += count_pixels(label[rows], classes[rows], num_classes)
            if calibrated:
                confidences += calibration.counts(label[rows], strip)
            top = rows.stop
        return classes, confusion, confidences

    def evaluate(variables, examples, title, between=lambda: None):
        found = []
        with Bar(title, len(examples), quiet=not processes.is_first()) as bar:
            for place in range(len(examples)):
                example = examples[place]
                image, label = example["image"], example["label"]
                values: Iterable[np.ndarray] = strips(variables, image, place)
                if refine:
                    values = [refine(image, np.concatenate([*values]))]
                classes, *counts = count(values, label)
                label, classes = _without_frame(examples, place, label, classes)
                counts.append(boundary_iou.counts(label, classes, num_classes))
                if not native:
                    counts.append(boundary.counts(label, classes, num_classes))
                found.append(counts)
                bar.advance(place + 1)
                between()
        confusion, confidences, bands, *edges = zip(*found, strict=True)
        return Counts(
            confusion=np.stack(confusion).astype(np.int32),
            boundary=None if native else np.stack(edges[0]),
            names=_names(examples),
            boundary_iou=np.stack(bands),
            calibration=np.stack(confidences) if calibrated else None,
        )

    return evaluate


def score_natively(
    experiment: Experiment,
    variables: Variables,
    examples: loader.Source,
    title: str,
    between: Callable[[], None],
) -> Counts:
    """Score a network on labels as they are stored, as `segjax evaluate --native` does.

    Every process scores all examples, on one device. Arguments are those of the function that
    `build_image_evaluator` returns.
    """
    strips = windows.build_strips(experiment, outputs.logits(experiment), "resolution")
    variables = parallel.place(variables, parallel.local(experiment.devices)[:1])
    evaluate = build_image_evaluator(experiment, strips, native=True)
    return evaluate(variables, examples, title, between)


def recompute_batch_norm(
    experiment: Experiment,
    variables: Variables,
    examples: Examples,
    between: Callable[[], None] = lambda: None,
) -> Variables:
    """Replace the running statistics with means over the training set, as the SegNet authors do.

    Average the batch means and unbiased batch variances (factor m / (m - 1), m values a channel) of
    each layer over n // b + n % b batches, without augmentation, b = `batch_size` and n the number
    of training images, which repeat in order (`compute_bn_statistics.py`).

    Args:
      experiment: network, config and devices.
      variables: of the network.
      examples: training images.
      between: called after each batch; may raise.
    """
    config, devices = experiment.config, experiment.devices
    step = parallel.parallelize(
        steps.build_statistics_step(
            experiment.model, config, experiment.info, axis_name=experiment.axis_name
        ),
        devices,
        donate=True,
    )
    size = config.batch_size
    own = range(size)[parallel.own(size, devices)]
    count = loader.num_examples(examples)
    batches = count // size + count % size
    sums = parallel.place(jax.tree.map(jnp.zeros_like, variables["batch_stats"]), devices)
    with Bar("batch normalization", batches, quiet=not processes.is_first()) as bar:
        for batch in range(batches):
            places = [(batch * size + place) % count for place in own]
            raw = loader.pick(examples, places)
            sums = step(sums, variables, parallel.split(raw, devices))
            bar.advance(batch + 1)
            between()

    unbiased = _unbiased(experiment, variables, size)

    def average(path, total):
        mean = total / (batches * (1 - BATCH_NORM_MOMENTUM))
        return mean * unbiased[path[:-1]] if path[-1].key == "var" else mean

    return {**variables, "batch_stats": jax.tree.map_with_path(average, sums)}


def _unbiased(experiment, variables, batch_size):
    """Return m / (m - 1) for the path of each batch normalization, m from its output size."""
    height, width = experiment.config.data.resolution

    def apply(variables):
        model = experiment.model.clone(axis_name=None)
        image = jnp.zeros((batch_size, height, width, len(experiment.info.mean)))
        return model.apply(
            variables,
            image,
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )[1]["intermediates"]

    factors = {}
    for path, output in jax.tree.leaves_with_path(jax.eval_shape(apply, variables)):
        values = output.size // output.shape[-1]
        factors[path[:-2]] = values / max(values - 1, 1)  # path ends in "__call__", 0
    return factors


def result_row(
    experiment: Experiment,
    description: Description,
    counts: Counts,
    *,
    split: str,
    data_digest: str,
    num_images: int,
    parameters: int,
    facts: dict[str, Any],
    batch_norm: str,
) -> dict[str, Any]:
    """Return the result row (`segjax.results.rows.ResultRow`) of a run on a split."""
    config, info = experiment.config, experiment.info
    known = {"data_digest": data_digest} if data_digest else {}
    return {
        "schema": results.SCHEMA,
        "experiment": description.experiment,
        "name": description.name,
        "overrides": description.overrides,
        "command": description.command,
        "model": config.model.name,
        "model_options": config.model.options.to_dict(),
        "parameters": parameters,
        "pretrained": bool(config.model.pretrained),
        "config_digest": configs.digest(config),
        "seed": config.seed,
        "dataset": config.data.dataset,
        "split": split,
        **known,
        "num_images": num_images,
        "resolution": list(config.data.resolution),
        **results.scored(counts.total, info.class_names, counts.boundary),
        **results.measured(counts),
        "steps": facts["steps"],
        "epochs": facts["steps"] * config.batch_size / info.splits["train"].num_images,
        "best_step": facts["best_step"],
        "seconds": round(facts["seconds"], 1),
        "batch_norm": batch_norm,
        **results.provenance(experiment.device_name, experiment.devices[0].platform),
    }
