"""Exported networks give the labels of the run: as weights, from the hub, and as a program."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import segjax
from segjax import export, results
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.runs import experiment
from support import hub
from support.errors import command_refusal, refusal
from support.runs import arrays, tiny_config, train_smoke

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, scenes_data_dir):
    """Return the workdir of a run of two steps on one device."""
    return train_smoke(tmp_path_factory.mktemp("smoke") / "run", scenes_data_dir)


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """Return the folder of its exported weights."""
    folder = tmp_path_factory.mktemp("exported") / "weights"
    assert main(["export", str(workdir), "--output", str(folder)]) == 0
    return folder


PIXELS = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)


def predicted(workdir, folder, *flags, pixels=PIXELS):
    """The label map that `segjax predict` writes."""
    Image.fromarray(pixels).save(folder / "street.png")
    command = ["predict", str(folder / "street.png"), "--workdir", str(workdir)]
    assert main([*command, "--output", str(folder / "out"), *flags]) == 0
    with Image.open(folder / "out" / "street.png") as label:
        return np.asarray(label)


def test_the_arrays_are_those_of_the_checkpoint(workdir, exported):
    found = load_file(exported / "model.safetensors")
    saved = arrays(workdir, "final")
    assert {f"['{name}']".replace("/", "']['"): x.tobytes() for name, x in found.items()} == {
        name: x.tobytes() for name, x in saved.items()
    }
    assert any(name.startswith("batch_stats/") for name in found)
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}


def test_an_exported_folder_is_opened_like_the_run(workdir, exported, tmp_path, scenes_data_dir):
    run = segjax.load(exported)
    np.testing.assert_array_equal(run.predict(PIXELS), predicted(workdir, tmp_path), strict=True)
    np.testing.assert_array_equal(predicted(exported, tmp_path), run.predict(PIXELS))
    assert run.row == results.read([workdir / "result.json"])[0]
    assert run.config.data.data_dir == ""  # no path of this machine
    arguments = ["evaluate", "--workdir", str(exported), "--data-dir", str(scenes_data_dir)]
    assert main(arguments) == 0
    row = results.read([exported / "evaluation_test_final.json"])[0]
    own = {"finished": "", "device": ""}  # it is evaluated on two devices
    assert {**row, **own} == {**run.row, **own}
    with pytest.raises(UserError, match="has the weights of checkpoint final, not best"):
        segjax.load(exported, "best")


def test_pushed_to_the_hub_and_loaded_elsewhere(
    workdir, tmp_path, monkeypatch, capsys, scenes_data_dir
):
    expected = predicted(workdir, tmp_path)
    monkeypatch.chdir(tmp_path)
    with hub.serve(monkeypatch, tmp_path / "cache") as (repositories, asked):
        assert main(["push", str(workdir), "someone/street"]) == 0
        assert capsys.readouterr().out.endswith("/someone/street\n")
        files = repositories["someone/street"]
        assert set(files) == {"README.md", "config.json", "model.safetensors", "result.json"}
        assert files["result.json"] == (workdir / "result.json").read_bytes()
        card = files["README.md"].decode()
        row = json.loads(files["result.json"])
        assert f"| mean IoU | {100 * row['mean_iou']:.1f} |" in card
        assert "| license of the data | Apache-2.0 (drawn by segjax) |" in card
        assert row["command"] in card
        np.testing.assert_array_equal(predicted("hf:someone/street", tmp_path), expected)
        np.testing.assert_array_equal(segjax.load("hf:someone/street").predict(PIXELS), expected)
        assert not any("/v2" in path for path in asked)
        segjax.load("hf:someone/street@v2")
        assert any("/revision/v2" in path or "/resolve/v2/" in path for path in asked)
        arguments = ["--workdir", "hf:someone/street", "--data-dir", str(scenes_data_dir)]
        assert main(["evaluate", *arguments]) == 0
        assert (tmp_path / "someone" / "street" / "evaluation_test_final.json").exists()
        said = refusal(segjax.load, "hf:someone/other")
        assert said.startswith("hf:someone/other cannot be downloaded: ")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        said = refusal(export.push, workdir, "someone/street")
        assert said.startswith("someone/street cannot be uploaded: ")
    assert refusal(segjax.load, "hf:street").endswith(
        "expected hf:user/name or hf:user/name@revision"
    )


BARE = """
import sys, jax, numpy
assert not any(name.split(".")[0] == "segjax" for name in sys.modules)
with open(sys.argv[1], "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
assert exported.platforms == ("cpu", "cuda", "tpu")
numpy.save(sys.argv[3], exported.call(numpy.load(sys.argv[2])))
"""


def run_bare(program, images, folder):
    """Run an exported program in a process that imports JAX and NumPy alone."""
    np.save(folder / "images.npy", images)
    files = [str(x) for x in (program, folder / "images.npy", folder / "labels.npy")]
    subprocess.run([sys.executable, "-I", "-c", BARE, *files], check=True, cwd=folder)
    return np.load(folder / "labels.npy")


@pytest.mark.parametrize(
    ("model", "options", "scores"),
    [
        ("segnet", {"width": 2}, "conv1_1_D"),  # unpools by indices
        # Its pools overlap, and it interpolates.
        ("deeplab_largefov", {"width": 4, "fc_width": 32}, "fc8"),
    ],
)
def test_a_program_gives_the_labels_of_predict(model, options, scores, scenes_data_dir, tmp_path):
    config = tiny_config(scenes_data_dir, model__name=model, model__options=options, num_devices=2)
    run = experiment.create(config)
    image = np.zeros((1, 24, 32, 3), np.float32)
    variables = jax.jit(lambda key: run.model.init(key, image, train=False))(jax.random.key(0))
    images = np.stack([PIXELS, PIXELS[::-1], PIXELS])
    mean = jax.jit(outputs.logits(run))(variables, images / np.float32(255), None).mean((0, 1, 2))
    variables["params"][scores]["bias"] -= mean  # or the random network may have one class alone
    labels = outputs.build_predictor(run)
    expected = labels(variables, images)
    assert len(np.unique(expected)) > 1

    path = tmp_path / "model.stablehlo"
    path.write_bytes(export.program(run, variables, PIXELS.shape[:2]))
    found = run_bare(path, images, tmp_path)
    np.testing.assert_array_equal(found, expected, strict=True)
    exported = jax.export.deserialize(
        bytearray(export.program(run, variables, PIXELS.shape[:2], logits=True))
    )
    logits = exported.call(images[:1])
    assert (logits.dtype, logits.shape) == (np.float32, (1, 37, 61, 11))
    np.testing.assert_array_equal(logits.argmax(-1), expected[:1])
    module = exported.mlir_module()
    assert "stablehlo.convolution" in module
    assert set(re.findall(r"custom_call @(\w+)", module)) == {"shape_assertion"}  # none of ours


@pytest.mark.parametrize(
    ("precision", "size", "rounding"),
    [
        ("float32", (24, 32), 1e-4),
        ("float32", (37, 61), 1e-4),
        ("bfloat16", (24, 32), 2**-6),
    ],
)
def test_the_program_of_a_run_gives_the_labels_of_predict_native(
    workdir, scenes_data_dir, tmp_path, precision, size, rounding
):
    if precision == "bfloat16":
        workdir = train_smoke(tmp_path / "run", scenes_data_dir, "--config.precision=bfloat16")
    pixels = PIXELS[: size[0], : size[1]]
    expected = predicted(workdir, tmp_path, "--native", pixels=pixels)[None]
    folder = tmp_path / "new"
    command = ["export", str(workdir), "--format", "stablehlo", "--output", str(folder)]
    if size != (24, 32):  # that of training
        command += ["--size", "37x61"]
    assert main(command) == 0
    labels = run_bare(folder / "model.stablehlo", pixels[None], tmp_path)
    assert (labels.shape, labels.dtype) == ((1, *size), np.uint8)

    # The program sums in another order than the run: where their labels differ, the scores of both
    # must be equal but for rounding.
    assert main([*command, "--logits"]) == 0
    logits = run_bare(folder / "model.stablehlo", pixels[None], tmp_path)
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    lost = logits.max(-1) - np.take_along_axis(logits, expected[..., None], -1)[..., 0]
    assert lost.max() <= rounding * logits.std()
    assert precision == "bfloat16" or (labels != expected).mean() < 0.01


def test_a_folder_keeps_nothing_of_a_former_export(workdir, tmp_path, scenes_data_dir, capsys):
    folder = tmp_path / "weights"
    assert main(["export", str(workdir), "--output", str(folder)]) == 0
    assert main(["export", str(folder), "--output", str(folder)]) == 0  # onto itself
    assert (folder / "result.json").exists()
    assert main(["export", str(workdir), "--checkpoint", "best", "--output", str(folder)]) == 0
    assert not (folder / "result.json").exists()  # that of the final weights
    program = ["--format", "stablehlo", "--output", str(folder)]
    assert main(["export", str(workdir), *program]) == 0
    assert not (folder / "result.json").exists()  # the weights are still those of `best`
    assert main(["export", str(workdir), "--output", str(folder)]) == 0
    assert main(["export", str(workdir), "--checkpoint", "best", *program]) == 0
    assert (folder / "result.json").exists()
    other = train_smoke(tmp_path / "other", scenes_data_dir, "--config.seed=1")
    capsys.readouterr()
    error = command_refusal(capsys, ["export", other, "--output", folder])
    assert error == f"workdir {folder} holds a run of another config: seed is 1, was 0"


def test_a_hub_that_cannot_be_reached_is_one_line(workdir, monkeypatch, capsys):
    def fail(*_, **__):
        raise LookupError("as the HTTP client of the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    error = command_refusal(capsys, ["push", workdir, "someone/street"])
    assert error == "someone/street cannot be uploaded: as the HTTP client of the hub"


def test_what_cannot_be_exported_is_refused(workdir, tmp_path, capsys):
    for command, said in (
        (["export", workdir, "--output", workdir], "is a run directory"),
        (
            ["export", workdir, "--output", tmp_path, "--logits"],
            "--size and --logits need --format stablehlo",
        ),
        (["push", tmp_path, "a/b"], "has no result.json, expected a finished run"),
        (["push", workdir, "a"], "expected user/name"),
    ):
        assert said in command_refusal(capsys, command)
