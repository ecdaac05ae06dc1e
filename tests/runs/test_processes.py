"""Test multi-process training on CPU devices, with processes found from JAX's variables."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segjax.errors import UserError
from segjax.runs import processes
from segjax.runs.metrics_log import read_metrics
from segjax.sweep.status import failure_cause
from segjax.system.files import write_whole
from support.runs import arrays, assert_same_bits, saved_steps, start

pytestmark = pytest.mark.slow

STEPS = 20

# The config file registers the network, in the process that trains.
CONFIG = f"""
from support.runs import OneLayer, small_config
from segjax import models

def get_config():
    models.MODELS["one_layer"] = OneLayer
    config = small_config("", steps={STEPS}, eval_every=10, checkpoint_every=5, num_devices=4)
    config.batch_size = 8
    config.loss.class_weights = "none"
    config.recompute_batch_norm = False
    return config
"""


class Training:
    """Start the same run on four devices, in one process or two."""

    def __init__(self, folder, data_dir, more=""):
        self.folder, self.data_dir = folder, data_dir
        self.config = folder / "tiny.py"
        write_whole(self.config, CONFIG + more)

    def start(self, workdir, processes=2, data_dirs=None, more=((), ()), **changed):
        """Return the started processes; `data_dirs` and `more` arguments have an entry for each."""
        port = free_port()
        fields = [f"--config.{name.replace('__', '.')}={value}" for name, value in changed.items()]
        return [
            start(
                [
                    *("train", "--config", self.config, "--workdir", workdir, *fields),
                    f"--config.data.data_dir={(data_dirs or [self.data_dir] * 2)[process]}",
                    *more[process],
                ],
                PYTHONPATH=str(Path(__file__).parents[1]),
                JAX_COMPILATION_CACHE_DIR=str(self.folder / "compiled"),
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                JAX_NUM_CPU_DEVICES=str(4 // processes),
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_COORDINATOR_BIND_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES=str(processes),
                JAX_PROCESS_ID=str(process),
            )
            for process in range(processes)
        ]

    def run(self, workdir, processes=2, **changed):
        said = [end(process) for process in self.start(workdir, processes, **changed)]
        assert [status for status, _, _ in said] == [0] * processes, said
        return said


@pytest.fixture(scope="module")
def training(scenes_data_dir, tmp_path_factory):
    return Training(tmp_path_factory.mktemp("hosts"), scenes_data_dir)


@pytest.fixture(scope="module")
def of_two(training):
    """Return the workdir of a run in two processes of two devices, and their outputs."""
    workdir = training.folder / "of_two"
    return workdir, training.run(workdir)


@pytest.fixture(scope="module")
def of_one(training):
    """Return the workdir of a run in one process of four devices."""
    training.run(training.folder / "of_one", 1)
    return training.folder / "of_one"


def free_port():
    """Return a port below those that the system gives to other processes."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def end(process):
    try:
        out, error = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, error


def rows(workdir):
    return [row for row in read_metrics(workdir / "metrics.jsonl") if "train/loss" in row]


def counts(workdir):
    with np.load(workdir / "result.npz") as found:
        return dict(found)


def test_two_processes_train_like_one(of_two, of_one):
    ours, theirs = rows(of_two[0]), rows(of_one)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))  # one process writes
    for name in ("train/loss", "train/gradient_norm", "train/global_accuracy"):
        both = [[row[name] for row in each] for each in (ours, theirs)]
        np.testing.assert_allclose(*both, rtol=0, atol=1e-6)
    assert json.loads((of_two[0] / "result.json").read_text())["device"] == "cpu x4"


def test_streamed_data_gives_the_same_bits(training, of_two):
    workdir = training.folder / "streamed"
    training.run(workdir, data__placement="stream")
    assert_same_bits(arrays(workdir, "latest"), arrays(of_two[0], "latest"))


