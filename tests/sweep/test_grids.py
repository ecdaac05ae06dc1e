"""Grids of runs: names, seeds, selection, and errors."""

import json

import pytest

from segjax import config as configs
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.sweep import grids
from support import toy_grid
from support.errors import command_refusal, refusal


def names(points):
    return [point.name for point in points]


def test_run_names_are_made_of_the_overrides():
    assert grids.run_name({"loss.class_weights": "none", "seed": 0}) == (
        "loss.class_weights=none,seed=0"
    )
    assert grids.run_name({"augment.scale": (0.5, 2.0)}) == "augment.scale=0.5x2.0"
    assert "/" not in grids.run_name({"data.data_dir": "../up"})
    assert grids.run_name({}) == "default"


def test_points_have_their_own_overrides_and_the_shared_ones(tmp_path):
    spec = toy_grid.write(tmp_path, "", [0.1, 0.2])
    points = grids.load_points(spec, {"steps": "4"})
    assert names(points) == [
        f"optimizer.learning_rate={rate},seed={seed}" for rate in (0.1, 0.2) for seed in (0, 1)
    ]
    assert points[3].overrides == {"steps": "4", "optimizer.learning_rate": 0.2, "seed": 1}
    assert (points[3].config.steps, points[3].config.seed) == (4, 1)


def test_numpy_scalars_inside_a_tuple_are_plain_numbers(tmp_path):
    file = tmp_path / "scales.py"
    file.write_text(
        "import numpy as np\n"
        "from segjax.config import default as get_config\n\n"
        "def sweep():\n"
        "    yield {'augment.scale': tuple(np.array([0.5, 1.0]))}\n"
    )
    (point,) = grids.load_points(str(file), {})
    command = grids.train_command(str(file), point, tmp_path)
    assert command[-1] == "--config.augment.scale=(0.5, 1.0)"


def seedless(tmp_path):
    """Write the config file of a grid that does not vary the seed."""
    file = tmp_path / "seedless.py"
    file.write_text(
        "from segjax.config import default as get_config\n\n"
        "def sweep():\n"
        "    for name in ('sgd', 'adam'):\n"
        "        yield {'optimizer.name': name}\n"
    )
    return str(file)


def test_seeds_multiply_the_grid(tmp_path):
    spec = seedless(tmp_path)
    assert names(grids.load_points(spec, {})) == ["optimizer.name=sgd", "optimizer.name=adam"]
    points = grids.load_points(spec, {"steps": "4"}, [0, 7])
    assert names(points) == [
        f"optimizer.name={name},seed={seed}" for name in ("sgd", "adam") for seed in (0, 7)
    ]
    assert points[1].overrides == {"steps": "4", "optimizer.name": "sgd", "seed": 7}
    assert points[1].config.seed == 7
    with pytest.raises(UserError, match=r"--config\.seed is given"):
        grids.load_points(spec, {"seed": "3"}, [0, 1])
    with pytest.raises(
        UserError, match=r"two runs of the grid of .* are named optimizer\.name=sgd,s"
    ):
        grids.load_points(spec, {}, [1, 1])
    with pytest.raises(UserError, match=r"--seeds is given, but the grid of \S+ varies the seed"):
        grids.load_points(toy_grid.write(tmp_path, "", [0.1]), {}, [0, 1])


def test_the_config_json_of_a_run_gets_more_seeds(tmp_path):
    config = configs.load("experiments/unet.py", {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"experiment": "unet", "config": configs.flat(config)}))
    points = grids.load_points(str(path), {}, [1, 2])
    assert names(points) == ["seed=1", "seed=2"]
    assert [point.config.seed for point in points] == [1, 2]
    assert "has no sweep(), and no --seeds are given" in refusal(grids.load_points, str(path), {})


