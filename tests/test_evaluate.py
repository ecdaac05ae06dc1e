"""Test `segjax evaluate` with ensembles, the dense CRF and test-time augmentation."""

import fnmatch
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import evaluate, models, results, train
from segjax.cli import main
from segjax.errors import UserError
from segjax.inference import crf, outputs
from segjax.report import table as drawing
from segjax.report import tables
from segjax.results.summary import summarize
from segjax.runs.experiment import Description
from support.runs import DESCRIPTION, OneLayer, evaluated, opened, small_config

pytestmark = pytest.mark.slow

CRF = "1,1,2,8,10"


class TwoLayers(OneLayer):
    """The same network under another name."""


@pytest.fixture(scope="module")
def runs(scenes_data_dir, tmp_path_factory):
    """Return the folder of three runs: a and b differ in seed, c in network and batch size."""
    folder = tmp_path_factory.mktemp("ensemble")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "one_layer", OneLayer)
        patch.setitem(models.MODELS, "two_layers", TwoLayers)
        train.train(small_config(scenes_data_dir), folder / "a", DESCRIPTION)
        description = Description("tiny", "seed=1", {"seed": 1}, "segjax train --config.seed=1")
        train.train(small_config(scenes_data_dir, seed=1), folder / "b", description)
        config = small_config(scenes_data_dir, model__name="two_layers", eval_batch_size=1)
        config.data.normalization = "none"
        train.train(config, folder / "c", Description("other", "other", {}, "segjax train"))
        yield folder


@pytest.fixture(scope="module")
def counted(runs):
    """Return f(names, crf) -> confusion matrix of an ensemble, computed image by image."""
    predicted = {}
    for name in "abc":
        run, variables = opened(runs / name)
        predict = jax.jit(
            lambda variables, image, run=run: run.model.apply(variables, image, train=False)
        )
        predicted[name] = []
        examples = list(run.open_split("test"))
        for example in examples:
            image = example["image"].astype(np.float32) / 255
            if run.config.data.normalization == "mean_std":
                image = ((image - run.info.mean) / run.info.std).astype(np.float32)
            logits = predict(variables, image[None])[0]
            predicted[name].append(np.asarray(jax.nn.softmax(logits)))

    def count(names, parameters=None):
        counts = np.zeros((11, 11), np.int64)
        for k, example in enumerate(examples):
            mean = np.mean([predicted[name][k] for name in names], 0)
            if parameters:
                mean = crf.refine(crf.parse(parameters), example["image"], mean)
            seen = example["label"] != 255
            np.add.at(counts, (example["label"][seen], mean.argmax(-1)[seen]), 1)
        return counts

    return count


@pytest.mark.parametrize(
    ("names", "arguments", "file", "inference"),
    [
        ("ab", (), "evaluation_test_final_ensemble_*.json", "mean of 2 networks"),
        ("cab", (), "evaluation_test_final_ensemble_*.json", "mean of 3 networks"),
        ("a", (CRF,), f"evaluation_test_final_crf_{CRF}.json", f"crf {CRF}"),
        (
            "ac",
            (CRF,),
            f"evaluation_test_final_ensemble_*_crf_{CRF}.json",
            f"mean of 2 networks, crf {CRF}",
        ),
    ],
)
def test_probabilities_are_averaged_then_refined(runs, counted, names, arguments, file, inference):
    flags = ("--crf", *arguments) if arguments else ()
    row, path = evaluated([runs / name for name in names], *flags)
    assert row["inference"] == inference
    assert fnmatch.fnmatch(path.name, file)
    made, expected = np.array(row["confusion"]), counted(names, *arguments)
    # The summation order may decide a pixel that is almost a tie.
    np.testing.assert_array_equal(made.sum(1), expected.sum(1))
    assert np.abs(made - expected).sum() <= 4
    alone = results.read([runs / names[0] / "result.json"])[0]
    assert np.abs(made - alone["confusion"]).sum() > 40


