"""Grids of the tiniest runs, for tests of sweeps."""

from pathlib import Path

from support import runs

TESTS = Path(__file__).parents[1]  # where such a file finds what it imports

FILE = """
from support.runs import OneLayer, small_config
from segjax import models

models.MODELS["one_layer"] = OneLayer

def get_config():
    return small_config("{data_dir}")

def sweep():
    for rate in {rates}:
        for seed in {seeds}:
            yield {{"optimizer.learning_rate": rate, "seed": seed}}
"""


def write(folder: Path, data_dir, rates, seeds=(0, 1)) -> str:
    """Writes the config file of a grid of `OneLayer` and gives its path."""
    file = folder / "grid.py"
    file.write_text(FILE.format(data_dir=data_dir, rates=list(rates), seeds=list(seeds)))
    return str(file)


def start(arguments, **environment):
    """Starts `segjax` in a process of its own, which finds what such a file imports."""
    return runs.start(arguments, PYTHONPATH=str(TESTS), **environment)


def sweep(spec, workdir, *arguments, **environment):
    """Runs `segjax sweep` on such a grid: its exit status, standard output and standard error."""
    command = ["sweep", "--config", spec, "--workdir", workdir, *arguments]
    process = start(command, **environment)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error
