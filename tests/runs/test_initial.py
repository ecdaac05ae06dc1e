"""Runs that start from the weights of others: what fits, what is left out, what is refused."""

import shutil
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import config as configs
from segjax import export, models, train
from segjax.data.datasets import DatasetInfo
from segjax.errors import UserError
from segjax.runs import initial, weights
from segjax.runs.experiment import Experiment
from support import hub
from support.errors import refusal
from support.runs import (
    DESCRIPTION,
    OneLayer,
    arrays,
    assert_same_bits,
    change,
    small_config,
    tiny_config,
)


@pytest.fixture(autouse=True)
def _one_layer(monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)


def network(name, classes, **options):
    """An experiment without data, and its random variables as numbers that tell them apart."""
    config = change(tiny_config(""), model__name=name, data__resolution=(32, 32))
    info = DatasetInfo("tiny", tuple(map(str, range(classes))), (), (0.5,) * 3, (0.5,) * 3, {}, ())
    model = models.create(name, classes, **options)
    shapes = jax.eval_shape(
        lambda key: model.init(key, np.zeros((1, 32, 32, 3), np.float32), train=False),
        jax.random.key(0),
    )
    rng = np.random.default_rng(zlib.crc32(f"{name} {classes} {options}".encode()))
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return Experiment(config, info, jax.devices()[:1], model), variables


def write(path, variables):
    save_file({name: np.asarray(x) for name, x in weights.flatten(variables).items()}, path)
    return str(path)


def start(folder, run, theirs):
    """Flat variables of `run`, a pair of `network`, filled by a file of `theirs`, and that file."""
    source = write(folder / "theirs.safetensors", theirs)
    return weights.flatten(initial.start_from(*run, source)), source


FCN = {"width": 2, "fc_width": 4, "batch_norm": True}


def split(filled, theirs, own):
    """Names of the arrays that are those of the file, and of those that are random."""
    theirs, own = weights.flatten(theirs), weights.flatten(own)
    taken = {n for n, x in filled.items() if n in theirs and np.array_equal(x, theirs[n])}
    kept = {n for n, x in filled.items() if np.array_equal(x, own[n])}
    return taken, kept


def test_a_run_of_as_many_classes_is_taken_over_whole(tmp_path, capsys):
    _, theirs = network("fcn8s", 5, **FCN)
    run = network("fcn8s", 5, **FCN)
    filled, _ = start(tmp_path, (run[0], jax.tree.map(np.zeros_like, run[1])), theirs)
    assert_same_bits({n: np.asarray(x) for n, x in filled.items()}, weights.flatten(theirs))
    assert any(name.startswith("batch_stats/") for name in filled)
    assert capsys.readouterr().err == ""


def test_score_layers_of_another_number_of_classes_stay_and_are_named(tmp_path, capsys):
    (run, own), (_, theirs) = network("fcn8s", 5, **FCN), network("fcn8s", 7, **FCN)
    filled, source = start(tmp_path, (run, own), theirs)
    taken, kept = split(filled, theirs, own)
    scores = ("score_fr", "score_pool3", "score_pool4")
    assert kept == {f"params/{layer}/{leaf}" for layer in scores for leaf in ("bias", "kernel")}
    assert taken == filled.keys() - kept
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"segjax: warning: starting from {source}: {', '.join(scores)} keep their initialization"
    )


@pytest.mark.parametrize("classes", [5, 7])
def test_a_stage_of_fcn_starts_from_the_one_before(classes, tmp_path, capsys):
    (run, own), (_, theirs) = (
        network(name, n, upsampling="learnt", **FCN)
        for name, n in (("fcn16s", 5), ("fcn32s", classes))
    )
    filled, _ = start(tmp_path, (run, own), theirs)
    _, kept = split(filled, theirs, own)
    new = {"params/score_pool4/bias", "params/score_pool4/kernel"}
    new |= {"params/upscore2/kernel", "params/upscore16/kernel"}
    old = {"params/score_fr/bias", "params/score_fr/kernel"} if classes == 7 else set()
    assert kept == new | old
    said = capsys.readouterr().err
    assert "score_pool4, upscore16, upscore2 keep their initialization, and upscore32 are" in said


def test_the_context_module_starts_after_the_front_end(tmp_path):
    options = {"width": 2, "fc_width": 4}
    (run, own), (_, theirs) = (
        network("dilation8", 5, context=context, **options) for context in ("basic", "none")
    )
    taken, kept = split(start(tmp_path, (run, own), theirs)[0], theirs, own)
    assert kept
    assert all(name.startswith("params/ctx_") for name in kept)
    assert taken == weights.flatten(theirs).keys()


