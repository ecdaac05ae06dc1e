"""The command line: help without heavy imports, and one-line errors."""

import os
import subprocess
import sys

import pytest

import segjax
from segjax.cli.arguments import seconds
from segjax.cli.main import COMMANDS, main, parser
from segjax.ops.onednn import build
from support.errors import command_refusal

# Modules that --help and --version must not import.
HEAVY = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy", "matplotlib", "PIL"),
    *("tensorflow", "tensorflow_datasets", "array_record", "grain", "wandb"),
    *("ml_collections", "yaml", "rich"),
)


def printed(script, *arguments):
    """Return what a Python script prints in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version_names_the_implementation_of_convolutions():
    script = (
        "import sys\n"
        "from segjax.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    version, jax, engine, imported = printed(script).splitlines()
    assert version == f"segjax {segjax.__version__}"
    assert jax.startswith("jax 0.")
    assert engine == f"convolutions on a CPU: {build.describe()}"
    assert imported == "[]"


def test_each_command_has_help_that_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from segjax.cli.main import main\n"
        "for arguments in [[], *([command] for command in sys.argv[1:])]:\n"
        "    try: main([*arguments, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    said = printed(script, *COMMANDS)
    assert said.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"\n    {name}" in said
        assert f"usage: segjax {name} " in said


TRAIN = ("train", "--config", "experiments/quickstart.py", "--workdir", "{tmp}/w")


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
            [*TRAIN, "--stepz=3"],
            "unknown argument '--stepz=3'; did you mean --config.steps?",
        ),
        ([*TRAIN, "--lr=0.1"], "'--lr=0.1'; did you mean --config.optimizer.learning_rate?"),
        ([*TRAIN, "--config.optimizer.lr=0.1"], "did you mean 'optimizer.learning_rate'?"),
        ([*TRAIN, "--frobnicate"], "unknown argument '--frobnicate'; see segjax train --help"),
        (
            ["sweep", "--config", "experiments/quickstart.py", "--workdir", "x", "--see", "1"],
            "unknown argument '--see'; did you mean --seeds?",
        ),
        (["evaluate", "--workdir", "x", "--limits=3"], "did you mean --limit?"),
        (["evaluate", "--wrkdir", "x"], "--wrkdir is unknown, did you mean --workdir?"),
        (["train", "--confg=a.py", "--workdir", "x"], "--confg is unknown, did you mean --config?"),
        (
            [*TRAIN, "--config.model.name=segnat"],
            "unknown model 'segnat'; did you mean 'segnet'?; known: ",
        ),
        ([*TRAIN, "--config.model.options.depth=3"], "unknown option 'depth' of model unet"),
        ([*TRAIN, "--config.model.options.dtype=bfloat16"], "model.options.dtype is not an option"),
        ([*TRAIN, "--config.model.options.width=0"], "option 'width' of model unet is 0"),
        ([*TRAIN, "--config.data.dataset=cityscapes"], "dataset 'cityscapes', expected one of"),
        ([*TRAIN, "--config.num_devices=64"], "num_devices=64, but this host has 2"),
        (
            [*TRAIN, "--config.batch_size=3", "--config.num_devices=2"],
            "batch_size / micro_batches is 3, which 2 devices do not divide",
        ),
        (
            [*TRAIN, "--config.data.dataset=camvid", "--config.data.data_dir={tmp}/none"],
            "segjax data camvid",
        ),
        (["evaluate", "--workdir", "{tmp}/none"], "is not the workdir of a run"),
        (["evaluate", "--workdir", "x", "--limit", "0"], "integer >= 1"),
        (["evaluate", "--workdir", "x", "--crf", "v3"], "CRF 'v3', expected v1, v2 or five"),
        (["evaluate", "--workdir", "x", "--crf", "3,1,4,0,3"], "CRF bi_xy is 0"),
        (["predict", "a.png", "--workdir", "x", "--output", "y", "--crf="], "CRF ''"),
        (["picture", "--results", "x", "--output", "y.png", "--crf", "3"], "CRF '3', expected"),
        (["table", "--results", "{tmp}/none"], "none: no such file or directory, expected results"),
        (["table", "--results", "x", "--format", "word"], "invalid choice: 'word'"),
        (["table", "--results", "x", "--color"], "unknown argument '--color'"),
        (["picture", "--results", "{tmp}", "--output", "x.png"], "no results, expected a result"),
        (["data", "imagenet"], "unknown dataset 'imagenet', expected one of"),
        (["data", "camvid", "--source", "{tmp}"], "train.txt"),
        (["data", "streetscenes", "--resolution", "96"], "HEIGHTxWIDTH"),
        (["baselines", "--dataset", "nothing"], "unknown dataset 'nothing', expected one of"),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_status_2(
    arguments, said, tmp_path, scenes_data_dir, capsys, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(scenes_data_dir))
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert said in command_refusal(capsys, arguments)


IGNORED = (
    ("figures --results x --output y --no-predictions --count 4", "--count", "--no-predictions"),
    ("report --results x --output y --no-predictions --data-dir z", "--data-dir", "--no-pred"),
    ("benchmark --torch-python python3", "--torch-python", "without --against"),
    ("data check x --source y", "--source", "with check"),
    ("table camvid --interval", "--interval", "without --results"),
    ("data check x --sheet y.png", "--sheet", "with check"),
    ("data streetscenes --source x", "--source", "for streetscenes"),
    ("data camvid --resolution 96x128", "--resolution", "for camvid"),
    (
        "sweep --config experiments/quickstart.py --workdir x --launcher slurm "
        "--resubmit --partition gpu",
        *("--partition", "with --resubmit"),
    ),
    (
        "sweep --config experiments/quickstart.py --workdir x --status --jobs 4",
        *("--jobs", "with --status"),
    ),
    (
        "sweep --config experiments/quickstart.py --workdir x --launcher slurm --status --setup x",
        *("--setup", "with --status"),
    ),
    (
        "sweep --config experiments/quickstart.py --workdir x --launcher slurm "
        "--cancel --partition gpu",
        *("--partition", "with --cancel"),
    ),
    (
        "sweep --config experiments/quickstart.py --workdir x --launcher slurm "
        "--container-mounts /a:/a",
        *("--container-mounts", "without --container-image"),
    ),
)


@pytest.mark.parametrize(("command", "flag", "why"), IGNORED)
def test_an_option_that_would_be_ignored_is_refused(command, flag, why, capsys):
    error = command_refusal(capsys, command.split())
    assert error.startswith(f"{flag} does nothing ")
    assert why in error


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train --config a.py --workdir x --config b.py", "--config"),
        ("predict a.png --workdir x --output y --workdir z", "--workdir"),
        ("table --results x --results y", "--results"),
        ("sweep --config a.py --workdir x --seeds 1 --nodes 2 --nodes 3", "--nodes"),
        ("reproduce camvid --size small --size small", "--size"),
    ],
)
def test_an_option_given_twice_is_refused(command, flag, capsys):
    assert command_refusal(capsys, command.split()) == (
        f"{flag} is given twice, expected once; see segjax {command.split()[0]} --help"
    )


PATHS = (
    *("data camvid --source PATH", "data camvid --data-dir PATH", "data camvid --sheet PATH"),
    *("train --config x.py --workdir PATH", "evaluate --workdir PATH"),
    *("evaluate --workdir x --data-dir PATH", "predict PATH --workdir x --output y"),
    *("predict x --workdir PATH --output y", "predict x --workdir y --output PATH"),
    *("sweep --config x.py --workdir PATH", "reproduce camvid --workdir PATH"),
    *("reproduce camvid --source PATH", "table --results x PATH", "compare PATH x"),
    *("compare x PATH", "picture --results PATH --output x", "picture --results x --output PATH"),
    *("figures --results PATH --output x", "figures --results x --output PATH"),
    *("report --results PATH --output x", "report --results x --output y --data-dir PATH"),
    *("preview --config x.py --output PATH", "benchmark --output PATH", "baselines --output PATH"),
    *("export PATH --output x", "export x --output PATH", "push PATH a/b", "data check PATH"),
)


@pytest.mark.parametrize("command", PATHS)
def test_text_that_is_no_local_path_is_refused_at_once(command, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, said in (("gs://bucket/x", "this machine, found the URL gs://bucket/x"), ("", "''")):
        words = [text if word == "PATH" else word for word in command.split()]
        expected = f"expected a path{' on ' if text else ', found '}{said}"
        assert expected in command_refusal(capsys, words)
    options = parser().parse_args(["~/x" if word == "PATH" else word for word in command.split()])
    assert "/home/me/x" in repr(options)
    assert "~" not in repr(options)


def test_what_is_asked_of_wandb_is_not_ignored_silently(tmp_path, capsys, monkeypatch):
    row = {"split": "test", "global_accuracy": 1.0, "class_accuracy": 1.0, "mean_iou": 1.0}
    monkeypatch.setattr("segjax.train.train", lambda *_: row)
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = ["train", "--config", "experiments/quickstart.py", "--workdir", str(tmp_path)]
    assert main(command) == 0
    said = "segjax: warning: WANDB_MODE=offline has no effect, wandb.mode of the config is disabled"
    assert capsys.readouterr().err.startswith(said)
    assert main([*command, "--config.wandb.mode=offline", "--config.wandb.group=mine"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("WANDB_MODE")
    assert main([*command, "--config.wandb.group=mine"]) == 0
    said = "segjax: warning: --config.wandb.group has no effect while wandb.mode is disabled\n"
    assert capsys.readouterr().err == said


def test_an_unwritable_workdir_gives_a_one_line_error(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ["--config", "experiments/quickstart.py", "--workdir", blocked / "run"]
    assert str(blocked) in command_refusal(capsys, ["train", *arguments])


def test_modules_are_imported_by_their_name():
    printed(
        "import sys, segjax\n"
        "assert 'jax' not in sys.modules\n"
        "assert 'unet' in segjax.models.MODELS\n"
        "assert not hasattr(segjax, 'modles')\n"
    )


def run(*arguments, **environment):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "segjax", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX finds no device, with JAX_PLATFORMS='cuda'"),
        (
            "JAX_PLATFORMS",
            "abacus",
            "; Unable to initialize backend 'abacus'",
        ),
        ("JAX_NUM_CPU_DEVICES", "abc", 'Invalid value "abc" for JAX flag jax_num_cpu_devices'),
    ],
)
def test_environment_variable_that_jax_refuses_gives_a_one_line_error(
    tmp_path, scenes_data_dir, variable, value, said
):
    config = ["--config", "experiments/quickstart.py:smoke", "--workdir", str(tmp_path / "run")]
    done = run("train", *config, TFDS_DATA_DIR=str(scenes_data_dir), **{variable: value})
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("segjax: ")
    assert done.stderr.count("\n") == 1


def test_exhausted_memory_is_one_line_that_says_what_needs_less(monkeypatch, capsys):
    def run_out(options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBuffers: ...")

    for command in ("models", "train"):
        monkeypatch.setattr(f"segjax.cli.{command}.run", run_out)
    error = command_refusal(capsys, ["train", "--config", "x.py", "--workdir", "x"])
    assert error.startswith("the memory of the device is exhausted; smaller batch_size")
    assert "Out of memory allocating 9 bytes." in error
    error = command_refusal(capsys, ["models"])  # which has no config to change
    assert error.startswith("the memory of the device is exhausted: RESOURCE_EXHAUSTED: Out of")


def test_missing_home_directory_gives_a_one_line_error(monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry
    assert command_refusal(capsys, ["baselines"]).startswith("HOME is not set")


@pytest.mark.slow
def test_output_needs_neither_unicode_nor_a_reader_nor_space(tmp_path):
    rows = ["table", "--results", "experiments/results/camvid_small.jsonl"]
    expected = run(*rows, PYTHONIOENCODING="utf-8").stdout
    assert "\xb1" in expected
    plain = run(*rows, PYTHONIOENCODING="ascii")
    assert plain.returncode == 0
    assert plain.stdout == expected.replace("\xb1", "\\xb1")

    command = [sys.executable, "-m", "segjax", *rows]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "segjax: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("12:00:05", 43_205), ("1-02:03:04", 93_784)]
)
def test_a_duration_in_every_form(text, expected):
    assert seconds(text) == expected
