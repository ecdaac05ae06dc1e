"""The commands of `launch/README.md` are taken by what they are given to."""

import re
import shlex
import subprocess

import pytest

from segjax import config
from segjax.cli import main as cli
from segjax.cli import sweep
from segjax.sweep import grids, slurm_script
from support import ROOT

TEXT = (ROOT / "launch" / "README.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
# Of others; what they take is not checked here.
FOREIGN = (
    "docker ",
    "kubectl ",
    "gcloud ",
    "wandb ",
    "make ",
    "export ",
    "CUDA_VISIBLE_DEVICES=0 wandb ",
)


def lines(start):
    found = [line.removeprefix(start) for line in LINES if line.startswith(start)]
    assert found, start
    return found


def check_grid(options, rest):
    assert grids.points(str(ROOT / options.config), config.parse_overrides(rest), options.seeds)


def test_every_command_is_looked_at():
    ours = ("segjax ", "launch/tpu_vm.sh ")
    assert [line for line in LINES if not line.startswith(ours + FOREIGN)] == []


@pytest.mark.parametrize("line", lines("segjax "))
def test_the_command_line_takes_it(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition(" > ")[0])
    options, rest = cli.parser().parse_known_args(words)
    if options.command != "sweep":
        return
    check_grid(options, rest)
    if options.launcher == "slurm":
        fields = sweep.given(options, sweep.SLURM, "slurm")
        slurm_script.Options(time=options.time_limit, **fields)
    elif options.launcher in ("kubernetes", "wandb"):
        assert cli.main(words) == 0
        assert capsys.readouterr().out.startswith("# Made by: segjax sweep ")


@pytest.mark.parametrize("line", lines("launch/tpu_vm.sh "))
def test_a_dry_run_of_the_script_for_tpu_vms_takes_it(line):
    command = ["bash", ROOT / "launch" / "tpu_vm.sh", "--dry-run", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcloud compute tpus tpu-vm ")
    _, is_sweep, arguments = line.partition(" sweep ")
    if is_sweep:
        check_grid(*cli.parser().parse_known_args(["sweep", *shlex.split(arguments)]))


def test_the_files_that_it_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "launch" / target).exists(), target
