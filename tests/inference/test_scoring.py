"""Test evaluation: counts of pixels, and recomputed batch-normalization statistics."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import metrics, models, results, train
from segjax.cli import main
from segjax.config import default
from segjax.data import datasets, loader
from segjax.inference import scoring
from segjax.metrics import boundary, boundary_iou
from segjax.models.layers import Conv
from segjax.runs import experiment
from segjax.training import parallel
from support.errors import refusal
from support.folders import make_folder
from support.runs import (
    DESCRIPTION,
    OneLayer,
    arrays,
    change,
    evaluated,
    small_config,
    tiny_config,
)


def create(config):
    """Return the experiment, and variables that differ from their initial values."""
    run = experiment.create(config)
    variables = run.model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    rng = np.random.default_rng(0)

    def move(path, x):
        moved = x + rng.normal(0, 0.3, x.shape).astype(np.float32)
        return jnp.abs(moved) if path[-1].key in ("var", "scale") else moved

    return run, jax.tree.map_with_path(move, variables)


@pytest.fixture(scope="module")
def counted(scenes_data_dir):
    """Return counts of five images, predicted alone and counted by NumPy; the variables."""
    run, variables = create(tiny_config(scenes_data_dir))
    predict = jax.jit(lambda image: run.model.apply(variables, image, train=False))
    source = run.open_split("val")
    counts = np.zeros((len(source), 11, 11), np.int64)
    for own, example in zip(counts, source, strict=True):
        image = (example["image"] / np.float32(255) - run.info.mean) / run.info.std
        logits = np.asarray(predict(image.astype(np.float32)[None])[0])
        for truth, guess in zip(example["label"].ravel(), logits.argmax(-1).ravel(), strict=True):
            if truth != 255:
                own[truth, guess] += 1
    assert (counts.sum((0, 1)) > 0).sum() > 1  # more than one class is predicted
    return counts, variables


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (1, 4), (2, 4)])
def test_counts_do_not_depend_on_devices_or_batches(
    scenes_data_dir, counted, num_devices, batch_size, in_memory
):
    counts, variables = counted
    run = experiment.create(
        tiny_config(scenes_data_dir, num_devices=num_devices, eval_batch_size=batch_size)
    )
    source = run.open_split("val")
    assert len(source) == 5  # the last of the batches of four has one image
    examples = loader.in_memory(source) if in_memory else source
    made = scoring.build_evaluator(run)(parallel.place(variables, run.devices), examples)
    assert made.total.dtype == np.int64
    np.testing.assert_array_equal(made.confusion, counts)
    np.testing.assert_array_equal(made.total, counts.sum(0))
    labels = np.stack([example["label"] for example in source])
    assert made.total.sum() == (labels != 255).sum()
    assert made.boundary is None


@pytest.mark.parametrize("num_devices", [1, 2])
def test_batch_norm_statistics_match_training_set(scenes_data_dir, num_devices):
    config = tiny_config(scenes_data_dir, num_devices=num_devices)
    run, variables = create(config)
    source = run.open_split("train")
    image = np.stack([example["image"] for example in source]) / np.float32(255)
    image = ((image - run.info.mean) / run.info.std).astype(np.float32)

    # Ten images in batches of four: 10 // 4 + 10 % 4 batches, repeating the images in order.
    batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    model = run.model.clone(axis_name=None)

    @jax.jit
    def convolved(variables, image):
        _, changed = model.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Conv),
        )
        return changed["intermediates"]

    names = list(variables["batch_stats"])
    assert len(names) == 8
    expected = {name: {"mean": 0.0, "var": 0.0} for name in names}
    for places in batches:
        outputs = convolved(variables, image[places])
        for name in names:
            values = np.asarray(outputs[name]["conv"]["__call__"][0], np.float64).reshape(-1, 4)
            expected[name]["mean"] += values.mean(0) / len(batches)
            expected[name]["var"] += values.var(0, ddof=1) / len(batches)

    for examples in (source, loader.in_memory(source)):
        made = scoring.recompute_batch_norm(run, parallel.place(variables, run.devices), examples)
        for name in names:
            for kind in ("mean", "var"):
                np.testing.assert_allclose(
                    made["batch_stats"][name]["bn"][kind],
                    expected[name][kind],
                    rtol=2e-4,
                    atol=2e-5,
                    err_msg=f"{name} {kind}",
                )
        for ours, theirs in zip(
            jax.tree.leaves(made["params"]), jax.tree.leaves(variables["params"]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def finished(scenes_data_dir, tmp_path_factory):
    """Return the run directory of a finished run and its result row."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "one_layer", OneLayer)
        row = train.train(small_config(scenes_data_dir), workdir, DESCRIPTION)
        yield workdir, row


def test_evaluating_final_reproduces_result(finished):
    workdir, row = finished
    again, _ = evaluated([workdir])
    assert again | {name: row[name] for name in ("finished", "device")} == row
    assert results.read([workdir / "result.json"]) == [row]


def test_evaluating_best_recomputes_statistics(finished):
    workdir, row = finished
    again, _ = evaluated([workdir], "--checkpoint", "best")
    assert again["batch_norm"] == "recomputed"
    assert (again["confusion"], again["best_step"]) == (row["confusion"], row["best_step"])


