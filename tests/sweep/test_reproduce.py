"""`segjax reproduce`: what comes first, the budget, and that nothing is lost or done twice."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from segjax import config as configs
from segjax import results
from segjax.cli.main import main
from segjax.models import flops
from segjax.runs import timing
from segjax.sweep import budget, grids, ledger, local, reproduce, status
from segjax.sweep.budget import Job, Pace
from support import toy_grid
from support.rows import make_row
from support.runs import arrays, assert_same_bits, finish

TABLE = str(Path(__file__).parents[2] / "experiments" / "camvid_table.py")
SHORT = {"steps": "40", "eval_every": "10", "checkpoint_every": "10"}


@pytest.fixture(scope="module")
def table():
    """The runs of the CamVid table, of forty steps each."""
    return grids.points(f"{TABLE}:smoke", SHORT)


def ordered(grid):
    """By multiply-adds that are not those of the networks, but as different."""
    digests = [configs.digest(point.config) for point in grid]
    return reproduce.order(grid, digests, [len(p.config.model.name) * 10**9 for p in grid])


def test_one_seed_of_every_network_comes_before_second_ones_and_cheap_ones_first(table):
    found = ordered(table)
    tiers = [tier for tier, _ in found]
    assert tiers == sorted(tiers)
    assert Counter(tiers) == {0: 15, 1: 15, 2: 15}
    for tier in range(3):
        names = [point.config.model.name for own, point in found if own == tier]
        assert len(set(names)) == 15
        assert list(map(len, names)) == sorted(map(len, names))
    shuffled = random.Random(0).sample(table, len(table))
    assert [tier for tier, _ in ordered(shuffled)] == tiers


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_have_every_run_once_and_are_alike(table, parts):
    found = ordered(table)
    dealt = [found[part::parts] for part in range(parts)]
    names = [point.name for part in dealt for _, point in part]
    assert sorted(names) == sorted(point.name for point in table)
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1


PACE = Pace(
    start=10, compiling=20, step=1, validation=2, saving=1, test=10, stopping=3
)  # of 40 steps: 92 seconds


def job(point, **changed):
    own = changed.pop("pace", PACE)
    made = {"tier": 0, "operations": 1, "step": 0, "failures": 0, "own": own, "pace": own}
    return Job(point, **(made | {"budget": 600} | changed))


def test_what_a_run_takes_follows_from_what_is_left_of_it(table):
    point = table[0]
    assert job(point).whole == 10 + 20 + 40 * 1 + 4 * 2 + 4 * 1 + 10
    assert job(point, step=30).whole == 10 + 20 + 10 * 1 + 2 + 1 + 10
    assert job(point, step=40).whole == 10 + 20 + 10
    assert job(point, pace=Pace(start=10)).whole is None
    twice = budget.completed(Pace(start=1), 200, [(PACE, 100)])
    assert (twice.start, twice.compiling, twice.step, twice.test) == (1, 20, 2, 20)


def test_what_fits_comes_first_among_equals_and_only_among_them(table):
    a, b, c, d = table[:4]
    slow = budget.completed(Pace(step=10), 1, [(PACE, 1)])
    jobs = [
        job(a, operations=1, pace=slow),
        job(b, operations=3),
        job(c, operations=2),
        job(d, tier=1),
    ]

    def chosen(left, *among, **flags):
        found = budget.choose(among or jobs, left, **flags)
        return found.point if found else None

    assert chosen(600) is a
    assert chosen(200) is c
    assert chosen(200, *jobs[:1], jobs[3]) is a  # a first seed that gets on before a second
    assert chosen(200, *jobs[:1], jobs[3], whole_only=True) is d
    assert chosen(60, *jobs[:1]) is None  # the start would take more than the training
    assert chosen(60, *jobs[:1], first=True) is a
    assert chosen(30, *jobs[:1], first=True) is None  # it would not come to its first step
    # What is begun comes first, what has failed last.
    assert chosen(600, *jobs, job(d, tier=2, step=10)) is d
    assert chosen(600, job(a, failures=1), job(d, tier=2)) is d
    # A test cannot be halved, and what took so long in vain wants more.
    assert chosen(35, job(a, step=40), first=True) is None
    assert chosen(200, job(a, pace=Pace(vain=250)), first=True) is None
    assert chosen(300, job(a, pace=Pace(vain=250)), first=True) is a
    # With nothing known it is tried, wherever there is no other.
    unknown = job(a, own=Pace(), pace=budget.completed(Pace(), 1, []))
    assert chosen(600, unknown) is a
    assert chosen(60, unknown) is None
    assert chosen(60, unknown, first=True) is a


def test_what_was_in_vain_counts_until_a_start_gets_on():
    nothing = dict.fromkeys(budget.MEASURED)

    def timing(end, seconds, steps=0, **known):
        return {**nothing, "end": end, "seconds": seconds, "steps": steps, **known}

    cold = timing("stopped", 500, steps=2, compiling=400, validation=9)
    warm = timing("finished", 150, steps=2, compiling=70, validation=7)
    vain = timing("stopped", 390, compiling=3)
    assert budget.pace([vain, timing("stopped", 70)]).vain == 390
    assert budget.pace([vain, cold]) == Pace(compiling=400, validation=9)
    # Once it is compiled it need not be again, but a validation may take as long as it once did.
    assert budget.pace([vain, cold, warm]) == Pace(compiling=70, validation=9)
    assert budget.pace([cold, timing("finished", 60), vain]).vain == 390


class Clock:
    """Time that goes on as it is waited for."""

    def __init__(self):
        self.now = 1e6

    def monotonic(self):
        return self.now

    time = monotonic

    def sleep(self, seconds):
        self.now += seconds


class Process:
    """Stands for `segjax train`: what it would write, when it would."""

    def __init__(self, clock, folder, point, paces):
        self.clock, self.folder, self.point = clock, folder, point
        self.now, self.returncode, self.asked = clock.now, None, False
        self.life = self._live(paces[point.config.model.name])
        self.takes = next(self.life)

    def _live(self, pace):
        steps, step = self.point.config.steps, status.saved_step(self.folder)
        yield pace.start
        self._end("start", 0)
        first = step
        marked = step
        while step < steps:
            yield pace.step + (pace.compiling if step == first else 0)
            step += 1
            if step == first + 1:
                self._end("first step", 1, pace.compiling)
                marked = step
            if step % 10 == 0 or self.asked:
                self._end("training", step - marked)
                marked = step
            if step % 10 == 0:
                yield pace.validation
                self._end("validation", 0)
            if step % 10 == 0 or self.asked:
                yield pace.saving
                (self.folder / "checkpoints" / "latest" / str(step)).mkdir(
                    parents=True, exist_ok=True
                )
                self._end("saving", 0)
            if self.asked:
                yield pace.stopping
                self._end("stopping", 0)
                self.returncode = 143
                return
        yield pace.test
        self._end("test", 0)
        (self.folder / "result.json").write_text(json.dumps(row_of(self.point)))
        self.returncode = 0

    def _end(self, phase, steps, compiling=0.0):
        row = {"phase": phase, "seconds": self.now - self.since, "steps": steps}
        row |= {"compiling": compiling, "saved_by_cache": 0, "device": "fake x1"}
        with (self.folder / "phases.jsonl").open("a") as file:
            file.write(json.dumps(row | {"time": self.now}) + "\n")
        self.since = self.now

    since = 0.0

    def poll(self):
        self.since = self.since or self.now
        while self.returncode is None and self.now + self.takes <= self.clock.now:
            self.now += self.takes
            self.takes = next(self.life, 0.0)
        return self.returncode

    def terminate(self):
        self.asked = True

    def kill(self):
        self.returncode = self.returncode or -signal.SIGKILL


def row_of(point):
    return make_row(
        point.config.seed,
        config_digest=configs.digest(point.config),
        model=point.config.model.name,
        name=point.name,
        overrides=dict(point.overrides),
    )


@pytest.fixture
def simulate(monkeypatch):
    """Calls of `reproduce.run` in a time of their own: the status of one, and what was begun."""
    clock, begun = Clock(), []
    monkeypatch.setattr(reproduce, "time", clock)
    monkeypatch.setattr(reproduce, "_LOOK_EVERY", 1.0)
    monkeypatch.setattr(reproduce, "_prepare", lambda *_: True)
    monkeypatch.setattr(
        flops, "of_training", lambda config: flops.Cost(1, len(config.model.name) * 10**9)
    )
    # The disk need not have what a test writes.
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def call(grid, folder, paces, seconds, **more):
        processes = []

        def start(spec, title, point, workdir, share, claim):
            # One at a time, and none that is left over.
            assert all(process.returncode is not None for process in processes)
            process = Process(clock, workdir / point.name, point, paces)
            processes.append(process)
            begun.append(point.name)
            return local.Child(
                title, point, workdir / point.name, share, claim, process, io.BytesIO()
            )

        monkeypatch.setattr(local, "start", start)
        console = Console(file=io.StringIO(), width=200)
        began = clock.now
        clock.sleep(4)  # imports
        code = reproduce.run(
            "grid.py", grid, folder, seconds=seconds, began=began, console=console, **more
        )
        assert clock.now - began <= seconds
        assert all(process.returncode is not None for process in processes)
        return code, console.file.getvalue().splitlines()

    call.begun = begun
    return call


def paces_of(grid, seed):
    """Paces of networks that differ widely, though not by their multiply-adds alone."""
    chance = random.Random(seed)
    return {
        point.config.model.name: Pace(
            start=chance.uniform(5, 15),
            compiling=chance.uniform(5, 80),
            step=chance.uniform(1, 20),
            validation=chance.uniform(1, 10),
            saving=chance.uniform(0.1, 3),
            test=chance.uniform(5, 40),
            stopping=chance.uniform(0.5, 5),
        )
        for point in grid
    }


def test_budgets_are_kept_until_all_is_done(tmp_path, table, simulate):
    networks = [point.config.model.name for point in table[:15]][::2]
    grid = [p for p in table if p.config.seed < 2 and p.config.model.name in networks]
    paces, folder = paces_of(grid, 0), tmp_path / "out"
    work = sum(job(point, pace=paces[point.config.model.name]).whole for point in grid)
    seconds, calls, last = 600, 0, ""
    while True:
        calls += 1
        code, said = simulate(grid, folder, paces, seconds)
        if code == 0:
            break
        assert code == reproduce.REMAINS
        assert said[-1] != last, "a call has done nothing"
        last = said[-1]
    # Little is lost where runs are cut: each of these pays for a start and for compiling again.
    assert work / seconds <= calls <= 1.5 * work / seconds + 1
    rows = results.read([folder / "results.jsonl"])
    assert sorted(row["name"] for row in rows) == sorted(point.name for point in grid)
    assert said[-1] == f"16 of 16 runs done; rows in {folder / 'results.jsonl'}"
    # The closing table has the compile seconds of every network.
    for name, pace in paces.items():
        (line,) = [line for line in said if line.split()[0] == name]
        assert line.split()[1:4] == [
            "2/2",
            f"{pace.start + pace.step:.1f}",
            f"{pace.compiling:.1f}",
        ]
    # First seeds are not kept waiting.
    place = {row["name"]: number for number, row in enumerate(rows)}
    firsts = [place[point.name] for point in grid if point.config.seed == 0]
    assert sum(firsts) / 8 < 5
    assert not list(folder.glob("*/checkpoints/latest"))


def test_with_time_enough_the_order_is_kept(tmp_path, table, simulate):
    assert simulate(table, tmp_path, paces_of(table, 1), 10**6)[0] == 0
    expected = [point.name for _, point in ordered(table)]
    assert simulate.begun == expected


def test_what_never_fits_does_not_keep_others_waiting(tmp_path, table, simulate):
    grid = [p for p in table if p.config.model.name in ("unet", "segnet", "fcn8s")]
    paces = paces_of(grid, 2)
    paces["unet"] = Pace(10, 5000, 1, 1, 1, 1, 1)
    codes = [simulate(grid, tmp_path, paces, 600)[0] for _ in range(12)]
    code, said = simulate(grid, tmp_path, paces, 600)
    assert {*codes, code} == {reproduce.REMAINS}
    assert [line.split(" runs")[0] for line in said if " runs " in line] == ["6 of 9"]
    assert sum("unet" in name for name in simulate.begun) <= 2
    assert sum(line.startswith("did not get on within") for line in said) == 3
    assert simulate(grid, tmp_path, paces, 20_000)[0] == 0


def test_parts_on_several_machines_make_one_table(tmp_path, table, simulate):
    paces = paces_of(table, 3)
    folders = [tmp_path / str(part) for part in range(3)]
    for part, folder in enumerate(folders, 1):
        assert simulate(table, folder, paces, 10**6, part=(part, 3))[0] == 0
    assert sorted(simulate.begun) == sorted(point.name for point in table)
    assert len(results.read([folder / "results.jsonl" for folder in folders])) == 45
    # A folder that has the rows of all of them has nothing left to do.
    together = tmp_path / "together"
    together.mkdir()
    lines = [(folder / "results.jsonl").read_text() for folder in folders]
    (together / "results.jsonl").write_text("".join(lines))
    simulate.begun.clear()
    assert simulate(table, together, paces, 600)[0] == 0
    assert simulate.begun == []


# Stands for `segjax train` in a process: does what the file `do` in its folder says.
FAKE = """
import pathlib, shutil, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
with (folder.parent / "log").open("a") as log:
    log.write(folder.name + "\\n")