def without(name):
    return lambda flat: {n: x for n, x in flat.items() if n != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("batch_stats/conv1/bn/mean"), " lacks batch_stats/conv1/bn/mean, which segnet_"),
        (without("params/conv1/conv/kernel"), " lacks params/conv1/conv/kernel, which segnet_"),
        (
            lambda flat: flat | {"params/conv2/bn/bias": np.zeros(3, np.float32)},
            ": params/conv2/bn/bias is 3, expected 2 of segnet_basic",
        ),
        (
            lambda flat: (
                flat
                | {"params/conv_classifier/bias": np.zeros(7, np.float32)}
                | {"params/conv_classifier/kernel": np.zeros((1, 1, 9, 7), np.float32)}
            ),
            ": params/conv_classifier/kernel is 1x1x9x7, expected 1x1x2x7 of segnet_basic",
        ),
        (
            lambda flat: flat | {"params/more/kernel": np.zeros((1, 1, 2, 4))},
            " has params/more/kernel, which segnet_basic lacks",
        ),
        (
            lambda flat: flat | {"params/conv1/conv/bias": np.zeros(2, int)},
            ": params/conv1/conv/bias is int64, expected floating point",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, said, tmp_path):
    run, own = network("segnet_basic", 5, width=2)
    flat = change(weights.flatten(own))
    source = tmp_path / "theirs.safetensors"
    save_file(flat, source)
    found = refusal(initial.start_from, run, own, str(source))
    assert found.startswith(f"{source}{said}")


def test_a_source_that_is_none_is_refused(tmp_path):
    run, own = network("segnet_basic", 5, width=2)
    for source in (str(tmp_path), "nowhere/run"):
        assert f"'model.init_from' is {source!r}, expected" in refusal(
            initial.start_from, run, own, source
        )
    (tmp_path / "damaged.safetensors").write_bytes(b"PK")
    said = refusal(initial.start_from, run, own, str(tmp_path / "damaged.safetensors"))
    assert "cannot be read as a safetensors file" in said


def test_pretrained_and_init_from_together_are_refused():
    config = configs.default()
    config.data.normalization = "imagenet"
    config.model.pretrained, config.model.init_from = "timm/vgg16.tv_in1k", "runs/first"
    said = refusal(configs.check, config)
    assert said.startswith("config field 'model.init_from' must be empty where model.pretrained is")


@pytest.mark.slow
def test_a_run_starts_from_a_run_once(scenes_data_dir, tmp_path, monkeypatch, capsys):
    first = tmp_path / "first"
    train.train(small_config(scenes_data_dir, steps=2), first, DESCRIPTION)
    theirs = arrays(first, "final")

    def tuned(name, source, **changed):
        config = small_config(
            scenes_data_dir,
            model__init_from=source,
            optimizer__learning_rate=0.0,  # so that what it starts from is what it ends with
            steps=2,
            **changed,
        )
        train.train(config, tmp_path / name, DESCRIPTION)
        return arrays(tmp_path / name, "latest")

    capsys.readouterr()
    found = tuned("second", str(first))
    assert "warning" not in capsys.readouterr().err
    for name, x in theirs.items():
        if name.startswith("['params']"):
            for part in ("variables", "ema"):
                np.testing.assert_allclose(found[f"['{part}']{name}"], x, rtol=1e-6)

    # The same bits from the hub, whose copy has its batch normalization as well.
    with hub.serve(monkeypatch, tmp_path / "cache"):
        export.push(first, "someone/first")
        assert_same_bits(tuned("third", "hf:someone/first"), found)
    tuned("fourth", str(first), data__normalization="none")
    assert "whose data.normalization is mean_std, this run's is none" in capsys.readouterr().err

    # Before its end a run has no final model, only the best so far.
    shutil.copytree(first, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "checkpoints" / "final")
    tuned("sixth", str(tmp_path / "unfinished"))
    said = f"{tmp_path / 'unfinished'} is not finished: starting from its best checkpoint, step 2"
    assert said in capsys.readouterr().err

    # A second start reads its checkpoint, and no longer the source.
    first.rename(tmp_path / "moved")
    (tmp_path / "second" / "result.json").unlink()
    tuned("second", str(first))
    with pytest.raises(UserError, match=r"'model\.init_from' is .*/first', expected"):
        tuned("fifth", str(first))


@pytest.mark.slow
def test_frozen_parameters_keep_their_bits_through_training(scenes_data_dir, tmp_path):
    config = small_config(scenes_data_dir, ema_decay=0.0, optimizer__weight_decay=0.1)
    config.optimizer.rates["layer/*"] = 0.0
    train.train(config, tmp_path / "run", DESCRIPTION)
    start, end = (arrays(tmp_path / "run", "latest", step) for step in (2, 4))
    for name in start:
        if name.startswith("['variables']['params']"):
            same = start[name].tobytes() == end[name].tobytes()
            assert same == ("layer" in name), name
    # Running averages of a frozen layer go on.
    mean = "['variables']['batch_stats']['layer']['bn']['mean']"
    assert not np.array_equal(start[mean], end[mean])

    # It resumes, with a state of the optimizer that lacks the frozen parameters.
    (tmp_path / "run" / "result.json").unlink()
    assert train.train(config, tmp_path / "run", DESCRIPTION)["steps"] == 4
