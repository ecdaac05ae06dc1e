"""A sweep of tiny runs, killed again and again, stopped, and finished by two sweeps at once.

PYTHONPATH=tests python -m support.kill_a_sweep FOLDER DATA_DIR

Twelve runs and five kills take some minutes. DATA_DIR has streetscenes of 24x32. A smaller form is
a test in tests/sweep/test_local.py.
"""

import random
import signal
import sys
import time
from pathlib import Path

from segjax import results
from segjax.runs.metrics_log import read_metrics
from segjax.sweep import status
from segjax.system import locks
from support import toy_grid
from support.runs import finish

AT_ONCE = ("--jobs", "2")
LONGEST_REST = 3.0  # seconds from what is waited for to the kill


def kill_and_finish(folder: Path, data_dir: Path, rates, seeds, kills: int) -> list[str]:
    """Check that no run is lost, none ends twice, and all rows are whole; return what was seen."""
    spec, workdir = toy_grid.write(folder, data_dir, rates, seeds), folder / "runs"
    total = len(rates) * len(seeds)
    chance, seen, before = random.Random(0), [], {}
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def finished():
        paths = workdir.glob("*/result.json")
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    def under_way():
        return [path.parent for path in workdir.glob("*/.sweep.lock") if locks.is_held(path)]

    for kill in range(kills + 1):
        process = toy_grid.start_sweep(spec, workdir, *AT_ONCE, **environment)
        deadline = time.monotonic() + 600
        # The first comes before anything is finished, the later ones as it gets on.
        while len(finished()) < kill * total // (kills + 1) or not under_way():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, LONGEST_REST))
        assert process.poll() is None, "it ended before it was killed"
        cut_off = under_way()
        number = signal.SIGKILL if kill < kills else signal.SIGTERM
        process.send_signal(number)
        said = process.communicate()
        while any(status.is_in_use(run) for run in cut_off):  # they die of it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, said
            assert "stopped; the same command resumes" in said[0]
        assert not list(workdir.glob("*/error.txt"))
        now = finished()
        assert before.items() <= now.items()
        before = now
        seen.append(f"{number.name}: {len(now)} of {total} finished, {len(cut_off)} under way")

    sweeps = [toy_grid.start_sweep(spec, workdir, *AT_ONCE, **environment) for _ in range(2)]
    said = [finish(process) for process in sweeps]
    assert any("in use by another process, waiting for it" in out for out in said)
    for out in said:
        assert f"{total} of {total} runs are finished" in out
    after = finished()
    assert len(after) == total
    assert before.items() <= after.items()

    rows = results.read([workdir])
    wanted = [{"optimizer.learning_rate": r, "seed": s} for r in rates for s in seeds]
    assert sorted(map(str, wanted)) == sorted(str(row["overrides"]) for row in rows)
    ends = 0
    for run in workdir.iterdir():
        ends += (run / "log.txt").read_text().count("\ntest G ")
        logged = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4]
        assert [row["step"] for row in logged if "val/mean_iou" in row] == [2, 4]
        assert not (run / "error.txt").exists()
    # A run says so when it has ended; a kill may come between its row and that.
    assert total - (kills + 1) * int(AT_ONCE[1]) <= ends <= total
    seen.append(f"{len(rows)} rows; {ends} ends were said")
    return seen


if __name__ == "__main__":
    found = kill_and_finish(Path(sys.argv[1]), Path(sys.argv[2]), (0.05, 0.1, 0.2), range(4), 5)
    sys.stdout.write("\n".join(found) + "\n")