def test_only_first_process_prints(of_two):
    (_, first, _), (_, second, error) = of_two[1]
    assert "cpu x4 of 2 processes" in first
    assert first.count("written to") == 1
    said = [line for line in second.splitlines() if not line.startswith("[Gloo]")]
    assert said == []
    assert "segjax" not in error


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoints_do_not_depend_on_number_of_processes(
    training, of_two, of_one, processes, tmp_path
):
    saved = of_one if processes == 2 else of_two[0]
    workdir = tmp_path / "copy"
    shutil.copytree(saved, workdir)
    for name in ("result.json", "result.npz"):
        (workdir / name).unlink()
    (_, said, _), *_ = training.run(workdir, processes)
    assert f"resumed at step {STEPS}" in said
    # Five test images in batches of four: the last batch is padded, some devices get only padding.
    made, expected = counts(workdir), counts(saved)
    assert made["confusion"].shape[0] == 5
    assert made["boundary"].any()
    for name, x in expected.items():
        np.testing.assert_array_equal(made[name], x)


def test_all_stop_at_the_same_step_when_one_is_signaled(training, of_two, tmp_path):
    workdir = tmp_path / "stopped"
    processes = training.start(workdir)
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or not rows(workdir):
        assert time.monotonic() < deadline
        assert processes[0].poll() is None, end(processes[0])
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGTERM)  # the Slurm tests signal both
    ends = [end(process) for process in processes]
    assert [status for status, _, _ in ends] == [143, 143], ends
    (said,) = re.findall(r"stopped by SIGTERM at step (\d+), all is saved", ends[0][2])
    assert max(saved_steps(workdir, "latest")) == int(said) < STEPS
    assert "stopped" not in ends[1][2]
    (_, said, _), _ = training.run(workdir)
    assert "resumed at step" in said
    for kind in ("latest", "best", "final"):
        assert_same_bits(arrays(workdir, kind), arrays(of_two[0], kind))
    assert [row["train/loss"] for row in rows(workdir)] == [
        row["train/loss"] for row in rows(of_two[0])
    ]


def test_user_error_in_one_process_ends_both(training, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    folders = [training.data_dir, tmp_path / "file" / "data"]
    ends = [end(process) for process in training.start(tmp_path / "run", data_dirs=folders)]
    assert [status for status, _, _ in ends] == [2, 2], ends
    assert "segjax: process 1 of 2 cannot go on, as it says" in ends[0][2]
    cause = f"cannot write {tmp_path / 'file' / 'data'}"
    assert cause in ends[1][2]
    # A sweep reports the cause, whichever process was the last to print.
    assert failure_cause(ends[1][2] + ends[0][2]).startswith(cause)


FULL_DISK = """
import errno, jax
from segjax.runs import metrics_log

def write(self, step, values):
    raise OSError(errno.ENOSPC, "No space left on device", str(self._path))

if jax.process_index() == 0:
    metrics_log.MetricsLog.write = write
"""


def test_full_disk_of_one_process_is_one_line(training, tmp_path):
    full = Training(tmp_path, training.data_dir, FULL_DISK)
    workdir = tmp_path / "run"
    (status, _, error), (other, _, _) = [end(process) for process in full.start(workdir)]
    assert status == 2
    said = [each for each in error.splitlines() if each.startswith("segjax: ")]
    assert said == [f"segjax: {workdir / 'metrics.jsonl'}: No space left on device"]
    assert other != 0


@pytest.mark.parametrize("field", ["seed=7", "optimizer.learning_rate=7.0"])
def test_processes_with_different_configs_do_not_train(training, tmp_path, field):
    ends = [end(each) for each in training.start(tmp_path / "a", more=((), [f"--config.{field}"]))]
    assert [status for status, _, _ in ends] == [2, 2], ends
    said = "segjax: process 1 of 2 has another config or seed than process 0, expected the same"
    assert all(said in error for _, _, error in ends)
    assert not (tmp_path / "a").exists()


def test_batch_must_divide_among_all_devices(training, tmp_path):
    ends = [end(process) for process in training.start(tmp_path / "run", eval_batch_size=6)]
    assert [status for status, _, _ in ends] == [2, 2]
    for _, _, error in ends:
        assert "segjax: eval_batch_size is 6, which 4 devices do not divide\n" in error


JAX_BY_HAND = {
    "JAX_NUM_PROCESSES": "2",
    "JAX_COORDINATOR_ADDRESS": "host:1",
    "JAX_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two', expected a number"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set, but JAX_COORDINATOR_ADDRESS"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "host:1"},
            "JAX_NUM_PROCESSES is set, but JAX_PROCESS_ID is not",
        ),
        ({**JAX_BY_HAND, "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is '2', expected 0 to 1"),
    ],
)
def test_invalid_process_variables_are_an_error(variables, message):
    with pytest.raises(UserError, match=message):
        processes.join(variables)


