"""`launch/tpu_vm.sh` with a stand-in for gcloud, whose workers are folders on this machine."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from support import ROOT

SCRIPT = ROOT / "launch" / "tpu_vm.sh"
WORKERS = ("worker-0", "worker-1")

# Stand-in for gcloud: logs its arguments, and does in each worker's folder what ssh and scp would.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
root, given = pathlib.Path(os.environ["WORKERS"]), sys.argv[1:]
with (root / "asked").open("a") as file:
    file.write(json.dumps(given) + "\\n")
at_work = []
for home in sorted(root.glob("worker-*")):
    if given[3] == "scp":
        shutil.copy(given[4], home / given[5].partition(":")[2])
        continue
    (command,) = (word.partition("=")[2] for word in given if word.startswith("--command="))
    env = os.environ | {"HOME": str(home)}
    at_work.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=env))
sys.exit(max((process.wait() for process in at_work), default=0))
"""

# Stand-in for Python on a worker: makes a .venv with a stand-in for segjax.
PYTHON = """#!/bin/bash
mkdir -p "$3/bin" && printf '#!/bin/bash\\necho "pip $*" >> segjax.log' > "$3/bin/pip"
cp "$WORKERS/segjax" "$3/bin/segjax" && chmod +x "$3"/bin/*
"""
SEGJAX = """
import os, signal, sys, time
given = sys.argv[1:]
if "--commands" in given:
    print('segjax train --name "a b"\\nsegjax train --name wait')
    sys.exit()
def save(*_):
    if "slow" in " ".join(given):
        time.sleep(3)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(*given, sep="|", end=f" on {os.environ['JAX_PLATFORMS']}\\n", flush=True)
while "wait" in " ".join(given):
    time.sleep(0.05)
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    python = f"{sys.executable} -IS"  # quick to start
    (binaries / "gcloud").write_text(f"#!{python}{GCLOUD}")
    (binaries / "python3.13").write_text(PYTHON)
    for binary in binaries.iterdir():
        binary.chmod(0o755)
    (tmp_path / "segjax").write_text(f"#!{python}{SEGJAX}")
    for name in WORKERS:
        (tmp_path / name).mkdir()
    monkeypatch.setenv("WORKERS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    return tmp_path


def tpu_vm(*arguments):
    line = [SCRIPT, "--name", "slice", "--zone", "us-west4-a", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def done(*arguments):
    finished = tpu_vm(*arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def logs(workers):
    return [(workers / name / "segjax.log").read_text().splitlines() for name in WORKERS]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_is_started_once_stopped_and_resumed(workers):
    done("install")
    for name in WORKERS:
        copied = workers / name / "segjax"
        assert (copied / "experiments" / "quickstart.py").is_file()
        assert not (copied / ".git").exists()
    assert logs(workers) == [["pip install --quiet --editable ./segjax[tpu]"]] * 2

    command = ("train", "--config", "a file.py", "--workdir", "/mnt/runs/wait")
    started = "train|--distributed|--config|a file.py|--workdir|/mnt/runs/wait on tpu,cpu"
    done(*command)
    wait_for(lambda: all(log[-1] == started for log in logs(workers)))
    assert done(*command).splitlines() == ["a run is in progress already"] * 2
    assert done("status").count(f": running: {started}") == 2
    done("stop")
    assert [log[1:] for log in logs(workers)] == [[started, "saved"]] * 2
    assert done("status").count(": not running: saved") == 2
    done("stop")

    done(*command)
    wait_for(lambda: all(log[1:] == [started, "saved", started] for log in logs(workers)))
    assert done("stop") == ""

    done(*command, "--name", "slow")
    wait_for(lambda: all(log[-1].startswith(f"{started[:-11]}|") for log in logs(workers)))
    assert done("stop").count(": waiting for the run to save ...\n") == 2


def test_a_sweep_trains_its_runs_until_it_is_stopped(workers):
    done("install")
    done("sweep", "--config", "a file.py", "--workdir", "/mnt/runs/x")
    wait_for(lambda: all("wait" in log[-1] for log in logs(workers)))
    done("stop")
    for log in logs(workers):
        assert log[1:] == [
            "train|--name|a b|--distributed on tpu,cpu",
            'exit status 0: segjax train --name "a b"',
            "train|--name|wait|--distributed on tpu,cpu",
            "saved",
        ]


@pytest.mark.parametrize(
    "command",
    [["install"], ["run", "df -h ."], ["train", "--config", "x.py"], ["status"], ["stop"]],
    ids=lambda command: command[0],
)
def test_a_dry_run_prints_the_gcloud_commands(workers, command):
    lines = done("--project", "p", "--dry-run", *command).splitlines()
    assert not (workers / "asked").exists()
    for line in lines:
        asked = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True
        ).stdout.split("\0")
        assert asked[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert {"--zone=us-west4-a", "--project=p", "--worker=all"} < set(asked)
    kinds = [line.split()[4] for line in lines]
    assert kinds == (["scp", "ssh"] if command == ["install"] else ["ssh"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["instal"], "unknown command 'instal'"),
        (["--zoom", "train"], "unknown argument '--zoom'"),
        (["train"], "train needs the arguments of segjax train"),
        (["install", "now"], "install takes no argument"),
        (["--name", "", "stop"], "--name is missing"),
        (["--zone"], "--zone needs a value"),
    ],
)
def test_a_mistake_gives_a_one_line_error(workers, arguments, said):
    finished = tpu_vm(*arguments)
    assert finished.returncode == 2
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (workers / "asked").exists()


def test_bash_and_shellcheck_accept_the_script():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    checked = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert checked.stdout == ""