def test_a_config_without_a_grid_needs_seeds(tmp_path):
    file = tmp_path / "single.py"
    file.write_text("from segjax.config import default as get_config\n")
    with pytest.raises(UserError, match=r"has no sweep\(\), and no --seeds are given"):
        grids.load_points(str(file), {})
    assert names(grids.load_points(str(file), {}, range(3))) == ["seed=0", "seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("rates", "overrides", "said"),
    [
        ([0.1, 0.1], {}, "two runs"),
        ([], {}, "is empty"),
        ([0.1], {"seed": "3"}, "varies it"),
        ([-1.0], {}, "not negative"),
        ([0.1], {"stepz": "3"}, "did you mean 'steps'"),
        ([0.1], {"model.name": "segnets"}, "unknown model 'segnets'; did you mean 'segnet'"),
        ([0.1], {"model.options.depth": "3"}, "unknown option 'depth'"),
        ([0.1], {"data.dataset": "kitti"}, "unknown data.dataset 'kitti', expected one of camvid"),
        ([0.1], {"optimizer.name": "lion"}, "unknown optimizer.name 'lion'; known: sgd, "),
        ([0.1], {"optimizer.schedule": "linear"}, "unknown optimizer.schedule 'linear'"),
        ([0.1], {"loss.class_weights": "inverse"}, "unknown loss.class_weights 'inverse'"),
    ],
)
def test_an_invalid_grid_is_refused_before_anything_runs(tmp_path, rates, overrides, said):
    spec = toy_grid.write(tmp_path, "", rates)
    with pytest.raises(UserError, match=said):
        grids.load_points(spec, overrides)


def test_only_selects_runs_by_patterns(tmp_path):
    points = grids.load_points(toy_grid.write(tmp_path, "", [0.1, 0.2]), {})
    assert grids.select_points(points, []) == points
    assert names(grids.select_points(points, ["*,seed=1"])) == [
        f"optimizer.learning_rate={rate},seed=1" for rate in (0.1, 0.2)
    ]
    chosen = grids.select_points(points, ["*=0.2,*", "*0.1,seed=0"])
    assert chosen == [points[0], *points[2:]]
    with pytest.raises(UserError) as refusal:
        grids.select_points(points, ["*seed=1", "*seed=2"])
    shown = ", ".join(names(points[:3]))
    assert str(refusal.value) == f"--only *seed=2 matches none of the runs: {shown} and 1 more"


def test_runs_are_grouped_in_wandb_by_the_experiment_unless_a_group_is_given(tmp_path):
    spec = toy_grid.write(tmp_path, "", [0.1])
    online = {"wandb.mode": "online"}
    (point, _) = grids.load_points(spec, online)
    assert point.config.wandb.group == "grid"
    assert "--config.wandb.group=grid" in grids.train_command(spec, point, tmp_path)
    (point, _) = grids.load_points(spec, {**online, "wandb.group": "mine"})
    assert point.config.wandb.group == "mine"
    (point, _) = grids.load_points(spec, {})
    assert point.config.wandb.group == ""
    assert not any(
        word.startswith("--config.wandb") for word in grids.train_command(spec, point, tmp_path)
    )


def test_commands_are_printed_and_nothing_is_written(tmp_path, capsys):
    spec = seedless(tmp_path)
    arguments = ["sweep", "--config", spec, "--workdir", str(tmp_path / "runs")]
    assert main([*arguments, "--seeds", "2", "--only", "*=adam,*", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    name = "optimizer.name=adam,seed=1"
    assert len(lines) == 2
    assert lines[1] == (
        f"segjax train --config {spec} --workdir {tmp_path}/runs/{name} --name {name} "
        "--config.optimizer.name=adam --config.seed=1"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "--seeds 0 selects no run"),
        (["--seeds", "-1"], "expected an integer >= 0, found '-1'"),
        (["--jobs", "0"], "expected an integer >= 1, found '0'"),
        (["--status", "--dry-run"], "not allowed with"),
    ],
)
def test_an_invalid_argument_gives_a_one_line_error(tmp_path, capsys, arguments, said):
    spec = seedless(tmp_path)
    command = ["sweep", "--config", spec, "--workdir", tmp_path, *arguments]
    assert said in command_refusal(capsys, command)
