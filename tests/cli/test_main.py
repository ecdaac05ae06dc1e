"""The command line: help without heavy imports, and one-line errors."""

import subprocess
import sys

import pytest

import segjax
from segjax.cli.main import main
from segjax.ops.onednn import build

COMMANDS = (
    *("data", "train", "evaluate", "predict", "sweep", "table", "picture", "preview", "floors"),
    *("models", "figures", "report", "benchmark", "reproduce"),
)

# Modules that --help and --version must not import.
HEAVY = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy", "matplotlib", "PIL"),
    *("tensorflow", "tensorflow_datasets", "array_record", "grain", "wandb"),
    *("ml_collections", "yaml", "rich"),
)


def test_the_version_names_the_implementation_of_convolutions():
    script = (
        "import sys\n"
        "from segjax.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, jax, engine, imported = done.stdout.splitlines()
    assert version == f"segjax {segjax.__version__}"
    assert jax.startswith("jax 0.")
    assert engine == f"convolutions on a CPU: {build.describe()}"
    assert imported == "[]"


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from segjax.cli.main import main\n"
        "for arguments in [[], *([command] for command in sys.argv[1:])]:\n"
        "    try: main([*arguments, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"\n    {name}" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: segjax {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["train"], "--config, --workdir"),
        (["train", "--config", "nowhere.py", "--workdir", "x"], "nowhere.py does not exist"),
        (
            ["train", "--config", "experiments/segnet.py", "--workdir", "x", "--config.stepz=3"],
            "did you mean 'steps'",
        ),
        (
            ["train", "--config", "experiments/quickstart.py", "--workdir", "x", "--stepz=3"],
            "unknown argument '--stepz=3'",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.model.name=segnat",
            ],
            "unknown model 'segnat'; known: ",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.model.options.depth=3",
            ],
            "unknown option 'depth' of model unet",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.model.options.dtype=bfloat16",
            ],
            "model.options.dtype is not an option",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.model.options.width=0",
            ],
            "option 'width' of model unet is 0",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.data.dataset=cityscapes",
            ],
            "cityscapes",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.num_devices=64",
            ],
            "num_devices=64, but this host has 2",
        ),
        (
            [
                *("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w"),
                "--config.batch_size=3",
                "--config.num_devices=2",
            ],
            "batch_size / micro_batches is 3, which 2 devices do not divide",
        ),
        (
            ["train", "--config", "experiments/camvid_small.py", "--workdir", "{tmp}/w",
             "--config.data.data_dir={tmp}/none"],
            "segjax data camvid",
        ),
        (["evaluate", "--workdir", "{tmp}/none"], "is not the workdir of a run"),
        (["evaluate", "--workdir", "x", "--limit", "0"], "integer >= 1"),
        (["evaluate", "--workdir", "x", "--crf", "v3"], "CRF 'v3', expected v1, v2 or five"),
        (["evaluate", "--workdir", "x", "--crf", "3,1,4,0,3"], "CRF bi_xy is 0"),
        (["predict", "a.png", "--workdir", "x", "--output", "y", "--crf="], "CRF ''"),
        (["picture", "--results", "x", "--output", "y.png", "--crf", "3"], "CRF '3', expected"),
        (["table", "--results", "{tmp}/none"], "none"),
        (["table", "--results", "x", "--format", "word"], "invalid choice: 'word'"),
        (["table", "--results", "x", "--color"], "unknown argument '--color'"),
        (["picture", "--results", "{tmp}", "--output", "x.png"], "no results, expected a result"),
        (["data", "imagenet"], "imagenet"),
        (["data", "camvid", "--source", "{tmp}"], "train.txt"),
        (["data", "streetscenes", "--resolution", "96"], "HEIGHTxWIDTH"),
        (["floors", "--dataset", "nothing"], "nothing"),
    ],
)  # fmt: skip
def test_a_mistake_gives_a_one_line_error_and_status_2(
    arguments, said, tmp_path, scenes_data_dir, capsys, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(scenes_data_dir))
    status = main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("segjax: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""


def test_an_unwritable_workdir_gives_a_one_line_error(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ["--config", "experiments/quickstart.py", "--workdir", str(blocked / "run")]
    assert main(["train", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
