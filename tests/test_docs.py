"""README and docs: their commands run, their tables are those of the committed rows."""

import argparse
import ast
import dataclasses
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from segjax import config, models
from segjax.cli import main as cli
from segjax.cli.main import main
from segjax.config import fields
from segjax.data import datasets
from segjax.models import summary
from segjax.report.table import draw
from segjax.sweep import grids
from segjax.training import losses, optimizers
from support import hub
from support.folders import make_folder

ROOT = Path(__file__).parents[1]


def in_order(nav):
    """File names of MkDocs' navigation, from top to bottom."""
    for entry in nav:
        (value,) = entry.values()
        if isinstance(value, str):
            yield value
        else:
            yield from in_order(value)


NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
DOCS = [f"docs/{name}" for name in in_order(NAVIGATION)]
NAMES = ["README.md", *DOCS, "launch/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES = {name: (ROOT / name).read_text() for name in NAMES}
ALL = "\n".join(PAGES.values())

# Pages whose commands need a cluster: they are parsed, and run as far as nothing is reached.
CLUSTERS = "docs/clusters.md"
FOREIGN = ("make", "git", "source", "export", "pip", "docker", "kubectl", "gcloud", "wandb", "tfds")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page):
    """Words of each command of a page, without redirections and settings of the environment."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            for is_joint, group in itertools.groupby(words, "&&".__eq__):
                if not is_joint:
                    command = itertools.takewhile(">".__ne__, group)
                    yield list(itertools.dropwhile(lambda word: "=" in word, command))


EVERY = [(page, words) for page in PAGES for words in commands(page)]
OURS = [(page, words[1:]) for page, words in EVERY if words[0] == "segjax"]


def is_only_parsed(page, words):
    """Return whether a command needs a cluster, or hours, or a dataset that TFDS downloads."""
    needs = ("camvid_table", "dataset=tfds:")
    return page == CLUSTERS or any(need in " ".join(words) for need in needs)


def test_every_command_is_known():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([^\s#:=]+):", makefile, re.MULTILINE)
    for page, words in EVERY:
        if words[0] == "make":
            assert words[1] in targets, (page, words)
        elif words[0] != "segjax":
            assert words[0] in FOREIGN or (ROOT / words[0]).is_file(), (page, words)
    assert ["make", "demo"] in [words for _, words in EVERY]
    assert ["make", "test"] in [words for _, words in EVERY]


def test_every_command_of_ours_is_listed():
    section = re.split("^## ", PAGES["docs/index.md"].split("## The commands")[1], flags=re.M)[0]
    assert set(re.findall(r"`segjax (\w+)`", section)) == set(cli.COMMANDS)


def test_the_demo_of_the_makefile_is_made_of_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\$\(BIN\)/segjax (\w+)", makefile):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0


def check_command(words):
    """Parse a command, and the grid or config it names."""
    options, rest = cli.parser().parse_known_args(words)
    if options.command == "sweep":
        spec = str(ROOT / options.config)
        assert grids.load_selection(spec, config.parse_overrides(rest), options.seeds, options.only)
    elif getattr(options, "config", None):
        config.load(str(ROOT / options.config), config.parse_overrides(rest))
    else:
        assert not rest


@pytest.mark.parametrize(
    "words", [words for page, words in OURS if is_only_parsed(page, words)], ids=" ".join
)
def test_a_command_for_a_cluster_or_for_hours_is_parsed(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    check_command(words)
    if "kubernetes" in words or "wandb" in words:  # they print
        assert main(words) == 0
        assert all(yaml.safe_load_all(capsys.readouterr().out))


@pytest.mark.parametrize(
    "words",
    [words for _, words in EVERY if words[0] == "launch/tpu_vm.sh"],
    ids=lambda words: words[5],
)
def test_a_dry_run_of_the_script_for_tpu_vms_takes_it(words):
    command = ["bash", ROOT / words[0], "--dry-run", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcloud compute tpus tpu-vm ")
    if "sweep" in words:
        check_command(words[words.index("sweep") :])


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """Serve a stand-in of the hub."""
    with hub.serve(monkeypatch, tmp_path / "hub") as (files, _):
        yield files


@pytest.mark.slow
def test_the_commands_run_in_their_order(
    tmp_path, monkeypatch, repositories, scenes_data_dir, camvid_data_dir, isbi2012_data_dir
):
    """As they stand, but for smoke configs, two runs of a grid, prepared data and an image."""
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
    make_folder(tmp_path / "photos")
    (dataset,) = blocks("docs/adding_a_dataset.md", "python")
    (tmp_path / "halves.py").write_text(dataset)
    monkeypatch.syspath_prepend(tmp_path)
    ran = []
    for page, given in OURS:
        if is_only_parsed(page, given) or given in ran:
            continue
        words = [re.sub(r"^(experiments/\w+\.py)(:\w+)?$", r"\1:smoke", word) for word in given]
        words = [re.sub("^(96x128|180x240)$", "24x32", word) for word in words]
        on_camvid = r"experiments/(camvid_small|fcn\d+s|going_deeper)\.py:smoke"
        if words[0] in ("train", "sweep") and any(re.fullmatch(on_camvid, word) for word in words):
            words.append("--config.data.dataset=streetscenes")  # the same classes, twenty images
        if words[0] in ("train", "sweep"):
            words.append("--config.num_devices=1")  # a program for two takes half as long again
        if words[0] == "benchmark":
            words += ["--repeats", "2"]
        if words[0] == "sweep" and "--only" not in words:
            # Every network of a grid is tested in test_experiments.py.
            first, *_, last = grids.load_points(words[words.index("--config") + 1], {})
            words += ["--only", first.name, "--only", last.name]
        assert main(words) == 0, (page, given)
        ran.append(given)
    for page in ("docs/api.md", "docs/weights.md"):
        (block,) = blocks(page, "python")
        # Of runs of the commands above.
        exec(block.replace("quickstart.py", "quickstart.py:smoke"), {})
    assert repositories["someone/street"]
    assert {words[0] for words in ran} == {
        *("data", "train", "evaluate", "predict", "export", "push", "sweep"),
        *("table", "compare", "picture", "figures", "report", "preview", "baselines", "benchmark"),
    }


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    make_folder(tmp_path / "photos")
    notebook = json.loads((ROOT / "docs" / "notebooks" / "own_images.ipynb").read_text())
    names = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if source.startswith("!segjax "):
            assert main(shlex.split(source)[1:]) == 0, source
        elif cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(source, names)
    assert names["labels"].shape == (40, 56)
    said = capsys.readouterr().out
    assert "| unet" in said
    assert "Disk" in said


def test_options_in_the_text_exist():
    parsers = [cli.parser()]
    known = {"--dry-run"}  # of launch/tpu_vm.sh
    for parser in parsers:
        for action in parser._actions:
            known |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    for page, text in PAGES.items():
        said = set(re.findall(r"`(--[a-z-]+)(?!\.)\b", text)) - {"--config"}
        assert said <= known, (page, said - known)


def test_python_of_the_readme():
    (block,) = blocks("README.md", "python")
    assert len(block.split("\n\n")[1].splitlines()) + 2 <= 6
    namespace = {}
    exec(block, namespace)
    shape = ast.literal_eval(block.rpartition("#")[2].strip())
    assert namespace["logits"].shape == shape


def test_the_model_to_copy_keeps_what_models_promise():
    (block,) = blocks("docs/adding_a_model.md", "python")
    namespace = {}
    exec(block, namespace)
    model = namespace["Thumbnail"](num_classes=4)
    image = jax.ShapeDtypeStruct((1, 7, 5, 3), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda image: model.init_with_output(jax.random.key(0), image, train=False), image
    )
    assert (logits.shape, logits.dtype) == ((1, 7, 5, 4), jnp.float32)


def test_the_dataset_to_copy_can_be_prepared_and_read(tmp_path, monkeypatch):
    (block,) = blocks("docs/adding_a_dataset.md", "python")
    (tmp_path / "halves_of_the_page.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    name = "module:halves_of_the_page"
    info = datasets.prepare(name, data_dir=tmp_path, resolution=(24, 32))
    assert info.class_names == ("Above", "Below")
    split = datasets.open_split(name, "test", data_dir=tmp_path)
    assert len(split) == 2
    assert (split[1]["label"][:, 0] == np.repeat([0, 1], [7, 17])).all()
    # The page says how much of it is code.
    code = [line for line in block.splitlines() if line.strip()][1:]  # without the docstring
    assert len(code) == 8
    assert "one file of 8 lines of code" in Path("docs/adding_a_dataset.md").read_text()


def test_the_config_to_copy_is_one(tmp_path):
    (block,) = blocks("docs/configs.md", "python")
    path = tmp_path / "mine.py"
    path.write_text(block)
    points = grids.load_points(str(path), {})
    assert [point.config.loss.class_weights for point in points] == ["none", "enet"]


def rows(page, *headings):
    """Cells of the table of a page that has these headings."""
    head = "| " + " | ".join(headings) + " |\n"
    _, found, rest = PAGES[page].partition(head)
    assert found, headings
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_fields_is_that_of_the_default_config():
    said = {}
    choices = fields.CHOICES | {
        "loss.name": losses.LOSSES,
        "loss.class_weights": losses.CLASS_WEIGHTS,
        "optimizer.name": optimizers.OPTIMIZERS,
        "optimizer.schedule": optimizers.SCHEDULES,
    }
    for field, default, meaning in rows("docs/configs.md", "field", "default", "meaning"):
        (name,) = code(field)
        said[name] = ast.literal_eval(default)
        assert set(choices.get(name, ())) <= set(code(meaning)), name
    assert said == config.flat(config.default()) | {"model.options": {}, "optimizer.rates": {}}


def test_the_table_of_options_is_that_of_the_models():
    for names, option, values in rows("docs/models.md", "models", "option", "values"):
        (option,) = code(option)
        for name in code(names):
            model = models.MODELS[name]
            assert option in {field.name for field in dataclasses.fields(model)}, (name, option)
            kind = typing.get_type_hints(model)[option]
            known = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
            if code(values):
                assert set(code(values)) == set(known), (name, option)


def test_the_table_of_datasets_is_that_of_their_builders(tmp_path):
    table = {code(row[0])[0]: row for row in rows("docs/datasets.md", *DATASET_HEADINGS)}
    fixed = {name: kind for name, kind in datasets.DATASETS.items() if name != "folder"}
    assert set(table) == set(fixed)
    for name, kind in fixed.items():
        sizes = kind(source=None, resolution=None, data_dir=tmp_path).splits.values()
        _, images, _, classes, _ = table[name]
        assert images == "{} train, {} validation, {} test".format(*sizes)
        assert str(len(kind.class_names)) in classes


DATASET_HEADINGS = ("name", "images", "size", "classes", "source")


def drawn(command):
    """Page and content of the blocks made by a command."""
    block = rf"<!-- ({command}) -->\n(.*?)\n<!-- end -->"
    return [
        (page, *found)
        for page, text in PAGES.items()
        for found in re.findall(block, text, re.DOTALL)
    ]


def test_tables_are_those_of_the_committed_rows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    found = drawn("segjax table .*?")
    assert "README.md" in [page for page, _, _ in found]
    for page, command, table in found:
        assert main(shlex.split(command)[1:]) == 0
        assert table.strip() == capsys.readouterr().out.strip(), (page, command)


@pytest.mark.slow
def test_the_table_of_models_is_that_of_the_committed_rows():
    """The rows are `segjax models --format json`; test_summary checks what is quick to."""
    ((_, _, table),) = drawn("segjax models")
    stored = json.loads((ROOT / "experiments" / "results" / "models.json").read_text())
    found = [
        summary.Architecture(
            **row | {"figure": summary.Figure(**row["figure"]), "outputs": tuple(row["outputs"])}
        )
        for row in stored
    ]
    assert table == summary.render(found)
    assert [row.name for row in found] == list(models.MODELS)
    for row in found:
        shapes = summary.abstract(models.create(row.name, 11), summary.SIZES[0])
        assert row.parameters == sum(x.size for x in jax.tree.leaves(shapes["params"]))


def test_the_table_of_what_learns_is_that_of_the_committed_rows():
    script = runpy.run_path(str(ROOT / "experiments" / "overfit.py"))
    ((_, _, table),) = drawn("python experiments/overfit.py")
    lines = (ROOT / "experiments" / "results" / "overfit.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert table == script["table"](found)
    assert all(row["mean_iou"] > script["GOAL"] for row in found)
    assert [row["model"] for row in found] == list(models.MODELS)


def test_tables_of_timings_are_those_of_the_committed_rows():
    script = runpy.run_path(str(ROOT / "experiments" / "speed" / "timings.py"))
    notes = (ROOT / "experiments" / "speed" / "NOTES.md").read_text()
    block = r"<!-- python experiments/speed/timings.py (.*?) -->\n(.*?)\n<!-- end -->"
    found = re.findall(block, notes, re.DOTALL)
    assert found
    for files, table in found:
        timings = script["read"](ROOT / name for name in files.split())
        assert table == draw(script["table"](timings)).strip(), files


def test_every_model_and_config_is_named():
    assert set(models.MODELS) <= set(code(PAGES["docs/models.md"]))
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert files <= set(re.findall(r"experiments/(\w+)\.py", ALL))


def test_the_readme_is_short_and_narrow():
    text = PAGES["README.md"]
    assert len(text.encode()) <= 12_000
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 100


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            path = Path(os.path.normpath((ROOT / page).parent / target))
            assert path.is_file(), target
            # Other pages would be made of them (docs/hooks.py).
            assert page not in DOCS or path.suffix != ".md" or path.parent == ROOT / "docs", target


def test_every_page_is_in_the_navigation():
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == set(DOCS)


def test_the_tests_that_pages_name_exist():
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", ALL)
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), (file, name)