def test_augmented_predictions_are_averaged(runs):
    flags = ("--scales", "0.5", "1", "--flip")
    row, path = evaluated([runs / "a"], *flags)
    assert path.name == "evaluation_test_final_scales_0.5_1_flip.json"
    assert row["inference"] == "scales 0.5 1 flip"

    run, variables = opened(runs / "a")
    network = outputs.probabilities(run)
    counts = np.zeros((11, 11), int)
    source = run.open_split("test")
    for example in (source[k] for k in range(len(source))):
        image = jnp.asarray(example["image"], jnp.float32)[None] / 255
        height, width = image.shape[1:3]
        predictions = []
        for size in ((height // 2, width // 2), (height, width)):
            shown = jax.image.resize(image, (1, *size, 3), "linear")
            for mirrored in (False, True):
                output = network(variables, shown[:, :, ::-1] if mirrored else shown, jnp.zeros(1))
                output = output[:, :, ::-1] if mirrored else output
                predictions.append(jax.image.resize(output, (1, height, width, 11), "linear"))
        guess = np.mean(predictions, 0)[0].argmax(-1)
        seen = example["label"] != 255
        np.add.at(counts, (example["label"][seen], guess[seen]), 1)
    made = np.array(row["confusion"])
    np.testing.assert_array_equal(made.sum(1), counts.sum(1))
    assert np.abs(made - counts).sum() <= 4
    alone = results.read([runs / "a" / "result.json"])[0]
    assert np.abs(made - alone["confusion"]).sum() > 40


def test_ensemble_row_names_all_members(runs):
    a, b, c = (runs / name for name in "abc")
    row, _ = evaluated([a, b, c])
    rows = [results.read([runs / name / "result.json"])[0] for name in "abc"]
    assert row["name"] == "tiny + seed=1 + other"
    assert (row["experiment"], row["model"]) == ("tiny + other", "one_layer + two_layers")
    for name in ("parameters", "steps", "epochs"):
        assert row[name] == sum(each[name] for each in rows)
    assert (row["seed"], row["best_step"], row["overrides"]) == (None, None, {})
    assert row["batch_norm"] == "recomputed"
    digests = {row["config_digest"], *(each["config_digest"] for each in rows)}
    assert len(digests) == 3  # a and b share one; c and the ensemble have their own
    assert evaluated([a, c, b])[0]["config_digest"] == row["config_digest"]
    assert evaluated([a, b])[0]["config_digest"] != row["config_digest"]


def test_rows_of_different_inference_are_not_averaged(runs):
    before = results.read([runs / "a" / "result.json"])[0]
    after, _ = evaluated([runs / "a"], "--crf", CRF)
    assert "inference" not in before
    table = tables.render(summarize([before, after, {**before, "seed": 1}]))
    heading, _, *lines = table.split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (heading, *lines)]
    column, seeds = cells[0].index("inference"), cells[0].index("seeds")
    assert sorted((row[column], row[seeds]) for row in cells[1:]) == [
        ("-", "2"),
        (f"crf {CRF}", "1"),
    ]
    assert "inference" not in tables.render(summarize([before]))
    assert f"inference crf {CRF}" in tables.render(summarize([after]))
    csv = drawing.draw(tables.table(summarize([after])), "csv")
    assert f",crf {CRF}," in csv.replace('"', "")


def test_rows_of_different_inference_are_both_stored(runs, tmp_path):
    before = results.read([runs / "a" / "result.json"])[0]
    after, _ = evaluated([runs / "a"], "--crf", CRF)
    assert results.append(tmp_path / "rows.jsonl", before)
    assert results.append(tmp_path / "rows.jsonl", after)
    assert not results.append(tmp_path / "rows.jsonl", after)
    assert results.read([tmp_path / "rows.jsonl"]) == [before, after]


def test_duplicate_network_is_an_error(runs, capsys):
    arguments = ["--workdir", str(runs / "a"), "--workdir", str(runs / "b" / ".." / "a")]
    assert main.main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert said == f"segjax: {runs}/b/../a is given twice, expected each network once\n"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("data.resolution", [48, 64], "has resolution 48x64, but {a} 24x32"),
        ("data.dataset", "camvid", "has dataset camvid, but {a} streetscenes"),
    ],
)
def test_networks_on_different_data_are_an_error(runs, tmp_path, capsys, field, value, said):
    content = json.loads((runs / "b" / "config.json").read_text())
    del content["checksum"]
    content["config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert main.main(["evaluate", "--workdir", str(runs / "a"), "--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} " + said.format(a=runs / "a") in error
    assert error.count("\n") == 1


def test_networks_on_other_images_are_an_error(runs, tmp_path):
    content = json.loads((runs / "b" / "config.json").read_text())
    del content["checksum"]
    content["data"]["splits"]["test"]["digest"] = "another"
    (tmp_path / "config.json").write_text(json.dumps(content))
    said = f"the test split of {tmp_path} is not that of {runs}/a; averaged networks must"
    with pytest.raises(UserError, match=said):
        evaluate.evaluate_workdirs([runs / "a", tmp_path], "test")


def test_the_data_of_one_network_are_enough_for_an_ensemble(runs, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs / "b", moved)
    content = json.loads((moved / "config.json").read_text())
    del content["checksum"]
    content["config"]["data.data_dir"] = str(tmp_path / "none")
    (moved / "config.json").write_text(json.dumps(content))
    paths = []
    for other in (runs / "b", moved):
        path, row, _ = evaluate.evaluate_workdirs([runs / "a", other], "test")
        assert row["inference"] == "mean of 2 networks"
        paths.append(path)
    assert paths[0] != paths[1]  # of another training, with the same config and seed


def test_the_latest_checkpoint_has_a_line_of_its_own(runs):
    row, path = evaluated([runs / "a"], "--checkpoint", "latest")
    assert row["inference"] == "latest checkpoint"
    assert path.name == "evaluation_test_latest.json"


def test_calibration_does_not_overwrite_the_plain_evaluation(runs):
    _, plain = evaluated([runs / "a"])
    _, calibrated = evaluated([runs / "a"], "--calibration")
    assert (plain.name, calibrated.name) == (
        "evaluation_test_final.json",
        "evaluation_test_final_calibrated.json",
    )


def test_networks_with_different_classes_are_an_error(runs, tmp_path):
    content = json.loads((runs / "b" / "config.json").read_text())
    del content["checksum"]
    content["data"]["class_names"][0] = "Heaven"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has classes Heaven, Building.*, but .* Sky, Building"):
        evaluate.evaluate_workdirs([runs / "a", tmp_path], "test")
