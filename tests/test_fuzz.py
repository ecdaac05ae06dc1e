"""Damage at random what is read from outside: it is read right, or refused in one line.

A seed fixes the damage. What has a checksum is never read with another value.
"""

import contextlib
import itertools
import json
import random
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from segjax import config as configs
from segjax import results
from segjax.benchmark import measurements
from segjax.benchmark import tables as cost_tables
from segjax.data import datasets, folder, images
from segjax.errors import UserError, line
from segjax.inference import check
from segjax.report import groups, table, tables
from segjax.results import bootstrap, schema
from segjax.results.counts import Counts, write_counts
from segjax.results.rows import write_row
from segjax.results.summary import summarize
from segjax.runs import experiment
from segjax.runs.checkpoint import Checkpoints, restore_template
from segjax.runs.experiment import Description, Experiment
from segjax.sweep import grids, slurm, slurm_script, status
from segjax.training import parallel
from support.damage import damage, repair
from support.folders import save_pair
from support.rows import make_row

# A failed restore leaves Orbax coroutines behind, whose warnings at garbage collection belong to no
# later test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]

ROOT = Path(__file__).parents[1]
SIZE = (24, 32)


def dataset(path, scenes):
    """A prepared dataset."""
    shutil.copytree(scenes, path / "data")
    place = {"data_dir": path / "data", "resolution": SIZE}

    def read():
        info = datasets.info("streetscenes", **place)
        splits = [datasets.open_split("streetscenes", split, **place) for split in info.splits]
        examples = [example for split in splits for example in split]
        pixels = [(x["id"], x["image"].tobytes(), x["label"].tobytes()) for x in examples]
        return info, [split.names for split in splits], pixels

    return read, [path for path in (path / "data").rglob("*.*") if path.is_file()]


def config(path, scenes):
    """The config.json of a run."""
    info = datasets.info("streetscenes", data_dir=scenes, resolution=SIZE)
    own = configs.default()
    description = Description("tiny", "tiny", {"seed": 0}, "segjax train")
    experiment.write_description(path, Experiment(own, info, [], None), description)

    def read():
        experiment.refuse_other_config(own, path)
        found, *rest = experiment.read_description(path)
        return configs.flat(found), rest

    return read, [path / "config.json"]


def result(path, scenes):
    """The result of a run: its row and the counts of each image."""
    confusion = np.array(((80, 15, 5), (10, 180, 10), (6, 6, 8)), np.int32)
    names = np.array(["a", "b"])
    counts = Counts(np.stack([confusion, confusion]), np.ones((2, 3, 3), np.int64), names)
    write_row(path / "result.json", make_row(confusion=2 * confusion, num_images=2))
    write_counts(path / "result.json", counts)

    def read():
        row, found = bootstrap.load(path)
        return row, [x if x is None else x.tolist() for x in vars(found).values()]

    return read, [path / "result.json", path / "result.npz"]


def rows(path, scenes):
    """A .jsonl file of rows."""
    for seed in (0, 1):
        results.append(path / "rows.jsonl", make_row(seed))

    def read():
        found = results.read([path / "rows.jsonl"])
        table.draw(tables.table(summarize(found)))
        groups.read_settings([path / "rows.jsonl"])
        return found

    return read, [path / "rows.jsonl"]


def measured(path, scenes):
    """Rows of `segjax benchmark`."""
    text = (ROOT / "experiments" / "speed" / "results" / "benchmark_cpu.jsonl").read_text()
    schema.append(path / "rows.jsonl", json.loads(text.splitlines()[0]))

    def read():
        found = measurements.read([path / "rows.jsonl"])
        table.draw(cost_tables.listing(found))
        with contextlib.suppress(UserError):
            cost_tables.paper(found)
        return found

    return read, [path / "rows.jsonl"]


def classes(path, scenes):
    """A folder's classes.json and the lists of its splits."""
    for kind in ("images", "masks"):
        (path / kind).mkdir()
        for name in "abcd":
            (path / kind / f"{name}.png").touch()
    for split, names in (("train", "a\nb\n"), ("val", "c\n"), ("test", "d.png\n")):
        (path / f"{split}.txt").write_text(names)
    content = {
        "classes": {"Ground": 0, "Disk": 255},
        "void": [7],
        "colors": {"Disk": [9, 9, 9]},
        "mask_suffix": "",
        "channels": 3,
        "share": {"val": 0.2, "test": 0.2, "seed": 3},
    }
    (path / "classes.json").write_text(json.dumps(content))
    return lambda: folder.find_pairs(path, folder.read_classes(path)), list(path.glob("*.*"))


