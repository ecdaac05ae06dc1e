"""Timings of what surrounds a training step, at minimal size, and their rows."""

import json
from pathlib import Path

import loop
import pytest
import timings

from segjax.errors import UserError
from segjax.training import parallel
from support import toy_grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory, scenes_data_dir):
    return toy_grid.write(tmp_path_factory.mktemp("config"), scenes_data_dir, [0.1])


def run(spec, output, kind, *rest):
    """Return the one row that the command adds for the config."""
    size = ["--resolution", "24x32", "--output", str(output), "--only", kind]
    assert loop.main(["--config", spec, *size, "--repeats", "2", *rest]) == 0
    (row,) = timings.read([output])
    assert row["kind"] == kind
    return row


@pytest.mark.parametrize("devices", [1, 2])
def test_the_loop_its_program_and_the_bare_step_take_turns(spec, tmp_path, devices, capsys):
    steps = []
    former = loop.Turns.__call__

    def count(self, state, shared, share):
        steps.append(int(state.step))
        return former(self, state, shared, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Turns, "__call__", count)
        turns = ["--turns", "2", "--calls", "3", f"--config.num_devices={devices}"]
        row = run(spec, tmp_path / "rows.jsonl", "loop", *turns)
    # The loop continued to train, its state unchanged by the others.
    assert steps == list(range(10))
    assert {name: len(found) for name, found in row["samples"].items()} == {
        "loop": 2,
        "program": 2,
        "bare": 2,
    }
    assert row["device"] == f"cpu x{devices}"
    assert row["setting"]["resolution"] == [24, 32]
    assert "of bare" in capsys.readouterr().out
    assert parallel.parallelize.__module__ == "segjax.training.parallel"  # and not the stand-in


def test_the_first_step_is_timed_from_the_command(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(toy_grid.__file__).parents[1]))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    row = run(spec, tmp_path / "rows.jsonl", "first_step")
    assert all(seconds[0] > 0.1 for seconds in row["samples"].values())


def test_evaluation_boundaries_and_prediction(spec, tmp_path):
    row = run(spec, tmp_path / "rows.jsonl", "throughput")
    assert all(len(found) == 2 and min(found) > 0 for found in row["samples"].values())


def test_the_start_of_commands(spec, tmp_path):
    row = run(spec, tmp_path / "rows.jsonl", "start")
    assert row["setting"] is None
    assert timings.ratio(row, "segjax --help", "python") > 1


def test_an_error_is_one_line_and_status_2(spec, capsys):
    for arguments in (["--config", "nowhere.py"], ["--config", spec, "--config.stepz=3"]):
        assert loop.main([*arguments, "--only", "loop", "--resolution", "24x32"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "race"}, "kind is \"race\", expected 'loop', 'first_step'"),
        ({"samples": {"cold": [1.0], "warm": []}}, "samples.warm is [], expected"),
        ({"samples": {"cold": [1.0]}}, "['cold'] in s, expected ['cold', 'warm'] in s"),
        ({"setting": {"model": "unet"}}, "setting.model_options is missing"),
        (
            {"kind": "devices", "unit": "ms", "samples": {"training_step": [1]}},
            "devices is missing",
        ),
        (
            {
                "kind": "levers",
                "unit": "ms",
                "samples": {name: [1] for name in timings.KINDS["levers"][1]},
            },
            "bytes is missing",
        ),
        ({"samples": {"cold": [1.0, 2.0], "warm": [1.0]}}, "one of each per turn"),
        (
            {"samples": {"cold": [1.0], "warm": [0.0]}},
            "warm[0] is 0.0, expected greater than 0",
        ),
    ],
)
def test_an_incomplete_row_is_refused(tmp_path, changed, said):
    row = loop.make_row("first_step", "loop.py", {"cold": [9.0, 7.0], "warm": [1.0, 2.0]}, None)
    path = tmp_path / "rows.jsonl"
    timings.append(path, row)
    assert timings.read([path]) == [row]
    assert timings.median(row, "cold") == 8
    assert timings.ratio(row, "cold", "warm") == pytest.approx((9 + 3.5) / 2)
    path.write_text(json.dumps(row | changed) + "\n")
    with pytest.raises(UserError) as error:
        timings.read([path])
    assert said in str(error.value)


def test_rows_as_a_table(tmp_path, capsys):
    path, samples = tmp_path / "rows.jsonl", {"loop": [6.0, 8.0], "program": [8, 8], "bare": [8, 8]}
    setting = {
        "model": "segnet",
        "model_options": {"width": 16},
        "dataset": "camvid",
        "resolution": [24, 32],
        "batch": 4,
        "precision": "float32",
        "placement": "auto",
    }
    row = {
        "schema": 1,
        "kind": "loop",
        "command": "python loop.py",
        "setting": setting,
        "unit": "images/s",
        "samples": samples,
        "device": "cpu x1",
        "versions": {},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    timings.append(path, row)
    assert timings.main([str(path)]) == 0
    cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    (loop_line,) = [[cell.strip() for cell in line] for line in cells if "loop: loop" in line[0]]
    what = "segnet, width 16, camvid 24x32, batch 4, float32"
    assert loop_line == [
        "loop: loop",
        what,
        "cpu x1",
        "images/s",
        *("7.00", "6.00", "8.00", "2", "0.875"),
    ]

    names = timings.KINDS["levers"][1]
    of_levers = row | {
        "kind": "levers",
        "unit": "ms",
        "samples": {name: [2.0, 4.0, 3.0 * (name != "plain") + 3] for name in names},
        "bytes": dict.fromkeys(names, 5_000_000) | {"plain": None},
    }
    table = timings.table([of_levers])
    assert "to plain" in table.title
    assert "MB" in table.title
    assert [line["ratio"] for line in table.records] == [None, 1.0, 1.0, 1.0, 1.0]
    assert [line["mb"] for line in table.records] == [None, 5.0, 5.0, 5.0, 5.0]

    assert timings.main([str(tmp_path / "none.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("timings.py: ")
    assert "none.jsonl" in error
    assert error.count("\n") == 1
