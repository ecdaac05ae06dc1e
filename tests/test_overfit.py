"""Test the script that overfits each model to four images, for a few steps."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from segjax import models

PATH = Path(__file__).parents[1] / "experiments" / "overfit.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("overfit", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_model_has_a_small_config(script):
    assert set(script.SETTINGS) <= set(models.MODELS)
    for name in models.MODELS:
        setting = script.SETTINGS.get(name, script.Setting())
        config = script.small_config(name, setting, "")
        models.create(name, 11, **config.model.options)
        assert config.data.resolution == tuple(side * setting.enlarged for side in setting.cells)
        assert not config.model.pretrained


def test_row_is_written_once_and_printed(script, camvid_data_dir, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    arguments = ["--output", str(output), "--models", "fcn_basic", "--data-dir"]
    arguments += [str(camvid_data_dir), "--steps"]
    assert script.main([*arguments, "30"]) == 1  # too few for the goal
    (row,) = map(json.loads, output.read_text().splitlines())
    assert (row["model"], row["steps"], row["resolution"]) == ("fcn_basic", 30, [48, 64])
    # Better than predicting Road everywhere.
    assert 1.5 / row["classes"] < row["mean_iou"] <= script.GOAL
    assert f"| fcn_basic | width 16 | {row['parameters']:,} | " in capsys.readouterr().out
    assert script.main([*arguments, "40"]) == 1
    assert [json.loads(line) for line in output.read_text().splitlines()] == [row]


def test_images_consist_of_whole_cells(script, camvid_data_dir):
    setting = script.Setting(cells=(6, 8), enlarged=4)
    data = script.four_images(setting, str(camvid_data_dir))
    assert data["image"].shape == (4, 24, 32, 3)
    for x in data.values():
        cells = x.reshape(4, 6, 4, 8, 4, -1)
        np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))
    assert len(np.unique(data["label"])) > 4


def test_missing_data_is_one_line(script, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "rows.jsonl"), "--data-dir", str(tmp_path)]
    assert script.main([*arguments, "--models", "segnet_basic"]) == 2
    error = capsys.readouterr().err
    assert "segjax data camvid" in error
    assert error.count("\n") == 1