exec((folder / "do").read_text() if (folder / "do").exists() else "")
shutil.copy(folder / "row.json", folder / "result.json")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`reproduce.run` on four stand-ins: its status and lines; `do` says what one does."""
    monkeypatch.setattr(local, "_CHILD", FAKE)
    monkeypatch.setattr(reproduce, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(reproduce, "_CLOSING", 1.0)
    monkeypatch.setattr(reproduce, "_prepare", lambda *_: True)
    spec = toy_grid.write(tmp_path, "", [1, 2])
    grid = grids.points(spec, {})
    output = tmp_path / "out"
    for point in grid:
        (output / point.name).mkdir(parents=True)
        (output / point.name / "row.json").write_text(json.dumps(row_of(point)))

    class StandIn:
        folders = tuple(output / point.name for point in grid)

        def do(self, number, code):
            (self.folders[number] / "do").write_text(code)

        def run(self, seconds=600, **more):
            console = Console(file=io.StringIO(), width=200)
            more = {"seconds": seconds, "began": time.monotonic(), "console": console} | more
            code = reproduce.run(spec, grid, output, **more)
            return code, console.file.getvalue().splitlines()

        def begun(self):
            found = (output / "log").read_text().splitlines()
            (output / "log").unlink()
            return [self.folders.index(output / name) for name in found]

    return StandIn()


def test_a_failure_is_recorded_tried_once_more_and_then_left(stand_in):
    stand_in.do(0, "sys.exit('segjax: it is broken')")
    code, said = stand_in.run()
    first = stand_in.folders[0]
    assert code == reproduce.REMAINS
    assert f"[1/4] {first.name}: failed: it is broken" in said
    assert f"failed: {first.name}, see {first / 'error.txt'}" in said
    assert stand_in.begun() == [0, 2, 1, 3]
    code, said = stand_in.run()
    assert code == 1
    assert said[-1].startswith("3 of 4 runs done, 1 failed; rows in ")
    assert stand_in.begun() == [0]
    assert stand_in.run()[0] == 1
    assert (first / "error.txt").read_text() == "segjax: it is broken\n"
    stand_in.do(0, "")
    assert stand_in.run(retry=True)[0] == 0
    assert stand_in.begun() == [0]
    assert not (first / "error.txt").exists()


def test_a_run_that_ignores_the_signal_does_not_outlive_the_budget(stand_in):
    stand_in.do(
        0,
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'asked').touch())\n"
        "(folder / 'pid').write_text(str(__import__('os').getpid()))\n"
        "while True:\n    time.sleep(0.01)\n",
    )
    began = time.monotonic()
    code, _ = stand_in.run(seconds=5, began=began)
    assert time.monotonic() - began < 5
    assert code == reproduce.REMAINS
    assert (stand_in.folders[0] / "asked").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((stand_in.folders[0] / "pid").read_text()), 0)
    assert not (stand_in.folders[0] / "error.txt").exists()


def test_a_second_call_in_one_folder_is_refused(stand_in, tmp_path, capsys):
    stand_in.do(0, "(folder / 'ready').touch()\nwhile True:\n    time.sleep(0.01)\n")
    # In another thread, as signals of the first are nobody's here.
    script = (
        "import pathlib, sys, time, fcntl\n"
        f"lock = open({str(stand_in.folders[0].parent / '.reproduce.lock')!r}, 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    arguments = ["reproduce", "camvid", "--config", str(tmp_path / "grid.py"), "--budget", "9"]
    assert main([*arguments, "--output", str(stand_in.folders[0].parent)]) == 2
    holder.kill()
    holder.communicate()
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in use by another call" in line


HOLD = """
import os, pathlib, time
from segjax.train import _Training