# Task 2 of `srun --ntasks=4`, of job 100.
TASK = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}
# The shell that `salloc --ntasks=4` starts on the first node.
SHELL = {**TASK, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
ALL = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}


@pytest.fixture
def joined(monkeypatch):
    """Return the list of the arguments with which JAX is asked to join processes."""
    calls = []

    def initialize(*given, **options):
        assert options["heartbeat_timeout_seconds"] <= 60
        own = {k: v for k, v in options.items() if not k.endswith(("timeout", "timeout_seconds"))}
        calls.append((given, own))

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    return calls


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_LOCALID": "0"},  # a batch script, or `salloc` without a step
        SHELL,
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        {"JAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "one"},
    ],
)
def test_a_single_process_joins_none(variables, joined):
    processes.join(variables)
    assert joined == []


@pytest.mark.parametrize(
    ("variables", "given", "options"),
    [
        (JAX_BY_HAND, ("host:1", 2, 1), {"cluster_detection_method": "deactivate"}),
        (TASK, ("n1:61540", 4, 2), {"local_device_ids": None}),
        # A step of four tasks in an allocation of eight.
        ({**TASK, "SLURM_NTASKS": "8"}, ("n1:61540", 4, 2), {"local_device_ids": None}),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, (None, None, None), {}),
    ],
)
def test_several_processes_join(variables, given, options, joined):
    processes.join(variables)
    assert joined == [(given, options)]


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        # One task per node takes all GPUs, several share them, and bound tasks keep theirs.
        ({**ALL, "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, [0, 1, 2, 3]),
        ({**ALL, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, [1, 3]),
        ({**ALL, "SLURM_STEP_TASKS_PER_NODE": "4"}, [1]),
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
                "CUDA_VISIBLE_DEVICES": "0,1",
                "SLURM_GPUS_PER_TASK": "2",
            },
            [0, 1],
        ),
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
    ],
)
def test_tasks_of_a_node_share_its_gpus(variables, gpus, joined):
    processes.join({**TASK, **variables})
    assert joined[0][1] == {"local_device_ids": gpus}


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"SLURM_STEP_NODELIST": "gpu01"}, "gpu01:61540"),
        ({"SLURM_STEP_NODELIST": "gpu01,login2"}, "gpu01:61540"),
        ({"SLURM_STEP_NODELIST": "gpu[007,010-015],login2"}, "gpu007:61540"),
        ({"SLURM_STEP_NODELIST": "r[3-4]n[10-15]-ib"}, "r3n10-ib:61540"),
        ({"SLURM_STEP_ID": "1"}, "n1:61797"),  # another step of the same job
        ({"JAX_COORDINATOR_PORT": "5"}, "n1:5"),
        ({"JAX_COORDINATOR_ADDRESS": "host:6"}, "host:6"),
    ],
)
def test_process_0_of_a_slurm_step_is_on_its_first_node(variables, address, joined):
    processes.join({**TASK, **variables})
    assert joined[0][0][0] == address


# Join within so many seconds, work for so many, and wait for the others. What takes longer than a
# second is reported.
JOIN = """
import sys, time
from segjax.system import waiting
from segjax.errors import UserError
from segjax.runs import processes

waiting.SECONDS, processes._JOIN_SECONDS = 1, int(sys.argv[1])
try:
    processes.join()
except UserError as error:
    sys.exit(f"segjax: {error}")
processes.run_on_all(lambda: time.sleep(float(sys.argv[2])))
sys.stdout.write(f"{processes.count()} joined\\n")
"""


