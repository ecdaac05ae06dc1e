"""The README keeps its word: its commands run, its tables are those of the committed rows."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import models
from segjax.cli.main import main
from segjax.models import summary
from segjax.report.table import draw

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.strip() for block in BLOCKS for line in block.replace("\\\n", "").splitlines() if line
]


def test_every_make_target_is_there():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert "demo" in named
    assert "test" in named
    assert set(named) <= set(targets)


def test_the_demo_of_the_makefile_is_made_of_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\$\(BIN\)/segjax (\w+)", makefile):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0


def test_the_commands_run_in_their_order(
    tmp_path, monkeypatch, scenes_data_dir, camvid_data_dir, isbi2012_data_dir
):
    """As they stand, but for smoke configs, prepared data and an image to predict on."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "streetscenes").symlink_to(scenes_data_dir / "streetscenes")
    (data_dir / "camvid").symlink_to(camvid_data_dir / "camvid")
    (data_dir / "isbi2012").symlink_to(isbi2012_data_dir / "isbi2012")
    for published in ("CamVid", "membrane"):  # prepared already, so they are not looked into
        (tmp_path / published).mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    # The runs of the sweeps share what they compile.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "street.jpg")
    ran = set()
    for command in COMMANDS:
        words = shlex.split(command)
        while "=" in words[0]:  # settings for the environment
            words = words[1:]
        if words[0] != "segjax":
            assert words[0] in ("make", "git", "cd"), command
            continue
        words = [re.sub(r"^(experiments/\w+\.py)(:\w+)?$", r"\1:smoke", word) for word in words[1:]]
        words = [
            word.replace("96x128", "24x32").replace("72x96", "24x32").replace("180x240", "24x32")
            for word in words
        ]
        if words[0] == "train" and "experiments/camvid_small.py:smoke" in words:
            words.append("--config.data.dataset=streetscenes")  # the same classes, twenty images
        if words[0] == "sweep":
            words.append("--config.num_devices=1")  # a program for two takes half as long again
        assert main(words) == 0, command
        ran.add(words[0])
    assert ran == {
        *("data", "train", "evaluate", "predict", "sweep"),
        *("table", "compare", "picture", "figures", "report", "preview", "floors", "benchmark"),
    }


def test_tables_are_those_of_the_committed_rows(monkeypatch, capsys):
    found = re.findall(r"<!-- segjax (table .*?) -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert found
    monkeypatch.chdir(ROOT)
    for command, table in found:
        assert main(shlex.split(command)) == 0
        assert table.strip() == capsys.readouterr().out.strip(), command


def test_the_table_of_models_is_that_of_the_committed_rows():
    """The rows are `segjax models --format json`; test_architectures checks what is quick to."""
    (table,) = re.findall(r"<!-- segjax models -->\n(.*?)\n<!-- end -->", README, re.S)
    stored = json.loads((ROOT / "experiments" / "results" / "models.json").read_text())
    rows = [summary.from_json(row) for row in stored]
    assert table == summary.render(rows)
    assert [row.name for row in rows] == list(models.MODELS)
    for row in rows:
        shapes = summary.abstract(models.create(row.name, 11), summary.SIZES[0])
        assert row.parameters == sum(x.size for x in jax.tree.leaves(shapes["params"]))


def test_the_table_of_what_learns_is_that_of_the_committed_rows():
    script = runpy.run_path(str(ROOT / "experiments" / "overfit.py"))
    block = r"<!-- python experiments/overfit.py -->\n(.*?)\n<!-- end -->"
    (table,) = re.findall(block, README, re.DOTALL)
    lines = (ROOT / "experiments" / "results" / "overfit.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert table == script["table"](rows)
    assert all(row["mean_iou"] > script["GOAL"] for row in rows)
    assert [row["model"] for row in rows] == list(models.MODELS)


def test_tables_of_timings_are_those_of_the_committed_rows():
    script = runpy.run_path(str(ROOT / "experiments" / "speed" / "timings.py"))
    notes = (ROOT / "experiments" / "speed" / "NOTES.md").read_text()
    block = r"<!-- python experiments/speed/timings.py (.*?) -->\n(.*?)\n<!-- end -->"
    found = re.findall(block, notes, re.DOTALL)
    assert found
    for files, table in found:
        rows = script["read"](ROOT / name for name in files.split())
        assert table == draw(script["table"](rows)).strip(), files


def test_every_model_and_config_is_named():
    said = set(re.findall(r"`(\w+)`", README))
    assert set(models.MODELS) <= said
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert files <= set(re.findall(r"experiments/(\w+)\.py", README))


def test_pictures_and_links_into_the_project_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
