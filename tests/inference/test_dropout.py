"""Test Monte Carlo dropout with `segjax evaluate` and `segjax predict` on a tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from segjax import models, predict, train
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.inference import dropout, outputs
from segjax.models.layers import ConvBlock
from support.runs import DESCRIPTION, OneLayer, opened, small_config


class Dropping(OneLayer):
    """A network of one layer, with dropout."""

    @nn.compact
    def __call__(self, image, *, train):
        x = ConvBlock(4, 3, dtype=self.dtype, axis_name=self.axis_name, name="layer")(
            image.astype(self.dtype), train=train
        )
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="classifier")(x)


@pytest.fixture(scope="module")
def runs(scenes_data_dir, tmp_path_factory):
    """Folder of two finished runs, one with dropout and one without."""
    folder = tmp_path_factory.mktemp("uncertainty")
    with pytest.MonkeyPatch.context() as patch:
        for name, network in (("dropping", Dropping), ("one_layer", OneLayer)):
            patch.setitem(models.MODELS, name, network)
            train.train(small_config(scenes_data_dir, model__name=name), folder / name, DESCRIPTION)
        yield folder


def test_evaluation_averages_samples_of_each_image(runs, capsys):
    workdir = runs / "dropping"
    arguments = ["evaluate", "--workdir", str(workdir), "--samples", "3"]
    assert main(arguments) == 0
    path = workdir / "evaluation_test_final_samples_3.json"
    assert str(path) in capsys.readouterr().out
    row = json.loads(path.read_text())
    assert row["inference"] == "mean of 3 samples"

    run, variables = opened(workdir)
    sampled = jax.jit(dropout.probabilities(run, 3))
    counts = np.zeros((11, 11), np.int64)
    for place, example in enumerate(run.open_split("test")):
        image = jnp.asarray(example["image"], jnp.float32)[None] / 255
        labels = np.argmax(sampled(variables, image, jnp.array([place], jnp.int32))[0], -1)
        valid = example["label"] != 255
        np.add.at(counts, (example["label"][valid], labels[valid]), 1)
    # Probabilities of batches differ in the last digits, which may decide a pixel.
    assert np.abs(counts - np.array(row["confusion"])).sum() <= 4

    assert main(["evaluate", "--workdir", str(workdir)]) == 0
    plain = json.loads((workdir / "evaluation_test_final.json").read_text())
    assert "inference" not in plain
    assert plain["confusion"] != row["confusion"]


def test_predictors_refuse_images_that_are_not_uint8_of_the_datasets_channels(runs):
    run, variables = opened(runs / "dropping")
    right = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    wrong = (
        right / 255,
        right.astype(np.float32),
        right.astype(np.uint16) * 257,
        right.astype(np.int32),
        right > 127,
        right[0],
        right[..., :1],
        right[:0],
        right.tolist(),
    )
    predict = outputs.build_predictor(run)
    assert predict(variables, jnp.asarray(right))[0].shape[-2:] == (8, 8)
    for images in wrong:
        message = r"^images of shape .* and type .*, expected uint8 \(B, H, W, 3\)$"
        with pytest.raises(UserError, match=message):
            predict(variables, images)


def test_gray_maps_are_white_at_1_and_at_a_half(runs, tmp_path, monkeypatch):
    def predictor(variables, image):
        size = image.shape[:2]
        return [np.zeros(size, np.uint8), np.full(size, 0.4), np.full(size, 0.1)]

    monkeypatch.setattr(predict, "_predictor", lambda *_: predictor)
    Image.new("RGB", (5, 4)).save(tmp_path / "image.png")
    command = ["predict", str(tmp_path / "image.png"), "--workdir", str(runs / "dropping")]
    assert main([*command, "--output", str(tmp_path / "out"), "--samples", "2"]) == 0
    for name, value in (("confidence", 102), ("deviation", 51)):  # 0.4 of 1, 0.1 of 0.5
        with Image.open(tmp_path / "out" / f"image_{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.full((4, 5), value))


def test_prediction_writes_confidence_and_deviation(runs, tmp_path):
    image, size = tmp_path / "image.png", (61, 37)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(image)
    found = []
    for flags in ([], [], ["--crf"]):
        output = tmp_path / f"out{len(found)}"
        arguments = ["predict", str(image), "--workdir", str(runs / "dropping")]
        assert main([*arguments, "--output", str(output), "--samples", "3", *flags]) == 0
        found.append({path.name: path.read_bytes() for path in output.iterdir()})
        with Image.open(output / "image_confidence.png") as confidence:
            assert (confidence.mode, confidence.size) == ("L", size)
            assert np.asarray(confidence).min() >= 255 // 11
        with Image.open(output / "image_deviation.png") as deviation:
            assert (deviation.mode, deviation.size) == ("L", size)
            assert np.asarray(deviation).max() > 0
    first, again, refined = found
    assert len(first) == 4
    assert first == again
    assert refined["image_confidence.png"] == first["image_confidence.png"]
    assert refined["image.png"] != first["image.png"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_network_without_dropout_is_an_error(command, runs, tmp_path, capsys):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "image.png")
    own = [str(tmp_path / "image.png"), "--output", str(tmp_path / "out")]
    arguments = [command, *(own if command == "predict" else [])]
    assert main([*arguments, "--workdir", str(runs / "one_layer"), "--samples", "2"]) == 2
    error = capsys.readouterr().err
    assert error == "segjax: OneLayer has no dropout, so all its samples are the same\n"