validate = _Training._validate

def hold(self, state, step):
    while "HOLD" in os.environ and step == 2 and not self.stop.asked():
        pathlib.Path(os.environ["HOLD"]).touch()
        time.sleep(0.01)
    validate(self, state, step)

_Training._validate = hold
"""


def test_a_run_that_the_budget_cut_ends_with_the_bits_of_one_that_it_did_not(
    tmp_path, scenes_data_dir, monkeypatch
):
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1], [3])
    with open(spec, "a") as file:
        file.write(HOLD)
    grid = grids.points(spec, {})
    held = tmp_path / "held"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("HOLD", str(held))
    seconds = 1000

    class Jumping:
        """Real time, but that the budget is nearly over once the run is at its second step."""

        def __init__(self):
            self.began, self.jump = time.monotonic(), 0.0

        def monotonic(self):
            if held.exists() and not self.jump:
                self.jump = self.began + seconds - 24 - time.monotonic()
            return time.monotonic() + self.jump

        def __getattr__(self, name):
            return getattr(time, name)

    def call(output):
        console, clock = Console(file=io.StringIO(), width=200), Jumping()
        monkeypatch.setattr(reproduce, "time", clock)
        began = clock.monotonic()
        code = reproduce.run(spec, grid, output, seconds=seconds, began=began, console=console)
        return code, console.file.getvalue()

    cut = tmp_path / "cut"
    code, said = call(cut)
    assert code == reproduce.REMAINS, said
    assert "0 of 1 runs done, 1 left (1 begun)" in said
    assert status.saved_step(cut / grid[0].name) == 2
    monkeypatch.delenv("HOLD")
    held.unlink()
    # The runs share what they compile, as those of one folder do.
    shutil.copytree(cut / "compiled", tmp_path / "whole" / "compiled")
    assert call(cut)[0] == 0
    assert call(tmp_path / "whole")[0] == 0
    ours, theirs = (
        results.read([folder / "results.jsonl"])[0] for folder in (cut, tmp_path / "whole")
    )
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ <= {"command", "seconds", "finished"}
    assert_same_bits(
        *(arrays(folder / grid[0].name, "final") for folder in (cut, tmp_path / "whole"))
    )
    ends = [json.loads(line)["end"] for line in (cut / ledger.TIMINGS).read_text().splitlines()]
    assert ends == ["stopped", "finished"]


NEEDED = "jax", "flax", "optax", "orbax-checkpoint", "ml-collections", "tensorflow-datasets"

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: it is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""


def not_needed():
    """The modules installed here that neither NEEDED nor what they require has."""

    def canonical(name):
        return name.lower().replace("_", "-").replace(".", "-")

    extras = {}
    queue = [(canonical(name), "") for name in NEEDED]
    while queue:
        name, extra = queue.pop()
        if extra in extras.setdefault(name, set()):
            continue
        extras[name].add(extra)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in requirements:
            needs = Requirement(text)
            if needs.marker is None or needs.marker.evaluate({"extra": extra}):
                queue += [(canonical(needs.name), own) for own in ("", *needs.extras)]
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if module != "segjax" and not {canonical(owner) for owner in owners} & set(extras)
    )


def test_a_call_that_is_killed_loses_no_row_with_nothing_but_what_training_needs(
    tmp_path, scenes_data_dir
):
    blocked = not_needed()
    assert {"PIL", "grain", "wandb", "matplotlib"} <= set(blocked)
    assert not {"scipy", "rich", "yaml", "tensorstore"} & set(blocked)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKER.format(names=set(blocked)))
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1], [0, 1])
    output = tmp_path / "out"
    path = os.pathsep.join((str(site), str(Path(__file__).parents[1])))

    def start():
        command = ["reproduce", "camvid", "--config", spec, "--budget", "400", "--output", output]
        return subprocess.Popen(
            [sys.executable, "-m", "segjax", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    process = start()
    second = output / "optimizer.learning_rate=0.1,seed=1" / "log.txt"
    while not second.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = (output / "results.jsonl").read_text()
    assert before.count("\n") == 1
    said = finish(start()).splitlines()
    assert said[-1] == f"2 of 2 runs done; rows in {output / 'results.jsonl'}"
    rows = results.read([output / "results.jsonl"])
    assert [row["seed"] for row in rows] == [0, 1]
    assert (output / "results.jsonl").read_text().startswith(before)
    timings = [json.loads(line) for line in (output / ledger.TIMINGS).read_text().splitlines()]
    assert all(timing["compiling"] > 0 for timing in timings)
    run = output / "optimizer.learning_rate=0.1,seed=0"
    found = timing.read(run)
    lap = ["training", "validation", "saving"]
    assert [row["phase"] for row in found] == ["start", "first step", *lap, *lap, "test"]
    assert [row["steps"] for row in found if row["steps"]] == [1, 1, 2]
    # There is no Pillow to draw them.
    assert not list(output.glob("*/samples"))
    # Nothing is done again.
    assert (
        main(
            ["reproduce", "camvid", "--config", spec, "--budget", "100000", "--output", str(output)]
        )
        == 0
    )
    assert results.read([output / "results.jsonl"]) == rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["camvid", "--budget", "0"], "expected a positive number, found '0'"),
        (["camvid", "--budget", "-5"], "expected a positive number, found '-5'"),
        (["camvid", "--budget", "soon"], "expected a positive number, found 'soon'"),
        (["camvid"], "the following arguments are required: --budget"),
        (["cityscapes", "--budget", "9"], "invalid choice: 'cityscapes'"),
        (["camvid", "--budget", "9", "--size", "huge"], "invalid choice: 'huge'"),
        (["camvid", "--budget", "9", "--part", "0/3"], "expected K/N such as 1/3, found '0/3'"),
        (["camvid", "--budget", "9", "--part", "4/3"], "expected K/N such as 1/3, found '4/3'"),
        (["camvid", "--budget", "9", "--part", "half"], "expected K/N such as 1/3, found 'half'"),
        (["camvid", "--budget", "9", "--only", "alexnet*"], "--only alexnet* fits none"),
        (["camvid", "--budget", "9", "--config.stepz=3"], "did you mean 'steps'"),
        (["camvid", "--budget", "9", "--config", "x.py"], "config file x.py does not exist"),
        (
            ["camvid", "--budget", "9", "--config", TABLE, "--size", "small"],
            "not allowed with argument",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, said):
    assert main(["reproduce", *arguments, "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    arguments = ["reproduce", "camvid", "--size", "smoke", "--budget", "9", "--output"]
    assert main([*arguments, str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"segjax: --output {tmp_path / 'out'} cannot be written: File exists"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.jsonl").write_text('{"schema": 1')
    assert main([*arguments, str(tmp_path / "damaged")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged/results.jsonl:1: damaged" in line
