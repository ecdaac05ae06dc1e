"""Sweeps of tiny runs on a real Slurm cluster, with six nodes on this machine."""

import io
import os
import re
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from segjax import results
from segjax.cli.main import main
from segjax.sweep import slurm, slurm_script, status
from support import slurm_cluster
from support.runs import arrays, assert_same_bits, saved_steps

pytestmark = pytest.mark.slow

# While the file `slow` exists, each step after the twelfth takes two seconds.
CONFIG = """
import pathlib, time
from support.runs import OneLayer, small_config
from segjax import models
from segjax.runs import metrics_log

models.MODELS["one_layer"] = OneLayer
write = metrics_log.MetricsLog.write

def slow(self, step, values):
    if step > 12 and pathlib.Path("{slow}").exists():
        time.sleep(2)
    write(self, step, values)

metrics_log.MetricsLog.write = slow

def get_config():
    config = small_config("{data_dir}", steps=100, eval_every=50, checkpoint_every=10)
    config.num_devices = {devices}
    return config

def sweep():
    for {name} in {values}:
        yield {{"{field}": {name}}}
"""


class Sweep:
    """A sweep on the cluster, in a folder of its own."""

    def __init__(self, cluster, folder, data_dir, field, values, devices=1):
        self.cluster, self.workdir = cluster, folder / "the runs"
        self.spec, self.slow = folder / "grid.py", folder / "slow"
        text = CONFIG.format(
            slow=self.slow,
            data_dir=data_dir,
            devices=devices,
            name="value",
            field=field,
            values=values,
        )
        self.spec.write_text(text)
        self.folders = {value: self.workdir / f"{field}={value}" for value in values}

    def sweep(self, *options):
        """Run `segjax sweep` with options and return its output."""
        output = io.StringIO()
        with redirect_stdout(output):
            arguments = ["--config", self.spec, "--workdir", self.workdir, *options]
            assert main(["sweep", "--launcher", "slurm", *map(str, arguments)]) == 0
        return output.getvalue()

    def job(self, value):
        return slurm.read_queue(self.workdir)[self.folders[value].name]

    def job_field(self, value, field):
        """Return a field of the job of a run from `scontrol show job`, such as ExitCode."""
        output = self.cluster.call("scontrol", "show", "job", self.job(value).id)
        return re.search(rf"\b{field}=(\S+)", output)[1]

    def step(self, value):
        log = self.folders[value] / "metrics.jsonl"
        return log.read_text().count("train/loss") if log.exists() else 0

    def log(self, value):
        return (self.folders[value] / "log.txt").read_text()

    def wait_for(self, holds, what):
        self.cluster.wait_for(holds, what)

    def starts(self, value):
        return len(re.findall(r"^job \d+_\d+ on ", self.log(value), re.MULTILINE))

    def wait_for_all(self):
        self.wait_for(
            lambda: not any(job.is_active for job in slurm.read_queue(self.workdir).values()),
            "the end of all jobs",
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if slurm_cluster.missing():
        pytest.skip(slurm_cluster.missing())
    with (
        pytest.MonkeyPatch.context() as patch,
        slurm_cluster.cluster(tmp_path_factory.mktemp("slurm"), nodes=6, cpus=8) as started,
    ):
        for name, value in {
            **started.environment,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }.items():
            patch.setenv(name, value)
        yield started


def test_a_process_in_the_shell_of_an_allocation_joins_no_other(cluster):
    allocated = ("salloc", "--ntasks=4", "--nodes=2")
    # What `salloc` runs for its shell, with LaunchParameters=use_interactive_step.
    shell = ("srun", "--interactive", "--preserve-env")
    joined = "from segjax.runs import processes; processes.join(); print(processes.count())"
    for step in (shell, ("srun", "--ntasks=1", "--nodes=1", "--preserve-env")):
        assert cluster.call(*allocated, *step, sys.executable, "-c", joined) == "1\n"
    assert cluster.call(*allocated, "srun", sys.executable, "-c", joined) == "4\n" * 4


def test_an_array_of_four_runs_one_of_which_fails(cluster, tmp_path, scenes_data_dir):
    rates = (0.05, 0.1, 1e30, 0.2)
    own = Sweep(cluster, tmp_path, scenes_data_dir, "optimizer.learning_rate", rates)
    said = own.sweep("--jobs", "2", "--time-limit", "600", "--cpus-per-task", "2")
    assert said.startswith("submitted 4 runs as job ")
    assert "4 in the queue" in own.sweep()
    own.wait_for_all()

    assert {own.job_field(rate, "ExitCode") for rate in (0.05, 0.1, 0.2)} == {"0:0"}
    assert own.job_field(1e30, "ExitCode") == "1:0"
    assert own.job_field(1e30, "JobState") == "FAILED"
    rows = results.read([own.workdir])
    assert sorted(row["overrides"]["optimizer.learning_rate"] for row in rows) == [0.05, 0.1, 0.2]
    for rate, folder in own.folders.items():
        assert (folder / "result.json").exists() == (rate != 1e30)
        assert (folder / "error.txt").exists() == (rate == 1e30)
        assert own.log(rate).count("test G ") == (rate != 1e30)
    error = (own.folders[1e30] / "error.txt").read_text()
    assert "at step 2; no good checkpoint was saved" in status.failure_cause(error)
    progress = own.sweep("--status")
    assert "4 runs: 3 finished, 1 failed" in progress
    assert f"{own.job(1e30).id} FAILED" in progress
    # Another submission would retry the failed run.
    assert "\n#SBATCH --array=3\n" in own.sweep("--dry-run")
    assert main(["table", "--results", str(own.workdir)]) == 0


def test_a_canceled_run_stays_canceled_until_it_is_submitted_again(
    cluster, tmp_path, scenes_data_dir
):
    own = Sweep(cluster, tmp_path, scenes_data_dir, "seed", (0, 1))
    own.slow.touch()
    own.sweep()
    own.wait_for(lambda: all(own.step(seed) > 2 for seed in (0, 1)), "steps of both")
    gone = own.job(0).id
    assert f"canceled {gone}: seed=0\n" == own.sweep("--cancel", "--only", "seed=0")
    own.wait_for(lambda: not own.job(0).is_active, "the end of the canceled job")
    assert own.job(0).state == "CANCELLED"
    own.slow.unlink()
    own.wait_for_all()
    # A requeued job would run again by now.
    assert own.job(0).id == gone
    assert (own.job(0).state, own.job(1).state) == ("CANCELLED", "COMPLETED")
    assert not (own.folders[0] / "error.txt").exists()
    stopped = saved_steps(own.folders[0], "latest")[-1]
    assert f"stopped by SIGTERM at step {stopped}, all is saved" in own.log(0)
    assert 10 < stopped < 100
    assert (own.folders[1] / "result.json").exists()

    # A job submitted by hand is found by its script, and its run by the task number.
    cluster.call("sbatch", "--array=1", own.workdir / slurm_script.SCRIPT)
    assert own.sweep("--resubmit") == "nothing to submit: 1 finished, 1 in the queue\n"
    own.wait_for_all()
    assert f"resumed at step {stopped}" in own.log(0)
    assert "2 runs: 2 finished" in own.sweep("--status")
    assert own.sweep("--resubmit") == "nothing to submit: 2 finished\n"


DISTURBANCES = ("requeued", "preempted", "timed", "node", "process")


def disturb(cluster, folder, data_dir):
    """Train runs of two processes on two nodes, one undisturbed and then one each that

    - is requeued by an administrator,
    - is preempted by a job in a partition of higher priority,
    - gets the signal before its time limit,
    - loses one of its nodes,
    - loses one of its processes, and is submitted again.
    """
    names = ("alone", *DISTURBANCES)
    own = Sweep(cluster, folder, data_dir, "wandb.group", names, devices=2)
    nodes = {"preempted": "127.0.0.[3-4]", "node": "127.0.0.[5-6]"}

    def submit(name):
        only = ["--only", f"*={name}", f"--sbatch=--nodelist={nodes.get(name, '127.0.0.[1-2]')}"]
        own.sweep("--nodes", "2", "--time-limit", "3600", *only)

    submit("alone")
    own.wait_for_all()
    own.slow.touch()
    for name in DISTURBANCES:
        submit(name)
    own.wait_for(lambda: all(own.step(name) > 12 for name in DISTURBANCES), "their first steps")

    cluster.call("scontrol", "requeue", own.job("requeued").id)
    cluster.call("sbatch", "--partition=urgent", "--nodelist=127.0.0.3", "--exclusive",
                 "--output=/dev/null", "--wrap=true")  # fmt: skip
    limit = "scontrol", "update", f"jobid={own.job('timed').id}"
    cluster.call(*limit, "TimeLimit=2")  # minutes: the signal is due at once
    cluster.kill_node("127.0.0.6")
    own.wait_for(lambda: "stopped by" in own.log("timed"), "the signal before the time limit")
    cluster.call(*limit, "TimeLimit=60")  # before it starts again

    array, task = own.job("process").id.split("_")
    (second,) = slurm_cluster.processes_with(
        "SLURM_PROCID=1", f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"
    )
    os.kill(second, signal.SIGKILL)

    killed = time.monotonic()
    own.wait_for(lambda: not own.job("process").is_active, "the end of the run without a process")
    own.seconds = time.monotonic() - killed
    own.end = {name: own.job_field("process", name) for name in ("JobState", "ExitCode")}
    own.error = (own.folders["process"] / "error.txt").read_text()
    own.again = own.sweep("--resubmit")
    own.wait_for(lambda: own.job("node").state == "PENDING", "the requeue after a lost node")
    cluster.start_node("127.0.0.6")
    for name in DISTURBANCES:
        own.wait_for(lambda name=name: own.starts(name) == 2, f"the second start of {name}")
    own.slow.unlink()
    own.wait_for_all()
    return own


def test_disturbed_runs_end_with_the_same_bits_as_an_undisturbed_one(
    cluster, tmp_path, scenes_data_dir, subtests
):
    own = disturb(cluster, tmp_path, scenes_data_dir)
    assert "cpu x2 of 2 processes" in own.log("alone")
    (row,) = results.read([own.folders["alone"]])
    for name in DISTURBANCES:
        with subtests.test(name):
            log = own.log(name)
            (step,) = re.findall(r"cpu x2 of 2 processes, resumed at step (\d+)", log)
            if name in ("node", "process"):  # killed without a signal to save
                assert int(step) % 10 == 0 < int(step)
                assert "stopped by" not in log
            else:
                assert f"stopped by SIGTERM at step {step}, all is saved" in log
                assert int(step) > 12
            for kind in ("latest", "final"):
                ours, theirs = (arrays(own.folders[n], kind) for n in (name, "alone"))
                assert_same_bits(ours, theirs)
            assert results.read([own.folders[name]])[0]["confusion"] == row["confusion"]
            assert log.count("test G ") == 1
            assert own.job_field(name, "ExitCode") == "0:0"
            assert not (own.folders[name] / "error.txt").exists()
    with subtests.test("a lost process ends the run soon, and the next start resumes"):
        assert own.seconds < 60
        assert own.end == {"JobState": "FAILED", "ExitCode": "137:0"}
        assert status.failure_cause(own.error) == "127.0.0.2: task 1: Killed"
        assert own.again.startswith("submitted 1 run as job ")
        assert "1 finished, 4 in the queue" in own.again