def join(port, process, seconds=60, work=0, **variables):
    """Start a task of a Slurm step of two tasks."""
    task = {
        **TASK,
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(process),
        "JAX_COORDINATOR_PORT": str(port),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(seconds), str(work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | task,
    )


def waits(port, process):
    return (
        f"waiting for the other 1 of 2 processes at 127.0.0.1:{port} (this is process {process})"
        " ...\n"
    )


def test_the_shell_of_an_allocation_waits_for_no_other():
    assert end(join(free_port(), 0, **SHELL)) == (0, "1 joined\n", "")


@pytest.mark.parametrize("early", [0, 1])
def test_a_process_that_waits_for_others_says_so(early):
    port = free_port()
    first = join(port, early)
    assert first.stderr.readline() == waits(port, early)
    second = join(port, 1 - early)
    for process in (first, second):
        status, out, _ = end(process)
        assert status == 0
        assert "2 joined\n" in out


def test_a_process_that_waits_for_the_work_of_others_says_so():
    port = free_port()
    ends = [end(each) for each in [join(port, 0, work=4), join(port, 1)]]
    assert [status for status, _, _ in ends] == [0, 0]
    said = "waiting for the other processes of this training (this is process {} of 2) ...\n"
    assert said.format(1) in ends[1][2]
    assert said.format(0) not in ends[0][2]


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_whose_others_never_come_gives_up_in_one_line(process):
    port = free_port()
    status, out, error = end(join(port, process, seconds=3))
    assert (status, out) == (75, "")
    said = (
        f"segjax: waited 3 s for the other 1 of 2 processes at 127.0.0.1:{port} "
        f"(this is process {process}), expected all to start and to reach process 0\n"
    )
    assert error == waits(port, process) + said


def test_ctrl_c_ends_a_process_that_waits_for_others():
    port = free_port()
    process = join(port, 0)
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert end(process) == (-signal.SIGINT, "", "")


def test_a_port_in_use_is_an_error():
    port = free_port()
    first = join(port, 0)
    first.stderr.readline()
    status, out, error = end(join(port, 0))
    said = f"segjax: process 0 cannot listen at 127.0.0.1:{port}: [Errno {errno.EADDRINUSE}] "
    assert (status, out) == (1, "")
    assert error == f"{said}{os.strerror(errno.EADDRINUSE)}\n"
    second = join(port, 1)
    assert [end(each)[0] for each in (first, second)] == [0, 0]


def test_a_training_whose_port_is_in_use_ends_with_status_2(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", port := free_port()))
        held.listen()
        variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        command = ["train", "--config", "experiments/quickstart.py", "--workdir", tmp_path / "run"]
        status, out, error = end(start(command, **variables))
    assert (status, out) == (2, "")
    assert error.startswith(f"segjax: process 0 cannot listen at 127.0.0.1:{port}: ")
    assert error.count("\n") == 1


def test_a_process_waits_for_the_others_as_long_as_the_pages_say():
    assert processes._JOIN_SECONDS == 300


@pytest.mark.parametrize("address", ["host", "host:", ":1234", "host:port"])
def test_an_address_without_host_or_port_is_an_error(address, joined):
    with pytest.raises(UserError, match=f"^the address of process 0 is '{address}', expected HOST"):
        processes.join({**JAX_BY_HAND, "JAX_COORDINATOR_ADDRESS": address})
    assert joined == []


def test_distributed_without_a_cluster_is_an_error():
    with pytest.raises(UserError, match=r"^cannot join the other processes of this training: "):
        processes.join({}, always=True)


def test_a_training_outside_the_main_thread_installs_no_handler():
    former = signal.getsignal(signal.SIGTERM)

    def train():
        with processes.StopSignal() as stop:
            return signal.getsignal(signal.SIGTERM), stop.received()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(train).result() == (former, None)
