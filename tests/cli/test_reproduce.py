"""`segjax reproduce`: one command prepares the dataset, trains the grid and prints the table."""

import argparse

import pytest

from segjax import recipes
from segjax.cli import reproduce
from segjax.cli.main import main
from support import ROOT, toy_grid
from support.errors import command_refusal


@pytest.fixture
def command(tmp_path, camvid_data_dir, monkeypatch):
    spec = toy_grid.write(tmp_path, camvid_data_dir, [0.1], (0, 1))
    monkeypatch.setenv("PYTHONPATH", str(toy_grid.TESTS))
    workdir = tmp_path / "runs"
    given = ["--config", spec, "--workdir", str(workdir), "--config.data.dataset=camvid"]
    return ["reproduce", "camvid", *given]


@pytest.mark.slow
def test_it_trains_the_grid_once_and_prints_the_table(command, capfd):
    assert main([*command, "--time-limit", "1"]) == 75
    assert "time limit reached, 2 unfinished" in capfd.readouterr().out
    for _ in range(2):
        assert main(command) == 0
        out = capfd.readouterr().out
        assert "2 of 2 runs are finished" in out
        (ours,) = [line for line in out.splitlines() if line.startswith("| one_layer")]
        assert "| ours" in ours
        assert any(line.startswith("| SegNet") for line in out.splitlines())
    assert out.count("finished already") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "small", "--config", "x.py"], "not allowed with argument"),
        (["--time-limit", "0"], "argument --time-limit: expected a time > 0"),
        (["--config", str(ROOT / "experiments/quickstart.py")], "trains on streetscenes, expected"),
        (["--config.test_split=val"], "has test_split val, expected test, the images of the publ"),
    ],
)
def test_a_mistake_gives_a_one_line_error(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in command_refusal(capsys, ["reproduce", "camvid", *arguments])


@pytest.mark.parametrize("size", recipes.SIZES)
def test_every_size_of_the_recipes_can_be_chosen(size):
    parser = argparse.ArgumentParser()
    reproduce.add_arguments(parser)
    assert parser.parse_args(["camvid", "--size", size]).size == size


def test_without_the_repository_the_error_names_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "GRIDS", {"camvid": "no_such_table"})
    assert "or --config" in command_refusal(capsys, ["reproduce", "camvid"])