def pictures(path, scenes):
    """Images and masks of a folder, of several formats."""
    mask = np.kron([[0, 255], [255, 0]], np.ones((6, 8))).astype(np.uint8)
    for suffix in (".png", ".ppm", ".tif", ".bmp"):
        save_pair(path, suffix[1:], mask, mask, suffix, suffix)
    (path / "classes.json").write_text('{"Ground": 0, "Disk": 255}')

    def read():
        check.check(path)  # which lists what is damaged
        own = folder.read_classes(path)
        return [
            (images.read_image(pair.image, 3).shape, folder.read_label(pair.mask, own).shape)
            for pair in itertools.chain(*folder.find_pairs(path, own).values())
        ]

    return read, list(path.glob("*/*"))


def sweep(path, scenes):
    """Read the status of a sweep as `--status` does, on Slurm as well."""
    own = path / "run"
    config(own, scenes)
    (path / "slurm").mkdir()
    logged = {"train/loss": 0.5, "train/images_per_second": 2.0, "val/mean_iou": 0.3}
    lines = [json.dumps({"step": step, **logged}) for step in (1, 2, 3)]
    (own / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (own / "error.txt").write_text("segjax: it failed\n")
    (path / slurm_script.RUNS).write_text("run\tsegjax train --config x\n")
    entry = json.dumps({"job": "12", "submitted": "2026-01-01", "runs": ["run"]})
    (path / "slurm" / "jobs.jsonl").write_text(f"{entry}\n{entry}\n")
    point = grids.Point("run", {}, configs.default())

    def read():
        status.read_statuses([point], path)
        slurm.render_progress([point], path)
        groups.curves(groups.Run({}, own))

    return read, [path for path in path.rglob("*.*") if path.is_file()]


def checkpoint(path, scenes):
    """A checkpoint."""
    state = {"a": np.arange(3, dtype=np.float32), "b": {"c": np.int32(7)}}
    state = parallel.place(state, jax.devices()[:1])
    facts = {"best_step": 1, "best_value": 0.5}
    with Checkpoints(path) as checkpoints:
        checkpoints.save("best", 1, state, facts)
    like = restore_template(state)

    def read():
        with Checkpoints(path, read_only=True) as checkpoints:
            found = checkpoints.restore("best", like)
            return jax.tree.map(lambda x: x.tolist(), found), checkpoints.facts("best")

    return read, [path for path in path.rglob("*") if path.is_file()]


SEALED = (dataset, config, result, rows, measured, checkpoint)
MAKERS = (*SEALED, classes, pictures, sweep)
SLOW_TO_READ = (checkpoint, dataset, pictures)


@pytest.mark.parametrize(
    ("make", "seeds"),
    [(make, range(25)) for make in MAKERS]
    + [
        pytest.param(make, range(25, 150 if make in SLOW_TO_READ else 400), marks=pytest.mark.slow)
        for make in MAKERS
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(len(value)),
)
def test_damaged_files_are_read_right_or_refused_in_one_line(
    make, seeds, scenes_data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm, "_run_program", lambda *_: "")
    read, files = make(tmp_path, scenes_data_dir)
    expected, refused = read(), 0
    for seed in seeds:
        rng = random.Random(f"{make.__name__} {seed}")
        path = rng.choice(sorted(files))
        content = path.read_bytes()
        done = damage(path, rng)
        said = f"seed {seed}, {done}"
        found, error = None, ""
        try:
            found = read()
        except (UserError, OSError) as raised:
            error = line(raised)
        except Exception as raised:
            raise AssertionError(f"{said}: {type(raised).__name__}: {raised}") from raised
        if error:
            refused += 1
            assert "\n" not in error, said
            assert str(tmp_path) in error, (said, error)
            assert len(error.encode()) < 1000, said
        elif make in (rows, measured) and re.search(": (cut|empty|insert) at", done):
            assert all(row in expected for row in found), said  # lines may be missing
        elif make in SEALED:
            assert found == expected, said
        repair(path, content)
    assert read() == expected
    assert refused > len(seeds) / 10
