"""W&B sweeps, with W&B's own schema, search engine and agent; only the server is missing."""

import json
import os
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from segjax.cli.main import main
from segjax.errors import UserError
from segjax.sweep import grids, status, wandb
from support import ROOT, toy_grid

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its models use the style of an older pydantic
    import sweeps

QUICKSTART = "--config experiments/quickstart.py --workdir runs/no_such_sweep"


@pytest.fixture
def definition(monkeypatch, capsys):
    """Return a function that runs `segjax sweep` and parses the definition that it prints."""
    monkeypatch.chdir(ROOT)

    def read(arguments):
        assert main(["sweep", "--launcher", "wandb", *shlex.split(arguments)]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return read


@pytest.mark.parametrize(
    ("more", "spec", "overrides", "seeds"),
    [
        ("", "experiments/quickstart.py", {}, ()),
        ("--config.steps=70", "experiments/quickstart.py", {"steps": "70"}, ()),
        ("--seeds 3", "experiments/segnet.py:smoke", {}, range(3)),
    ],
    ids=["grid", "override", "seeds"],
)
def test_wandb_accepts_the_definition_and_hands_out_each_run_once(
    definition, more, spec, overrides, seeds
):
    content = definition(f"--config {spec} --workdir runs/no_such_sweep {more}")
    assert sweeps.schema_violations_from_proposed_config(content) == []
    runs = []
    while (run := sweeps.next_run(sweeps.SweepConfig(content), runs)) is not None:
        run.state = sweeps.RunState.finished
        runs.append(run)
    names = [run.config["only"]["value"] for run in runs]
    assert names == [point.name for point in grids.load_points(spec, overrides, seeds)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"metod": "grid"},
        {"method": "gird"},
        {"parameters": {"only": {"valeus": ["a"]}}},
        {"parameters": {"only": {"values": []}}},
        {"command": "segjax sweep"},
        {"metric": {"name": "val/mean_iou", "goal": "up"}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_invalid_definition_violates_the_schema(definition, wrong):
    assert sweeps.schema_violations_from_proposed_config(definition(QUICKSTART) | wrong)


@pytest.fixture
def agent(monkeypatch, tmp_path):
    """Return a function that lets W&B's agent start one run and returns its exit status."""
    binaries = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(name, "")

    def start(content, run_id, name):
        agent = Agent(api=None, queue=None, sweep_id="sweep")
        agent._sweep_command = content["command"]
        agent._command_run({"run_id": run_id, "program": None, "args": {"only": {"value": name}}})
        return agent._run_processes[run_id].wait(timeout=300)

    return start


def test_an_agent_trains_in_the_run_directory_of_a_sweep(
    definition, agent, scenes_data_dir, tmp_path
):
    spec = toy_grid.write(tmp_path, scenes_data_dir, rates=(0.1, 0.2), seeds=(0,))
    workdir = tmp_path / "runs"
    # Offline: W&B records the run and sends nothing.
    line = f"--config {spec} --workdir {workdir} --config.wandb.mode=offline"
    content = definition(line)
    first, second = content["parameters"]["only"]["values"]
    assert agent(content, "run0", second) == 0
    assert not (workdir / first).exists()
    row = json.loads((workdir / second / "result.json").read_text())
    assert (row["name"], row["overrides"]) == (second, {"optimizer.learning_rate": 0.2, "seed": 0})
    (noted,) = (workdir / second / "wandb").glob("offline-run-*/run-*.wandb")
    assert noted.name == "run-run0.wandb"
    # A sweep without W&B finds the run finished.
    grid = grids.load_points(spec, {"wandb.mode": "offline"})
    assert [found.state for found in status.read_statuses(grid, workdir)] == ["new", "finished"]
    assert definition(line)["parameters"]["only"]["values"] == [first]


def test_a_sweep_of_finished_runs_is_refused(tmp_path):
    grid = grids.load_points(str(ROOT / "experiments/quickstart.py"), {})[:2]
    for point in grid:
        (tmp_path / point.name).mkdir()
        (tmp_path / point.name / "result.json").touch()
    with pytest.raises(UserError, match="all 2 runs are finished"):
        wandb.unfinished_points(grid, tmp_path)