def test_limit_takes_first_images(finished, scenes_data_dir):
    workdir, _ = finished
    first, most, whole = (evaluated([workdir], "--limit", n)[0] for n in ("1", "3", "100"))
    assert [row["num_images"] for row in (first, most, whole)] == [1, 3, 5]
    run = experiment.create(small_config(scenes_data_dir))
    source = run.open_split("test")
    for count, row in ((1, first), (3, most)):
        labels = np.concatenate([source[i]["label"].ravel() for i in range(count)])
        pixels = np.bincount(labels[labels != 255], minlength=11)
        np.testing.assert_array_equal(np.sum(row["confusion"], 1), pixels)


def test_validation_split_is_evaluated_as_in_training(finished, scenes_data_dir):
    workdir, _ = finished
    row, _ = evaluated([workdir], "--split", "val", "--checkpoint", "latest")
    assert (row["split"], row["num_images"]) == ("val", 5)
    # As in training, but with recomputed statistics.
    run = experiment.create(small_config(scenes_data_dir))
    variables, facts = experiment.load_variables(run, workdir, "latest")
    assert facts["kind"] == "latest"
    variables = scoring.recompute_batch_norm(run, variables, run.open_split("train"))
    counts = scoring.build_evaluator(run)(variables, run.open_split("val"))
    assert row["mean_iou"] == metrics.scores(counts.total).mean_iou


def test_counts_per_image_are_stored(finished, scenes_data_dir):
    workdir, row = finished
    with np.load(workdir / "result.npz") as kept:
        confusion, boundaries = kept["confusion"], kept["boundary"]
    np.testing.assert_array_equal(confusion.sum(0), row["confusion"])
    source = experiment.create(small_config(scenes_data_dir)).open_split("test")
    for own, lengths, example in zip(confusion, boundaries, source, strict=True):
        label = example["label"]
        np.testing.assert_array_equal(
            own.sum(1), np.bincount(label[label != 255], minlength=11)[:11]
        )
        expected = [np.count_nonzero(boundary.boundary(label == k)) for k in range(11)]
        np.testing.assert_array_equal(lengths[:, 1], expected)
    f = boundary.f_measure(boundaries)
    assert row["boundary_f"] == boundary.mean(f)
    assert 0 < row["boundary_f_either"] <= row["boundary_f"] < 1
    assert row["per_class_boundary_f"] == boundary.per_class(f)


def test_averaged_variables_are_evaluated(finished):
    workdir, _ = finished
    final, best = arrays(workdir, "final"), arrays(workdir, "best")
    for name, x in final.items():
        if "params" in name:
            np.testing.assert_array_equal(x, best[f"['ema']{name}"])
            assert not np.array_equal(x, best[f"['variables']{name}"])


def test_folder_without_run_is_an_error(tmp_path, capsys):
    assert main.main(["evaluate", "--workdir", str(tmp_path)]) == 2
    expected = f"segjax: {tmp_path} is not the workdir of a run: it has no config.json\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("loss.class_weights", "none")])
def test_a_checkpoint_of_another_config_is_an_error(finished, tmp_path, field, value):
    """As if config.json had no checksum, or were copied from another run."""
    workdir, _ = finished
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    content = json.loads((workdir / "config.json").read_text())
    content["config"][field] = value
    del content["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    run, _ = experiment.open_run(tmp_path, None)
    for kind in ("best", "latest", "final"):
        assert refusal(experiment.load_variables, run, tmp_path, kind) == (
            f"checkpoint {kind} in {tmp_path} belongs to another config than its config.json"
        )


def test_missing_checkpoint_is_an_error(finished, tmp_path, capsys):
    workdir, _ = finished
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    assert main.main(["evaluate", "--workdir", str(tmp_path), "--checkpoint", "latest"]) == 2
    assert capsys.readouterr().err == f"segjax: {tmp_path} has no latest checkpoint\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("by_image", [True, False])
def test_the_frame_of_a_letterbox_has_no_boundaries(tmp_path, by_image):
    make_folder(tmp_path, size=(32, 64))
    place = {"data_dir": tmp_path / "data", "folder": tmp_path, "resolution": (64, 64)}
    source = datasets.open_split("folder", "val", **place, fit="letterbox")
    assert source.shown_size(0) == (32, 64)
    assert datasets.open_split("folder", "val", **place, fit="crop").shown_size(0) is None
    # Right in the image, noise in the frame.
    labels = np.stack([example["label"] for example in source])
    noise = np.random.default_rng(0).integers(0, 2, labels.shape).astype(np.uint8)
    found = np.eye(2, dtype=np.float32)[np.where(labels == 255, noise, labels)]

    config = change(default(), eval_batch_size=2)
    info = SimpleNamespace(class_names=("Ground", "Disk"))
    devices = jax.devices()[:2]
    run = SimpleNamespace(config=config, info=info, devices=devices)
    run.axis_name = parallel.axis_name(devices)
    if by_image:
        evaluate = scoring.build_image_evaluator(run, lambda _, image, place: [found[place]])
        counts = evaluate({}, source, "")
    else:
        evaluate = scoring.build_evaluator(run, lambda _, image, places: jnp.asarray(found)[places])
        variables = parallel.place({"unused": jnp.zeros(())}, devices)
        counts = evaluate(variables, source, boundaries=True)
    assert boundary.mean(boundary.f_measure(counts.boundary)) == 1
    np.testing.assert_array_equal(counts.boundary_iou[..., 0], counts.boundary_iou[..., 1])
    # As of the images alone, whose diagonal gives the tolerance and the width of the band.
    alone = [boundary.counts(label[16:48], label[16:48], 2) for label in labels]
    np.testing.assert_array_equal(counts.boundary, alone)
    bands = [boundary_iou.counts(label[16:48], label[16:48], 2) for label in labels]
    np.testing.assert_array_equal(counts.boundary_iou, bands)
